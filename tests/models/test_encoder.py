"""The encoder, its heads, and the Vision Transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.models import Classifier, Encoder, MaskedLM, SentenceEmbedding, ViT
from attention_zoo.modules import Asked
from tests.models.transformers import KINDS, LENGTHS, N_SOURCE, SIZES, B, S, drawn, run, tokens
from tests.quick import quick

TOKENS, SIZES_OF_ROWS, _ = tokens()
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def make(**fields) -> Encoder:
    return Encoder(vocabulary=N_SOURCE, **{**SIZES, **fields})


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    model = SentenceEmbedding(make(types=2, embedding_norm=True, **KINDS[kind]))
    variables = drawn(model, TOKENS, SIZES_OF_ROWS)
    other = np.where(np.arange(S) < np.array(LENGTHS)[:, None], TOKENS, 3)
    embed = quick(model.apply)
    first, changed = (embed(variables, ids, SIZES_OF_ROWS) for ids in (TOKENS, other))
    alone = embed(variables, TOKENS[1:2, :4], SIZES_OF_ROWS[1:2])
    np.testing.assert_allclose(changed, first, rtol=1e-6)
    np.testing.assert_allclose(alone[0], first[1], **TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(first, axis=-1), [1, 1, 0], rtol=1e-6)


def test_heads_give_what_they_say() -> None:
    encoder = make(layers=2, types=2)
    masked, first, averaged = MaskedLM(encoder), Classifier(encoder, 5), Classifier(encoder, 5, "mean", pooler=False)

    def all_three(a, b, c):
        inputs = (TOKENS, SIZES_OF_ROWS, jnp.ones_like(TOKENS))
        return masked.apply(a, *inputs), first.apply(b, *inputs, asked=Asked()), averaged.apply(c, *inputs)

    logits, (classes, seen), (others, _) = run(
        all_three, *(drawn(model, TOKENS, SIZES_OF_ROWS) for model in (masked, first, averaged))
    )
    assert logits.shape == (B, S, N_SOURCE) and classes.shape == others.shape == (B, 5)
    assert [layer.own.shape for layer in seen] == [(B, 2, S, S)] * 2
    np.testing.assert_allclose(seen[1].own.sum(-1)[:2], 1, rtol=1e-5)


def test_the_pooling_of_the_first_sees_the_first_alone() -> None:
    """Without attention's help: with a window of nothing on either side, only position 0 reaches the logits."""
    model = Classifier(make(window=(0, 0)), 5)
    variables = drawn(model, TOKENS, SIZES_OF_ROWS)
    other = np.array(TOKENS)
    other[:, 1:] = 4
    classify = quick(lambda ids: model.apply(variables, ids, SIZES_OF_ROWS)[0])
    np.testing.assert_allclose(classify(TOKENS), classify(other), rtol=1e-6)


def test_one_hot_equals_embeddings_by_the_unit_matrix() -> None:
    learned, one_hot = make(width=14), make(width=14, one_hot=True)
    variables = drawn(one_hot, TOKENS, SIZES_OF_ROWS)
    assert "embedding" not in variables["params"]
    unit = {"params": {**variables["params"], "embedding": {"embedding": jnp.eye(N_SOURCE, 14)}}}

    def both(one, other):
        return learned.apply(one, TOKENS, SIZES_OF_ROWS)[0], one_hot.apply(other, TOKENS, SIZES_OF_ROWS)[0]

    np.testing.assert_allclose(*run(both, unit, variables), **TOLERANCE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (make(one_hot=True), "one_hot needs width >= vocabulary; got 8 and 13"),
        (MaskedLM(make(one_hot=True)), "needs learned embeddings"),
        (Classifier(make(), 3, "max"), "pooling is one of first, mean; got 'max'"),
        (make(positions="learned", longest=6), "at most 6 positions are learnt"),
    ],
)
def test_what_cannot_be_is_refused(model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), TOKENS, SIZES_OF_ROWS)


def test_types_change_the_result_and_packed_rows_equal_rows_of_their_own() -> None:
    model = make(types=2, positions="learned")
    variables = drawn(model, TOKENS, SIZES_OF_ROWS)
    row = jnp.concatenate([TOKENS[:1], TOKENS[1:2, :4]], 1)[:, : S + 4]
    segments = jnp.array([[1] * S + [2] * 4])
    places = jnp.concatenate([jnp.arange(S), jnp.arange(4)])[None]

    def ways(variables):
        alone = model.apply(variables, TOKENS, SIZES_OF_ROWS)[0]
        packed = model.apply(variables, row, jnp.array([S + 4]), None, True, segments, places)[0]
        return alone, packed[0], model.apply(variables, TOKENS, SIZES_OF_ROWS, jnp.ones_like(TOKENS))[0]

    alone, packed, typed = jax.device_get(run(ways, variables))
    np.testing.assert_allclose(packed, np.concatenate([alone[0], alone[1, : LENGTHS[1]]]), **TOLERANCE)
    assert not np.allclose(alone[0], typed[0])


@pytest.mark.parametrize("fields", [{}, {"pooling": "mean", "grid": "sinusoidal_2d", "width": 8}, {"grid": "none"}])
def test_vit_reads_patches_row_by_row(fields: dict) -> None:
    model = ViT(**{**SIZES, "classes": 5, "patch": 2, "image": (4, 6), **fields})
    images = np.float32(np.random.default_rng(0).normal(size=(B, 4, 6, 3)))
    variables = drawn(model, images)
    swapped = images[:, [2, 3, 0, 1]]  # both rows of patches exchanged
    read = quick(lambda images: model.apply(variables, images, asked=Asked()))
    (logits, seen), (other, _) = read(images), read(swapped)
    patches = 6 + (model.pooling == "first")
    assert logits.shape == (B, 5) and seen[0].own.shape == (B, 2, patches, patches)
    # Without positions the order of the patches is nothing to it, with them it is.
    assert np.allclose(logits, other, rtol=1e-4, atol=1e-5) == (model.grid == "none")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "last"}, "pooling is one of first, mean; got 'last'"),
        ({"grid": "rotary"}, "grid is one of learned, sinusoidal_2d, none; got 'rotary'"),
        ({"positions": "alibi"}, "for patches there is `grid`"),
        ({"patch": 5}, r"height and width are multiples of the side 5; got 4 x 6"),
        ({"image": (8, 8)}, r"images are 8 x 8; got \(4, 6\)"),
    ],
)
def test_vit_refuses_what_does_not_fit(fields: dict, message: str) -> None:
    model = ViT(**{**SIZES, "patch": 2, "image": (4, 6), **fields})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((B, 4, 6, 3)))

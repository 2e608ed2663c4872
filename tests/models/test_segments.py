"""Nothing passes between the sequences of a packed row, nor from the future: by gradient, exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import chunked
from attention_zoo.models import CausalLM, Encoder, Packed, Transformer
from tests.models.transformers import SIZES, drawn, run

S, T = 11, 7
KINDS = {
    "rotary": {"positions": "rotary", "implementation": "plain"},
    "alibi": {"positions": "alibi", "implementation": "plain", "groups": 1},
    "relative": {"positions": "relative", "implementation": "chunked", "soft_cap": 2.0},
    "window": {"positions": "rotary", "implementation": "chunked", "window": (3, 2), "layers": 2},
}
# Padding stands between sequences too; the third target has no source, and the second row is one sequence.
SOURCE_SEGMENTS = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 0, 0, 4], [1] * S])
TARGET_SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 3], [1] * T])
# Each place of a row has a token of its own, so that the gradient of its vector is that of the place.
SOURCE, TARGET = (jnp.tile(jnp.arange(size), (2, 1)) for size in (S, T))


def places(segments):
    """Positions from 0 in each sequence, 0 for padding."""
    first = np.array([[list(row).index(number) for number in row] for row in segments])
    return jnp.where(jnp.asarray(segments) > 0, np.arange(segments.shape[1]) - first, 0)


SOURCE_SIGHT, TARGET_SIGHT = (
    (jnp.asarray(segments), places(segments)) for segments in (SOURCE_SEGMENTS, TARGET_SEGMENTS)
)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three queries at a time: chunks begin and end inside sequences."""
    monkeypatch.setattr(chunked, "at_once", lambda call: 3)


def influence(model, inputs, options, embeddings):
    """Whether the vector of a token changes an output: for each embedding, bool [B, output, token].

    The outputs weigh their D numbers with random ones: norms make the plain sum of them constant.
    """
    variables = drawn(model, *inputs)

    def moved(variables, tables):
        params = {**variables["params"], **{name: {"embedding": table} for name, table in tables.items()}}
        outputs = model.apply({"params": params}, *inputs, **options)[0]
        return outputs @ jnp.float32(np.random.default_rng(3).normal(size=outputs.shape[-1]))

    tables = {name: variables["params"][name]["embedding"] for name in embeddings}
    slopes = run(jax.jacrev(moved, 1), variables, tables)
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    return [np.abs(slopes[name]).sum(-1) > 0 for name in embeddings]


def reach(model, segments, causal=False):
    """Which tokens the layers of self-attention connect, bool [B, output, token]."""
    distance = np.arange(segments.shape[1]) - np.arange(segments.shape[1])[:, None]
    left, right = model.window or (np.inf, np.inf)
    seen = (-left <= distance) & (distance <= (0 if causal else right))
    same = segments[:, :, None] == segments[:, None]
    return np.linalg.matrix_power(np.int32(same & seen), model.layers) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_language_model(kind: str) -> None:
    model = CausalLM(vocabulary=T, tied=False, **{**SIZES, **KINDS[kind]})
    segments, positions = TARGET_SIGHT
    (moved,) = influence(model, (TARGET,), {"segments": segments, "positions": positions}, ["embedding"])
    real = TARGET_SEGMENTS > 0
    assert np.array_equal(moved[real], reach(model, TARGET_SEGMENTS, causal=True)[real])


@pytest.mark.parametrize("kind", KINDS)
def test_encoder(kind: str) -> None:
    model = Encoder(vocabulary=S, **{**SIZES, **KINDS[kind]})
    segments, positions = SOURCE_SIGHT
    options = {"segments": segments, "positions": positions}
    (moved,) = influence(model, (SOURCE, jnp.array([S, S])), options, ["embedding"])
    real = SOURCE_SEGMENTS > 0
    assert np.array_equal(moved[real], reach(model, SOURCE_SEGMENTS)[real])


@pytest.mark.parametrize("kind", KINDS)
def test_transformer(kind: str) -> None:
    """Of the logits: through the decoder, and through the encoder and the attention to what it read."""
    fields = {**SIZES, **KINDS[kind], "layers": 1}
    model = Transformer(source_vocabulary=S, target_vocabulary=T, tied=False, **fields)
    options = {"packed": Packed(*SOURCE_SIGHT, *TARGET_SIGHT)}
    names = ["source_embedding", "target_embedding"]
    by_source, by_target = influence(model, (SOURCE, jnp.array([S, S]), TARGET), options, names)
    across = np.int32(TARGET_SEGMENTS[:, :, None] == SOURCE_SEGMENTS[:, None])
    real = TARGET_SEGMENTS > 0
    assert np.array_equal(by_target[real], reach(model, TARGET_SEGMENTS, causal=True)[real])
    assert np.array_equal(by_source[real], (across @ reach(model, SOURCE_SEGMENTS) > 0)[real])
    assert not by_source[0, -1].any() and by_target[0, -1].sum() == 1  # the third target: no source, one token


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_without_segments(kind: str) -> None:
    """What is known to be one sequence takes another path: a causal mask alone."""
    model = CausalLM(vocabulary=T, tied=False, **{**SIZES, **KINDS[kind]})
    (moved,) = influence(model, (TARGET,), {}, ["embedding"])
    assert np.array_equal(moved, reach(model, np.ones((2, T), int), causal=True))

"""The translating Transformer: ways of decoding agree, and nothing leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.masks import within
from attention_zoo.functional.search import beam, greedy, none
from attention_zoo.models import Transformer
from attention_zoo.modules import Asked
from tests.models.transformers import KINDS, N_SOURCE, N_TARGET, SIZES, B, S, T, drawn, run, tokens
from tests.quick import quick

VOCABULARIES = {"source_vocabulary": N_SOURCE, "target_vocabulary": N_TARGET}
SOURCE, SOURCE_LENGTHS, TARGET = tokens()
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def make(**fields):
    model = Transformer(**VOCABULARIES, **{**SIZES, **fields})
    return model, drawn(model, SOURCE, SOURCE_LENGTHS, TARGET)


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forced_equals_prefill_in_chunks_equals_step_by_step(kind: str) -> None:
    model, variables = make(**KINDS[kind])

    def every_way(variables):
        forced, alignment = model.apply(variables, SOURCE, SOURCE_LENGTHS, TARGET)
        cache = model.apply(variables, SOURCE, SOURCE_LENGTHS, method="start")
        first, cache, looked = model.apply(variables, cache, TARGET[:, :3], method="extend")
        _, cache, _ = model.apply(variables, cache, TARGET[:, :0], method="extend")

        def step(cache, tokens):
            logits, cache, one = model.apply(variables, cache, tokens, method="step")
            return cache, (logits, one.weights)

        cache, steps = jax.lax.scan(step, cache, TARGET[:, 3:].T)
        return (forced, alignment.weights), (first, looked.weights), steps, cache.length

    forced, chunk, steps, length = run(every_way, variables)
    for whole, first, rest in zip(forced, chunk, steps, strict=True):
        np.testing.assert_allclose(np.concatenate([first, np.moveaxis(rest, 0, 1)], 1), whole, **TOLERANCE)
    weights = forced[1]
    assert length.tolist() == [T] * B
    np.testing.assert_allclose(weights.sum(-1)[:2], 1, rtol=1e-5)
    assert (weights[1, :, 4:] == 0).all() and (weights[2] == 0).all()


def test_a_prompt_with_padding_goes_on_where_its_row_ends() -> None:
    """Rows whose prompts are 4, 2 and 0 tokens long, filled up with anything, go on as if each were alone."""
    model, variables = make(positions="rotary")
    lengths = jnp.array([4, 2, 0])

    def both(variables):
        forced, _ = model.apply(variables, SOURCE, SOURCE_LENGTHS, TARGET)
        cache = model.apply(variables, SOURCE, SOURCE_LENGTHS, method="start")
        prompt = jnp.where(within(lengths, 4), TARGET[:, :4], 9)
        _, cache, _ = model.apply(variables, cache, prompt, lengths=lengths, method="extend")
        next_token = jnp.take_along_axis(TARGET, lengths[:, None], 1)[:, 0]
        logits, _, _ = model.apply(variables, cache, next_token, method="step")
        return jnp.take_along_axis(forced, lengths[:, None, None], 1)[:, 0], logits

    np.testing.assert_allclose(*run(both, variables), **TOLERANCE)


def test_beam_of_width_one_is_greedy_and_both_are_the_forced_argmax() -> None:
    model, variables = make(norm_first=False)

    def written(variables):
        def step(cache, tokens):
            return model.apply(variables, cache, tokens, method="step")

        cache = model.apply(variables, SOURCE, SOURCE_LENGTHS, method="start")
        start = jnp.ones(B, jnp.int32)
        alone = greedy(step, cache, start, end=2, max_length=6)
        narrow = jax.tree.map(lambda leaf: leaf[:, 0], beam(step, cache, start, end=2, max_length=6, width=1))
        inputs = jnp.concatenate([start[:, None], alone.tokens[:, :-1]], 1)
        return alone, narrow, model.apply(variables, SOURCE, SOURCE_LENGTHS, inputs)

    alone, narrow, (logits, alignment) = run(written, variables)
    real = np.asarray(within(alone.lengths, 6))
    assert np.array_equal(alone.tokens, narrow.tokens)
    assert np.array_equal(np.where(real, alone.tokens, 0), np.where(real, logits.argmax(-1), 0))
    np.testing.assert_allclose(narrow.alignment.weights, np.where(real[..., None], alignment.weights, 0), **TOLERANCE)


def test_beams_carry_their_own_cache() -> None:
    """The score of every hypothesis of a wide beam is that of its tokens by teacher forcing."""
    model, variables = make(positions="relative")

    def written(variables):
        def step(cache, tokens):
            return model.apply(variables, cache, tokens, method="step")

        cache = model.apply(variables, SOURCE, SOURCE_LENGTHS, method="start")
        found = beam(step, cache, jnp.ones(B, jnp.int32), end=2, max_length=4, width=3, penalty=none)
        hypotheses = found.tokens.reshape(B * 3, 4)
        inputs = jnp.pad(hypotheses[:, :-1], ((0, 0), (1, 0)), constant_values=1)
        rows = jnp.repeat(jnp.arange(B), 3)
        logits, _ = model.apply(variables, SOURCE[rows], SOURCE_LENGTHS[rows], inputs)
        gained = jnp.take_along_axis(jax.nn.log_softmax(logits), hypotheses[..., None], -1)[..., 0]
        return found.scores.ravel(), jnp.where(within(found.lengths.ravel(), 4), gained, 0).sum(1)

    np.testing.assert_allclose(*run(written, variables), rtol=1e-5, atol=1e-5)


def test_no_gradient_from_the_future_or_from_padding() -> None:
    model, variables = make(positions="none", layers=2, scaled=False)
    mixed = jnp.float32(np.random.default_rng(1).normal(size=(B, S, 8)))

    ids = np.tile(np.arange(T), (B, 1))

    def influence(variables):
        def one(annotations, inputs, step):
            table = variables["params"]["target_embedding"]["embedding"]
            swapped = {**variables["params"], "target_embedding": {"embedding": table + inputs}}
            features, _ = model.apply({"params": swapped}, annotations, SOURCE_LENGTHS, ids, method="decode")
            return features[:2, step].sum()

        nothing = jnp.zeros((N_TARGET, 8))
        return jax.vmap(jax.grad(one, (0, 1)), (None, None, 0))(mixed, nothing, jnp.arange(T))

    by_source, by_token = jax.device_get(run(influence, variables))
    moved = np.abs(by_token[:, :T]).sum(-1) > 0  # [step, token that stands at its own place]
    assert np.array_equal(moved, np.tri(T, dtype=bool))
    assert (by_source[:, 1, 4:] == 0).all() and (np.abs(by_source[:, 1, :4]).sum(-1) > 0).all()
    assert np.isfinite(by_source).all()


@pytest.mark.parametrize(("tied", "output_bias"), [(True, True), (False, False), (False, True)])
def test_loss_is_the_cross_entropy_of_the_logits(tied: bool, output_bias: bool) -> None:
    model, variables = make(tied=tied, output_bias=output_bias)
    real = within(jnp.array([5, 3, 0]), T)

    def both(variables):
        logits, _ = model.apply(variables, SOURCE, SOURCE_LENGTHS, TARGET)
        loss, right, _ = model.apply(variables, SOURCE, SOURCE_LENGTHS, TARGET, TARGET, real, 0.1, method="loss")
        return loss, cross_entropy(logits, TARGET, real, 0.1), right

    loss, expected, right = run(both, variables)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert 0 <= right <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_examples_and_targets_without_steps_are_empty_not_errors(kind: str) -> None:
    model, variables = make(**KINDS[kind])
    source, lengths, target = SOURCE[:0], SOURCE_LENGTHS[:0], TARGET[:0]

    def loss(variables):
        return model.apply(variables, source, lengths, target, target, target == 0, method="loss")[0]

    def all_of(variables):
        no_rows, _ = model.apply(variables, source, lengths, target)
        no_steps, _ = model.apply(variables, SOURCE, SOURCE_LENGTHS, TARGET[:, :0])
        return (no_rows, no_steps), jax.value_and_grad(loss)(variables)

    (no_rows, no_steps), (value, gradients) = run(all_of, variables)
    assert (no_rows.shape, no_steps.shape) == ((0, T, N_TARGET), (B, 0, N_TARGET))
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_weights_on_request_are_those_of_the_chosen_heads_and_rows() -> None:
    model, variables = make(layers=2, heads=3, width=12)

    def both(variables):
        _, every = model.apply(variables, SOURCE, SOURCE_LENGTHS, asked=Asked(), method="encode")
        some = Asked(np.array([2, 0]), np.array([1, 4, 3]))
        _, chosen = model.apply(variables, SOURCE, SOURCE_LENGTHS, asked=some, method="encode")
        return every, chosen

    every, chosen = jax.device_get(run(both, variables))
    assert len(every) == len(chosen) == 2 and every[0].cross is None
    for whole, part in zip(every, chosen, strict=True):
        assert whole.own.shape == (B, 3, S, S)
        np.testing.assert_allclose(part.own, whole.own[:, [2, 0]][:, :, [1, 4, 3]], rtol=1e-6)


def test_dropout_needs_its_key_and_changes_the_result() -> None:
    model, variables = make(dropout=0.3, hidden_dropout=0.3, attention_dropout=0.3)

    @quick
    def draw(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return [model.apply(variables, SOURCE, SOURCE_LENGTHS, TARGET, dry, rngs=rngs)[0] for dry in (False, True)]

    (first, without), (again, _), (other, _) = draw(0), draw(0), draw(1)
    assert np.array_equal(first, again) and not np.allclose(first, other) and not np.allclose(first, without)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shared": True}, "shared embeddings need one vocabulary; got 13 and 11"),
        ({"positions": "absolute"}, "positions is one of"),
        ({"norm": "batch"}, "norm is one of layer, rms; got 'batch'"),
        ({"activation": "tanh"}, "activation is one of"),
        ({"alignment": "monotonic"}, "alignment is one of softmax, tempered, sparsemax, entmax15, top_k"),
        ({"alignment": "sparsemax", "groups": 1, "score": "dot"}, "no groups"),
        ({"temperature": 0.0}, "temperature is above zero; got 0.0"),
        ({"kept": 0}, "kept is at least 1; got 0"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\); got 1.0"),
        ({"heads": 3}, "width is a multiple of heads, or head_width is given; got 8 and 3"),
        ({"groups": 4}, "heads is a multiple of groups; got 2 and 4"),
    ],
)
def test_fields_that_do_not_fit_are_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_more_tokens_than_the_cache_has_room_for_are_refused() -> None:
    model, variables = make()
    cache = jax.eval_shape(lambda: model.apply(variables, SOURCE, SOURCE_LENGTHS, method="start"))
    with pytest.raises(ValueError, match="room for 9 tokens"):
        jax.eval_shape(
            lambda cache: model.apply(variables, cache, jnp.ones((B, 10), jnp.int32), method="extend"), cache
        )

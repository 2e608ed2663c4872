"""The causal language model: ways of decoding agree, and segments are apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.masks import within
from attention_zoo.functional.search import beam, greedy
from attention_zoo.models import CausalLM
from tests.models.transformers import KINDS, N_TARGET, SIZES, B, T, drawn, run, tokens

TOKENS = tokens()[2]
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def make(**fields):
    model = CausalLM(vocabulary=N_TARGET, **{**SIZES, **fields})
    return model, drawn(model, TOKENS)


@pytest.mark.parametrize("kind", [*KINDS, "sinusoidal_halves"])
def test_whole_equals_prefill_in_chunks_equals_step_by_step(kind: str) -> None:
    model, variables = make(**KINDS.get(kind, {"positions": kind}))

    def every_way(variables):
        whole, _ = model.apply(variables, TOKENS)
        start = model.apply(variables, B, method="start")
        at_once, _ = model.apply(variables, start, TOKENS, method="extend")
        first, cache = model.apply(variables, start, TOKENS[:, :3], method="extend")
        _, cache = model.apply(variables, cache, TOKENS[:, :0], method="extend")

        def step(cache, tokens):
            logits, cache, _ = model.apply(variables, cache, tokens, method="step")
            return cache, logits

        steps = jax.lax.scan(step, cache, TOKENS[:, 3:].T)[1]
        return whole, at_once, jnp.concatenate([first, jnp.swapaxes(steps, 0, 1)], 1)

    whole, *found = run(every_way, variables)
    for parts in found:
        np.testing.assert_allclose(parts, whole, **TOLERANCE)


def test_padding_beyond_the_room_of_a_cache_spoils_nothing() -> None:
    """A cache of T positions takes 3 tokens, then a chunk of 4 whose last two are padding."""
    model, variables = make(positions="rotary")

    def both(variables):
        cache = model.apply(variables, B, T, method="start")
        _, cache = model.apply(variables, cache, TOKENS[:, :3], method="extend")
        chunk = jnp.pad(TOKENS[:, 3:], ((0, 0), (0, 2)), constant_values=9)
        logits, cache = model.apply(variables, cache, chunk, jnp.full(B, 2), method="extend")
        return model.apply(variables, TOKENS)[0][:, 3:], logits[:, :2], cache.length

    whole, parts, length = run(both, variables)
    np.testing.assert_allclose(parts, whole, **TOLERANCE)
    assert length.tolist() == [T] * B


def test_room_for_more_than_the_learned_positions_is_refused() -> None:
    model, variables = make(positions="learned")
    with pytest.raises(ValueError, match="9 positions are learnt"):
        jax.eval_shape(lambda: model.apply(variables, B, 10, method="start"))


def test_beam_of_width_one_is_greedy() -> None:
    model, variables = make(positions="alibi")

    def written(variables):
        def step(cache, tokens):
            return model.apply(variables, cache, tokens, method="step")

        cache, start = model.apply(variables, B, method="start"), TOKENS[:, 0]
        alone = greedy(step, cache, start, end=2, max_length=6)
        inputs = jnp.concatenate([start[:, None], alone.tokens[:, :-1]], 1)
        return alone, beam(step, cache, start, end=2, max_length=6, width=1), model.apply(variables, inputs)[0]

    alone, narrow, logits = run(written, variables)
    real = np.asarray(within(alone.lengths, 6))
    assert np.array_equal(alone.tokens, narrow.tokens[:, 0])
    assert np.array_equal(np.where(real, alone.tokens, 0), np.where(real, logits.argmax(-1), 0))


@pytest.mark.parametrize("positions", ["learned", "alibi"])
def test_neither_the_future_nor_another_segment_is_seen(positions: str) -> None:
    """By gradient, exactly zero: row 0 holds segments of 2 and 3 tokens, row 1 one of 4 and padding."""
    model, variables = make(positions=positions, layers=2)
    segments = jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0], [1, 2, 3, 4, 5]])
    places = jnp.array([[0, 1, 0, 1, 2], [0, 1, 2, 3, 0], [0] * 5])
    ids = jnp.tile(jnp.arange(T), (B, 1))  # each place has a token of its own, to move it alone

    def influence(variables):
        def one(moved, step):
            table = variables["params"]["embedding"]["embedding"]
            embedded = {**variables["params"], "embedding": {"embedding": table + moved}}
            features, _ = model.apply(
                {"params": embedded}, ids, True, segments, places, None, method=lambda m, *a: m._features(*a)
            )
            return features[:, step].sum(-1)

        return jax.vmap(jax.jacrev(one), (None, 0))(jnp.zeros((N_TARGET, 8)), jnp.arange(T))

    moved = np.abs(run(influence, variables)[:, :, :T]).sum(-1) > 0  # [step, B, place]
    same = np.asarray(segments)[:, :, None] == np.asarray(segments)[:, None]
    expected = np.tri(T, dtype=bool)[None] & same
    real = np.asarray(segments) > 0
    assert np.array_equal(moved.swapaxes(0, 1)[real], expected[real])


@pytest.mark.parametrize("tied", [True, False])
def test_loss_is_the_cross_entropy_of_the_logits(tied: bool) -> None:
    model, variables = make(tied=tied, scaled=tied)
    real = within(jnp.array([5, 3, 0]), T)

    def both(variables):
        logits, _ = model.apply(variables, TOKENS)
        return model.apply(variables, TOKENS, TOKENS, real, method="loss")[0], cross_entropy(logits, TOKENS, real)

    np.testing.assert_allclose(*run(both, variables), rtol=1e-5)


def test_a_cache_of_another_size_and_what_does_not_fit() -> None:
    model, _ = make()
    cache = jax.eval_shape(lambda: CausalLM(vocabulary=N_TARGET, **SIZES).apply({}, B, 3, method="start"))
    assert cache.written[0].keys.shape == (B, 2, 3, 4)
    variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match="the cache has room for 3 tokens; got 5"):
        jax.eval_shape(
            lambda variables, cache: model.apply(variables, cache, TOKENS, method="extend"), variables, cache
        )


def test_bfloat16_is_near_to_float32_and_nothing_is_promoted() -> None:
    model, variables = make(positions="rotary", layers=2)
    small = model.clone(dtype=jnp.bfloat16)

    def both(variables):
        return model.apply(variables, TOKENS)[0], small.apply(variables, TOKENS)[0]

    wide, narrow = run(both, variables)
    assert narrow.dtype == jnp.bfloat16
    assert np.abs(np.float32(narrow) - wide).max() < 0.03 * np.abs(wide).max()

"""MoChA: by hand, by its formula, at its limits (chunks of one, of everything), with masks, and its gradient."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads
from jaxtyping import TypeCheckError

from attention_zoo.functional import alignment, monotonic
from attention_zoo.functional.mocha import mocha

NAN, INF = np.nan, np.inf
B, T, S, WIDTH = 2, 5, 7, 3
assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
assert_equal = partial(jax.tree.map, np.testing.assert_array_equal)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape, scale=scale)


def draw_mask(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((B, T, S)) < 0.6


def draw_weights(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """Alignments that have lost some of their weight, zero where masked."""
    return np.random.default_rng(seed).dirichlet(np.ones(S + 1), (B, T))[..., :-1] * mask


def formula(weights: np.ndarray, scores: np.ndarray, mask: np.ndarray, width: int) -> np.ndarray:
    """The paper's two sums, one position after another, for [T, S]; positions that are masked are left out of both."""
    found, size = np.zeros_like(weights), weights.shape[-1]
    for t, s in np.ndindex(*weights.shape):
        for k in range(s, min(s + width, size)):
            chunk = [n for n in range(max(k - width + 1, 0), k + 1) if mask[t, n]]
            if mask[t, s]:
                found[t, s] += weights[t, k] * np.exp(scores[t, s]) / np.exp(scores[t, chunk]).sum()
    return found


compiled = jax.jit(mocha, static_argnums=3)
softmax = jax.jit(alignment.softmax)


@cache
def compiled_gradient():
    """(weights, scores, mask, cotangents) -> result, gradients of weights and scores."""

    @jax.jit
    def gradient(weights: jax.Array, scores: jax.Array, mask: jax.Array, cotangents: jax.Array) -> tuple:
        result, pull_back = jax.vjp(lambda weights, scores: mocha(weights, scores, mask, WIDTH), weights, scores)
        return result, pull_back(cotangents)

    return gradient


def test_by_hand():
    # exp(u) is 1, 2, 6, 3. Chunks of two: [1], [1 2], [2 6], [6 3]; the walk stops at the last three with 0, .8 and .2.
    weights, scores = np.array([[0.0, 0.0, 0.8, 0.2]]), np.log([[1.0, 2.0, 6.0, 3.0]])
    expected = [[0, 0.8 * 2 / 8, 0.8 * 6 / 8 + 0.2 * 6 / 9, 0.2 * 3 / 9]]
    assert_close(compiled(weights, scores, None, 2), expected)


def test_masked_positions_are_left_out_of_their_chunks_by_hand():
    # The chunk of three that ends at the last position holds it and the first of the three.
    weights, scores = np.array([[0.0, 0.0, 0.0, 1.0]]), np.log([[9.0, 3.0, 50.0, 1.0]])
    assert_close(compiled(weights, scores, np.array([[True, True, False, True]]), 3), [[0, 3 / 4, 0, 1 / 4]])


@pytest.mark.parametrize("width", [2, 4, S, S + 2])
def test_equals_the_formula(width, float64):
    mask, scores = draw_mask(), draw(B, T, S, scale=3.0)
    weights = draw_weights(mask)
    expected = [formula(*case, width) for case in zip(weights, scores, mask, strict=True)]
    np.testing.assert_allclose(compiled(weights, scores, mask, width), expected, rtol=0, atol=1e-12)


def test_chunks_of_one_leave_the_monotonic_alignment():
    mask = draw_mask()
    weights = np.float32(draw_weights(mask))
    np.testing.assert_array_equal(compiled(weights, np.float32(draw(B, T, S, scale=1e4)), mask, 1), weights)


def test_a_chunk_of_everything_is_softmax():
    last, scores, mask = np.broadcast_to(np.eye(S, dtype=np.float32)[-1], (B, T, S)), draw(B, T, S), draw_mask()
    mask[..., -1] = True
    assert_close(compiled(last, np.float32(scores), mask, S), softmax(scores, mask))


def test_a_decision_gives_the_softmax_over_the_chunk_that_ends_there():
    scores, chunk_scores = np.float32(draw(B, T, S)) - 0.5, np.float32(draw(B, T, S, seed=1))
    decided, _ = jax.device_get(jax.jit(monotonic.hard)(scores, None, np.float32(np.eye(S)[np.zeros(B, int)])))
    found = np.asarray(compiled(decided, chunk_scores, np.ones((B, T, S), bool), WIDTH))
    index = np.arange(S)
    for b, t in np.ndindex(B, T):
        end = np.argmax(decided[b, t]) if np.any(decided[b, t]) else -1
        chunk = (end - WIDTH < index) & (index <= end)
        assert_close(found[b, t], softmax(chunk_scores[b, t][None], chunk[None])[0])
    assert set(np.unique(decided.sum(-1))) == {0, 1}


def test_equal_scores_spread_a_walk_evenly():
    # The chunk of the first position is shorter, as there is nothing before it.
    weights = np.float32(draw_weights(np.ones((B, T, S))))
    found = np.asarray(compiled(weights, np.full((B, T, S), 7.0, np.float32), np.ones((B, T, S), bool), 2))
    after = np.concatenate([weights[..., 1:], np.zeros((B, T, 1))], axis=-1)
    assert_close(found[..., 1:], (weights / 2 + after / 2)[..., 1:])
    assert_close(found[..., 0], weights[..., 0] + weights[..., 1] / 2)


values = st.sampled_from([0.0, -1e4, 1e4, 88.0, -88.0, 3.0])
mask_arrays = arrays(bool, (B, T, S), elements=st.integers(0, 3).map(bool), fill=st.nothing())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@given(scores=arrays(float, (B, T, S), elements=values, fill=st.nothing()), mask=mask_arrays, seed=st.integers(0, 999))
@example(scores=np.full((B, T, S), 1e4), mask=np.zeros((B, T, S), bool), seed=0)
@example(scores=np.where(np.arange(S) % 2, 1e4, -1e4) * np.ones((B, T, 1)), mask=np.ones((B, T, S), bool), seed=0)
def test_huge_scores_and_empty_rows(dtype, scores, mask, seed):
    weights, cotangents = draw_weights(mask, seed), draw(B, T, S, seed=seed)
    arguments = [jnp.asarray(array, dtype) for array in (weights, scores)]
    found, gradients = compiled_gradient()(*arguments, mask, jnp.asarray(cotangents, dtype))
    assert found.dtype == gradients[0].dtype == gradients[1].dtype == dtype
    found, gradients, given = jax.tree.map(np.float32, (found, gradients, arguments[0]))
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(-1), given.sum(-1), atol=float(2 * jnp.finfo(dtype).eps))
    np.testing.assert_array_equal(found[~mask], 0)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
    np.testing.assert_array_equal(gradients[1][~mask], 0)
    np.testing.assert_array_equal(gradients[0][~mask.any(-1)], 0)


def test_long_sources():
    size, dtype = 4096, np.float32
    scores, weights = dtype(draw(2, size, scale=1e3)), np.full((2, size), 1 / size, dtype)

    @jax.jit
    def run(weights, scores, cotangents):
        found, pull_back = jax.vjp(lambda *both: mocha(*both, None, WIDTH), weights, scores)
        return found, pull_back(cotangents)

    found, gradients = jax.device_get(run(weights, scores, dtype(draw(2, size, seed=1))))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-4)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3e38])
def test_what_stands_in_masked_scores_matters_neither_forward_nor_backward(garbage):
    mask, clean, cotangents = draw_mask(), np.float32(draw(B, T, S)), np.float32(draw(B, T, S, seed=1))
    weights, dirty = np.float32(draw_weights(mask)), np.where(mask, clean, np.float32(garbage))
    found = jax.device_get(compiled_gradient()(weights, dirty, mask, cotangents))
    assert_equal(found, compiled_gradient()(weights, clean, mask, cotangents))
    np.testing.assert_array_equal(found[1][1][~mask], 0)
    assert np.any(found[1][1] != 0)


def test_padding_changes_nothing():
    mask = np.broadcast_to(np.arange(S) < 4, (B, T, S))
    weights, scores = np.float32(draw_weights(mask)), np.float32(draw(B, T, S))
    found = np.asarray(compiled(weights, scores, mask, WIDTH))
    assert_close(found[..., :4], compiled(weights[..., :4], scores[..., :4], None, WIDTH))
    np.testing.assert_array_equal(found[..., 4:], 0)


def test_steps_are_apart():
    mask = draw_mask()
    weights, scores = np.float32(draw_weights(mask)), np.float32(draw(B, T, S))
    whole = compiled(weights, scores, mask, WIDTH)
    parts = [compiled(weights[:, cut], scores[:, cut], mask[:, cut], WIDTH) for cut in (np.s_[:3], np.s_[3:])]
    assert_close(np.concatenate(parts, axis=1), whole)


def test_gradient_equals_finite_differences(float64):
    mask = draw_mask()
    run = jax.jit(lambda weights, scores: mocha(weights, scores, mask, WIDTH))
    check_grads(run, (draw_weights(mask), draw(B, T, S, scale=2.0)), order=1, atol=1e-6, rtol=1e-6)


def test_vmap_eager_broadcast_masks_and_export():
    mask = draw_mask()[:1, :1]
    whole = np.broadcast_to(mask, (B, T, S))
    weights, scores = np.float32(draw_weights(whole)), np.float32(draw(B, T, S))
    found = compiled(weights, scores, whole, WIDTH)
    assert_close(jax.jit(jax.vmap(partial(mocha, width=WIDTH)))(weights, scores, whole), found)
    assert_close(mocha(weights, scores, mask, WIDTH), found)
    gradient, arguments = compiled_gradient(), (weights, scores, whole, scores)
    jax.tree.map(assert_close, jax.export.export(gradient)(*arguments).call(*arguments), gradient(*arguments))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_dtype_of_the_scores_comes_back(dtype, float64):
    # float64 is on: float32 must not become it.
    scores = jax.ShapeDtypeStruct((T, S), dtype)
    for weights in ("float32", dtype):
        assert (
            jax.eval_shape(partial(mocha, mask=None, width=2), jax.ShapeDtypeStruct((T, S), weights), scores).dtype
            == dtype
        )


def test_computes_in_float32():
    mask = draw_mask()
    weights, scores = (x.astype(jnp.bfloat16) for x in (draw_weights(mask), draw(B, T, S)))
    wide = np.asarray(compiled(weights.astype(np.float32), scores.astype(np.float32), mask, WIDTH))
    np.testing.assert_array_equal(compiled(weights, scores, mask, WIDTH), wide.astype(jnp.bfloat16))


def test_numpy_float64_without_float64_and_no_source():
    weights, scores = draw_weights(np.ones((B, T, S))), draw(B, T, S)
    assert jax.eval_shape(lambda: mocha(weights, scores, None, WIDTH)).dtype == jnp.float32
    assert mocha(jnp.zeros((T, 0)), jnp.zeros((T, 0)), None, WIDTH).shape == (T, 0)


def test_refusals():
    with pytest.raises(ValueError, match="mocha: width is at least 1; got 0"):
        mocha(draw(T, S), draw(T, S), None, 0)
    for name, arguments in [
        ("chunk_scores", (draw(T, S), draw(T, S + 1), None, 2)),
        ("mask", (draw(B, T, S), draw(B, T, S), np.ones((B, S), bool), 2)),
        ("width", (draw(T, S), draw(T, S), None, 2.0)),
    ]:
        with pytest.raises(TypeCheckError, match=rf"parameter '{name}'\.\nActual value: .*\nExpected type: "):
            mocha(*arguments)

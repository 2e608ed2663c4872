"""Monotonic alignment: by hand, against all stopping paths, at p in {0, 1}, with masks."""

from collections.abc import Callable
from functools import cache, partial
from itertools import combinations_with_replacement, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads

from attention_zoo.functional import monotonic

NAN, INF = np.nan, np.inf
B, T, S = 2, 5, 7
LONG = 4096
every_method = pytest.mark.parametrize("method", monotonic.METHODS)
assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
assert_equal = partial(jax.tree.map, np.testing.assert_array_equal)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape, scale=scale)


def draw_mask(*shape: int, seed: int = 0, share: float = 0.6) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).random(shape) < share


def draw_previous(*shape: int, seed: int = 0) -> np.ndarray:
    """Alignments that have lost some of their weight already."""
    return np.random.default_rng((seed, *shape)).dirichlet(np.ones(shape[-1] + 1), shape[:-1])[..., :-1]


def start(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.eye(1, shape[-1], dtype=np.float32)[0], shape)


def over_all_paths(scores: np.ndarray, mask: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """The expectation by definition, for scores [T, S]: the sum over all ways to stop; S is off the end."""
    steps, size = scores.shape
    stop = np.where(mask, 1 / (1 + np.exp(-scores)), 0)
    weights, total = np.zeros((steps, size)), 0.0
    for path in combinations_with_replacement(range(size + 1), steps + 1):
        probability = np.append(previous, 1 - previous.sum())[path[0]]
        for t, (before, after) in enumerate(pairwise(path)):
            probability *= np.prod(1 - stop[t, before:after]) * (stop[t, after] if after < size else 1)
        total += probability
        for t, position in enumerate(path[1:]):
            if position < size:
                weights[t, position] += probability
    np.testing.assert_allclose(total, 1, rtol=1e-12)
    return weights


@cache
def compiled(method: str) -> Callable:
    return jax.jit(partial(monotonic.monotonic, method=method))


@cache
def compiled_gradient(method: str) -> Callable:
    """(scores, mask, previous, cotangents of weights and last) -> results, gradients of scores and previous."""

    @jax.jit
    def gradient(scores: jax.Array, mask: jax.Array, previous: jax.Array, cotangents: tuple) -> tuple:
        run = lambda scores, previous: monotonic.monotonic(scores, mask, previous, method=method)  # noqa: E731
        results, pull_back = jax.vjp(run, scores, previous)
        return results, pull_back(cotangents)

    return gradient


compiled_hard = jax.jit(monotonic.hard)
FUNCTIONS = {method: compiled(method) for method in monotonic.METHODS} | {"hard": compiled_hard}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@every_method
def test_by_hand(method):
    # Coins. In the second step 1/2, 1/4 and 1/8 start at the three positions.
    weights, last = monotonic.monotonic(jnp.zeros((2, 3)), None, jnp.array([1.0, 0.0, 0.0]), method=method)
    np.testing.assert_array_equal(weights, [[1 / 2, 1 / 4, 1 / 8], [1 / 4, 1 / 4, 3 / 16]])
    np.testing.assert_array_equal(last, weights[-1])


@every_method
def test_masked_positions_are_passed_by_hand(method):
    mask = jnp.array([False, True, False, True])
    weights, _ = monotonic.monotonic(jnp.zeros((1, 4)), mask[None], monotonic.first(mask), method=method)
    np.testing.assert_array_equal(weights, [[0, 1 / 2, 0, 1 / 4]])


def test_the_first_position_that_exists():
    mask = np.array([[True, True, False], [False, True, True], [False, False, False]])
    np.testing.assert_array_equal(monotonic.first(mask), [[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert monotonic.first(mask, jnp.bfloat16).dtype == jnp.bfloat16


@every_method
@pytest.mark.parametrize(("steps", "size"), [(4, 1), (4, 2), (3, 6)])
def test_equals_the_sum_over_all_stopping_paths(method, steps, size, float64):
    scores, mask = draw(13, steps, size, scale=3.0), draw_mask(13, steps, size)
    mask[0], previous = True, draw_previous(13, size)
    weights, last = compiled(method)(scores, mask, previous)
    expected = [over_all_paths(*case) for case in zip(scores, mask, previous, strict=True)]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(last, weights[:, -1])


@every_method
def test_what_a_row_lacks_has_run_off_the_end(method, float64):
    scores = draw(T, S)
    weights, _ = compiled(method)(scores, None, jnp.asarray(start(S), float))
    missing = 1 - np.sum(weights, axis=-1)
    np.testing.assert_allclose(missing[0], np.prod(1 / (1 + np.exp(scores[0]))), rtol=1e-10)
    assert np.all(np.diff(missing) > 0)


def long_scores() -> np.ndarray:
    """Two steps over a long source: p of every size, p in {0, 1}, both, and walks that stop only at the last."""
    normal, signs = draw(2, LONG, scale=4.0), 1e4 * np.sign(draw(2, LONG, seed=1))
    late = np.full((2, LONG), -1e4)
    late[:, -1] = 1e4
    rare = np.full((2, LONG), -8.0)
    mixed = np.where(draw_mask(2, LONG, share=0.01), -signs, normal - 8)
    return np.float32([normal, signs, late, rare, mixed, -late, np.full((2, LONG), 1e4), np.full((2, LONG), -1e4)])


def test_long_sources_and_certain_choices_in_float32():
    scores, mask = long_scores(), draw_mask(8, 1, LONG, share=0.9)
    previous = start(8, LONG)
    cotangents = (np.float32(draw(8, 2, LONG)), np.float32(draw(8, LONG)))
    exact = reference(np.float64(scores), mask, np.float64(previous))
    found = {method: compiled_gradient(method)(scores, mask, previous, cotangents) for method in monotonic.METHODS}
    for (weights, _), gradients in found.values():
        # Up to 4096 roundings of 6e-8 each; what lies below float32's range is zero.
        np.testing.assert_allclose(weights, exact, rtol=2e-4, atol=1e-37)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
        # Where p is 0 or 1, there is still a gradient by where the walk starts; not for the last, which never stops.
        assert np.all(np.abs(gradients[1]).max(axis=-1)[:-1] > 0.001)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *(found[method][1] for method in found))


def reference(scores: np.ndarray, mask: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The recursion of eq. 13 and 14 in numpy's float64."""
    stop = np.where(mask, np.exp(-np.logaddexp(0, -scores)), 0)
    go_on = np.where(mask, np.exp(-np.logaddexp(0, scores)), 1)
    rows = []
    for t in range(scores.shape[1]):
        reached = np.zeros_like(before)
        arriving = np.zeros(len(before))
        for s in range(scores.shape[2]):
            reached[:, s] = arriving + before[:, s]
            arriving = reached[:, s] * go_on[:, t, s]
        before = stop[:, t] * reached
        rows.append(before)
    return np.stack(rows, axis=1)


@every_method
def test_scores_without_bound_are_certain(method):
    scores = jnp.array([[-INF, INF, 0.0], [INF, -INF, INF]])
    weights, pull_back, _ = jax.vjp(
        lambda scores: monotonic.monotonic(scores, None, start(3), method=method), scores, has_aux=True
    )
    np.testing.assert_array_equal(weights, [[0, 1, 0], [0, 0, 1]])
    assert np.all(np.isfinite(pull_back(jnp.ones_like(weights))[0]))


@every_method
def test_gradient_equals_finite_differences(method, float64):
    mask = np.array([[True, True, False, True, True]])
    run = jax.jit(lambda scores, previous: monotonic.monotonic(scores, mask, previous, method=method))
    check_grads(run, (draw(3, 5, scale=2.0), draw_previous(5)), order=1, atol=1e-6, rtol=1e-6)


@every_method
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3e38])
def test_what_stands_in_masked_scores_matters_neither_forward_nor_backward(method, garbage):
    clean, mask, previous = np.float32(draw(B, T, S)), draw_mask(B, T, S), np.float32(draw_previous(B, S))
    dirty = np.where(mask, clean, np.float32(garbage))
    cotangents = (np.float32(draw(B, T, S)), np.float32(draw(B, S)))
    found = compiled_gradient(method)(dirty, mask, previous, cotangents)
    assert_equal(found, compiled_gradient(method)(clean, mask, previous, cotangents))
    gradient = found[1][0]
    np.testing.assert_array_equal(gradient[~mask], 0)
    assert np.all(gradient[:, 0][mask[:, 0]] != 0)
    assert_equal(compiled_hard(dirty, mask, previous), compiled_hard(clean, mask, previous))


@every_function
def test_masked_positions_do_not_exist(function):
    # Not only padding: the same as without those columns.
    scores, there = np.float32(draw(B, T, S)), np.array([False, True, True, False, True, False, False])
    mask = np.broadcast_to(there, (B, T, S))
    weights, last = function(scores, mask, monotonic.first(mask[:, 0]))
    short, short_last = function(scores[..., there], None, start(B, 3))
    assert_close(weights[..., there], short)
    assert_close(last[..., there], short_last)
    np.testing.assert_array_equal(weights[..., ~there], 0)


seeds = st.integers(0, 999)
mask_arrays = arrays(bool, (B, T, S), elements=st.integers(0, 4).map(bool), fill=st.nothing())
big = st.sampled_from([0.0, -1e4, 1e4, -88.0, 88.0, -17.0, 17.0, 3.0])


@pytest.mark.parametrize(
    ("method", "dtype"), [("parallel", jnp.float32), ("parallel", jnp.bfloat16), ("recursive", jnp.float32)]
)
@given(values=arrays(float, (B, T, S), elements=big, fill=st.nothing()), mask=mask_arrays, seed=seeds)
@example(values=np.full((B, T, S), 1e4), mask=np.zeros((B, T, S), bool), seed=0)
def test_finite_and_never_more_than_one(method, dtype, values, mask, seed):
    scores, previous = jnp.asarray(values, dtype), jnp.asarray(draw_previous(B, S, seed=seed), dtype)
    cotangents = (jnp.asarray(draw(B, T, S), dtype), jnp.asarray(draw(B, S), dtype))
    (weights, last), gradients = compiled_gradient(method)(scores, mask, previous, cotangents)
    wide = np.float32(weights)
    assert weights.dtype == last.dtype == gradients[0].dtype == gradients[1].dtype == dtype
    assert np.all(wide >= 0)
    assert np.all(wide.sum(-1) <= np.float32(previous).sum(-1)[:, None] + S * jnp.finfo(dtype).eps)
    np.testing.assert_array_equal(wide[~mask], 0)
    assert all(np.all(np.isfinite(np.float32(gradient))) for gradient in gradients)
    np.testing.assert_array_equal(np.float32(gradients[0])[~mask], 0)


@every_function
def test_batched_equals_vmap_and_compiled_equals_eager(function):
    arguments = (np.float32(draw(B, T, S)), draw_mask(B, T, S), np.float32(draw_previous(B, S)))
    found = function(*arguments)
    jax.tree.map(assert_close, jax.vmap(function)(*arguments), found)
    jax.tree.map(assert_close, function.__wrapped__(*arguments), found)


@every_function
def test_masks_broadcast(function):
    scores, mask, previous = np.float32(draw(B, T, S)), draw_mask(1, 1, S), np.float32(draw_previous(B, S))
    assert_equal(function(scores, mask, previous), function(scores, np.broadcast_to(mask, (B, T, S)), previous))


@every_function
def test_export(function):
    arguments = (np.float32(draw(B, T, S)), draw_mask(B, T, S), np.float32(draw_previous(B, S)))
    assert_equal(jax.export.export(function)(*arguments).call(*arguments), function(*arguments))


def test_export_of_a_gradient_and_checkpoint():
    scores, mask, previous = np.float32(draw(B, T, S)), draw_mask(B, T, S), np.float32(draw_previous(B, S))
    arguments = (scores, mask, previous, (np.float32(draw(B, T, S)), np.float32(draw(B, S))))
    expected = compiled_gradient("parallel")(*arguments)
    exported = jax.export.export(compiled_gradient("parallel"))(*arguments)
    jax.tree.map(assert_close, exported.call(*arguments), expected)
    run = jax.checkpoint(lambda scores, previous: monotonic.monotonic(scores, mask, previous))
    again = jax.jit(lambda cotangents: jax.vjp(run, scores, previous)[1](cotangents))(arguments[-1])
    jax.tree.map(assert_close, tuple(again), expected[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_given_dtypes_come_back(dtype, float64):
    # float64 is on: float32 must not become it.
    scores = jax.ShapeDtypeStruct((B, T, S), dtype)
    for function in FUNCTIONS.values():
        for state in ("float32", dtype):
            weights, last = jax.eval_shape(function, scores, None, jax.ShapeDtypeStruct((B, S), state))
            assert (weights.dtype, last.dtype) == (dtype, state)
    assert jax.eval_shape(monotonic.with_noise, scores, jax.random.key(0), 0.5).dtype == dtype


def test_computes_in_float32():
    scores, mask = jnp.asarray(draw(B, T, S), jnp.bfloat16), draw_mask(B, T, S)
    narrow, wide = (compiled("parallel")(x, mask, start(B, S))[0] for x in (scores, scores.astype(jnp.float32)))
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def test_numpy_float64_without_float64():
    scores, previous = draw(T, S), draw_previous(S)
    for function in (monotonic.monotonic, monotonic.hard):
        results = jax.eval_shape(lambda function=function: function(scores, None, previous))
        assert [result.dtype for result in results] == [jnp.float32, jnp.float32]
    assert jax.eval_shape(lambda: monotonic.with_noise(scores, jax.random.key(0), np.array(0.5))).dtype == jnp.float32


@every_function
def test_no_source_and_no_step(function):
    assert jax.tree.map(jnp.shape, function(jnp.zeros((B, 3, 0)), None, jnp.zeros((B, 0)))) == ((B, 3, 0), (B, 0))
    weights, last = function(jnp.zeros((0, S)), None, start(S))
    assert weights.shape == (0, S)
    np.testing.assert_array_equal(last, start(S))

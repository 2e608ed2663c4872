"""Reading a local window alone: equal to reading everything, at a cost that does not grow with the source."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import masks, scores
from attention_zoo.functional.attend import attend
from attention_zoo.functional.local import (
    local_attend,
    local_p,
    predicted_centers,
    put_window,
    take_window,
    window_starts,
)
from attention_zoo.functional.loop import scan
from tests.functional.test_local import ALIGNMENTS, CENTERS, MASK, B, Q, S, T, V, compiled, draw, predictor


def test_window_starts_by_hand():
    centers = np.array([-8.0, 0.0, 2.0, 3.0, 3.2, 4.0, 5.0, 99.0])
    np.testing.assert_array_equal(window_starts(centers, 8, window=2), [0, 0, 0, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(window_starts(np.arange(3), 4, window=2), [0, 0, 0])


@pytest.mark.parametrize(("size", "window"), [(1, 0), (1, 2), (3, 5), (7, 2), (11, 5), (29, 3)])
def test_a_slice_holds_the_whole_window(size, window):
    centers = np.linspace(-3, 31, 341).round(1)
    starts = np.asarray(window_starts(centers, size, window=window))
    positions = np.arange(size)
    inside = np.abs(positions - centers[:, None]) <= window
    held = (positions >= starts[:, None]) & (positions <= starts[:, None] + 2 * window)
    assert inside.any() and not np.any(inside & ~held)


def test_taking_and_putting_back_by_hand():
    array, starts = jnp.arange(1.0, 6.0)[:, None], np.array([0, 1, 4])
    taken = take_window(array, starts, 3)
    np.testing.assert_array_equal(taken[..., 0], [[1, 2, 3], [2, 3, 4], [5, 0, 0]])
    np.testing.assert_array_equal(
        put_window(taken[..., 0], starts, 5), [[1, 2, 3, 0, 0], [0, 2, 3, 4, 0], [0] * 4 + [5]]
    )
    # What hangs over either end is dropped.
    np.testing.assert_array_equal(
        put_window(jnp.array([[1.0, 2.0, 3.0]] * 2), np.array([-1, 2]), 3), [[2, 3, 0], [0, 0, 1]]
    )


SCORES = {"dot": scores.dot, "additive": lambda q, k: scores.additive(q, k, jnp.linspace(-2, 3, Q))}
SIZES = [
    ("dot", "m", S, 2),
    ("dot", "m", S, 0),
    ("additive", "p", S, 2),
    ("dot", "p", 1, 2),
    ("dot", "renormalised", 3, 5),
]


@pytest.mark.parametrize(("score", "name", "size", "window"), SIZES)
def test_reading_the_windows_alone_equals_reading_everything(score, name, size, window, float64):
    mask = MASK[..., :size]

    def dense(queries, keys, values, centers):
        align = partial(ALIGNMENTS[name], centers=centers, window=window)
        context, alignment = attend(queries, keys, values, mask, score=SCORES[score], align=align)
        return context, alignment.weights

    def windowed(queries, keys, values, centers):
        options = {"score": SCORES[score], "align": ALIGNMENTS[name], "window": window}
        return local_attend(queries, keys, values, mask, centers, **options)

    @jax.jit
    def run(*arguments):
        results, pull_backs = zip(*(jax.vjp(function, *arguments) for function in (windowed, dense)), strict=True)
        cotangents = draw(B, T, V, seed=1), draw(B, T, size, seed=1)
        return [(result, pull_back(cotangents)) for result, pull_back in zip(results, pull_backs, strict=True)]

    found, expected = run(draw(B, T, Q), draw(B, size, Q), draw(B, size, V), CENTERS)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), found, expected)
    assert np.any(found[0][1] > 0)


def test_no_source_at_all():
    nothing = [np.zeros((T, Q)), np.zeros((0, Q)), np.zeros((0, V)), None, np.zeros(T)]
    context, weights = jax.jit(partial(local_attend, score=scores.dot, window=2))(*nothing)
    np.testing.assert_array_equal(context, np.zeros((T, V)))
    assert weights.shape == (T, 0)


def test_the_mask_is_optional_and_may_differ_between_queries():
    arguments = draw(B, T, Q), draw(B, S, Q), draw(B, S, V)
    attend_locally = jax.jit(partial(local_attend, score=scores.dot, window=2))
    for mask in (None, draw(T, S) > 0):
        full = np.ones((B, T, S), bool) if mask is None else np.broadcast_to(mask, (B, T, S))
        expected = compiled("p")(scores.dot(*arguments[:2]), full, CENTERS)
        np.testing.assert_allclose(attend_locally(*arguments, mask, CENTERS)[1], expected, rtol=1e-5, atol=1e-7)


def test_centers_of_a_narrow_dtype_are_not_rounded_with_the_window():
    # The slice starts at 289, which no bfloat16 is.
    arguments = draw(1, 1, Q), draw(1, 331, Q), draw(1, 331, V), None
    centers = jnp.full((1, 1), 300, jnp.bfloat16)
    attend_locally = jax.jit(partial(local_attend, score=scores.dot, window=11))
    found = [attend_locally(*arguments, p) for p in (centers, centers.astype(jnp.float32))]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_arithmetic_does_not_grow_with_the_source():
    def windowed(queries, keys, values, mask, centers):
        return local_attend(queries, keys, values, mask, centers, score=scores.dot, window=3)[0]

    def dense(queries, keys, values, mask, centers):
        align = partial(local_p, centers=centers, window=3)
        return attend(queries, keys, values, mask, score=scores.dot, align=align)[0]

    def operations(function, size):
        shapes = [(B, 1, Q), (B, size, Q), (B, size, V), (B, 1, size), (B, 1)]
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        arguments[3] = jax.ShapeDtypeStruct(shapes[3], bool)
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    assert operations(windowed, 101) == operations(windowed, 1009) > 2 * B * 7 * (Q + V)
    assert operations(dense, 1009) > 9 * operations(dense, 101)


def test_a_decoding_loop_with_a_predictor_has_the_gradients_of_lax_scan(float64):
    queries, weight, energy = predictor()
    constants = {"weight": weight, "energy": energy, "keys": draw(B, S, Q), "values": draw(B, S, Q, seed=1)}

    def step(constants, state, x):
        query = (state + x)[:, None]
        centers = predicted_centers(query, constants["weight"], constants["energy"], np.array([4, 7]))
        arguments = query, constants["keys"], constants["values"], masks.padding(np.array([4, 7]), S), centers
        context, weights = local_attend(*arguments, score=scores.dot, window=2)
        return jnp.tanh(context[:, 0]), weights

    def loss(loop, constants, xs):
        state, weights = loop(jax.checkpoint(step) if loop is plain else step, constants, jnp.zeros((B, Q)), xs)
        return jnp.sum(state**2) + jnp.sum(jnp.sin(weights))

    def plain(step, constants, carry, xs):
        return jax.lax.scan(partial(step, constants), carry, xs)

    gradient = jax.jit(jax.value_and_grad(loss, (1, 2)), static_argnums=0)
    xs = np.moveaxis(queries, 1, 0)
    found, expected = gradient(scan, constants, xs), gradient(plain, constants, xs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), found, expected)


def test_export_and_vmap_of_windowed_reading():
    attend_locally = jax.jit(partial(local_attend, score=scores.dot, window=2))
    arguments = (*jax.tree.map(np.float32, (draw(B, T, Q), draw(B, S, Q), draw(B, S, V))), MASK, np.float32(CENTERS))
    expected = attend_locally(*arguments)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, jax.export.export(attend_locally)(*arguments).call(*arguments), expected)
    jax.tree.map(close, jax.jit(jax.vmap(attend_locally))(*arguments), expected)

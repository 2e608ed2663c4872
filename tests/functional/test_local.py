"""Local alignments: by hand, against the formula in plain loops, at their limits; windows alone against all scores."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jaxtyping import TypeCheckError

from attention_zoo.functional import masks
from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.local import (
    local_m,
    local_p,
    predicted_centers,
    window_starts,
)

B, T, S, Q, V, U = 2, 3, 7, 5, 13, 11
ALIGNMENTS = {"m": local_m, "p": local_p, "renormalised": partial(local_p, renormalise=True)}
every_alignment = pytest.mark.parametrize("name", ALIGNMENTS)
# Over the left end, on a position, at the largest value a prediction can take; between two, just below one, far away.
CENTERS = np.array([[0.3, 3.0, 7.0], [5.5, 1.99, 30.0]])
MASK = np.array([[[1, 0, 1, 1, 0, 1, 1]] * T, [[1, 1, 1, 0, 1, 0, 0]] * T], bool)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


@cache
def compiled(name: str, window: int = 2):
    """(scores, mask, centers) -> weights, NumPy's, of which an index is no program of its own."""
    run = jax.jit(partial(ALIGNMENTS[name], window=window))
    return lambda *arguments: jax.device_get(run(*arguments))


@cache
def compiled_gradient(name: str):
    """(scores, mask, centers, cotangents) -> weights, and the gradients of scores and centers."""

    @jax.jit
    def gradient(e, mask, centers, cotangents):
        weights, pull_back = jax.vjp(lambda e, p: ALIGNMENTS[name](e, mask, p, window=2), e, centers)
        return weights, *pull_back(cotangents)

    return lambda *arguments: jax.device_get(gradient(*arguments))


def transcribed(name: str, e: np.ndarray, mask: np.ndarray, centers: np.ndarray, window: int) -> np.ndarray:
    """The paper's formulas, position by position."""
    weights = np.zeros(e.shape)
    for b, t in np.ndindex(centers.shape):
        p = centers[b, t]
        inside = [s for s in range(e.shape[-1]) if p - window <= s <= p + window and mask[b, t, s]]
        for s in inside:
            weights[b, t, s] = np.exp(e[b, t, s]) / sum(np.exp(e[b, t, k]) for k in inside)
            if name != "m":
                sigma = window / 2
                weights[b, t, s] *= np.exp(-((s - p) ** 2) / (2 * sigma**2))
        if name == "renormalised" and inside:
            weights[b, t] /= weights[b, t].sum()
    return weights


def test_local_m_by_hand():
    found = compiled("m", 1)(np.log([[1.0, 3.0, 1.0, 9.0]] * 3), None, np.array([0, 1, 3]))
    np.testing.assert_allclose(found, [[0.25, 0.75, 0, 0], [0.2, 0.6, 0.2, 0], [0, 0, 0.1, 0.9]], rtol=1e-6)


def test_local_p_by_hand():
    # sigma is 1; the window holds positions -1 to 3, of which four exist.
    found = compiled("p")(np.log([[1.0, 2.0, 1.0, 4.0, 100.0]]), None, np.array([1.0]))
    np.testing.assert_allclose(found, [[np.exp(-0.5) / 8, 0.25, np.exp(-0.5) / 8, np.exp(-2) / 2, 0]], rtol=1e-6)


@every_alignment
@pytest.mark.parametrize("window", [2, 11])
def test_equals_the_formula(name, window, float64):
    e = draw(B, T, S)
    for mask in (MASK, np.ones_like(MASK)):
        found = compiled(name, window)(e, mask, CENTERS)
        np.testing.assert_allclose(found, transcribed(name, e, mask, CENTERS, window), rtol=1e-12, atol=1e-15)


def test_a_window_of_width_zero_is_the_centre_alone():
    found = compiled("m", 0)(draw(1, 4, S), None, np.array([[0.0, 6.0, 2.0, 2.5]]))
    np.testing.assert_array_equal(found[0, :3], np.eye(S)[[0, 6, 2]])
    np.testing.assert_array_equal(found[0, 3], 0)


@every_alignment
def test_a_very_wide_window_is_softmax(name, float64):
    # Of local-p the Gaussian then is one everywhere.
    e, centers = draw(B, T, S), np.clip(CENTERS, 0, S)
    window = S if name == "m" else 10**9
    np.testing.assert_allclose(compiled(name, window)(e, MASK, centers), jax.jit(softmax)(e, MASK), rtol=1e-12)


def test_rows_are_renormalised_or_not():
    centers, e, mask = np.clip(CENTERS, 0, S), draw(B, T, S), np.ones_like(MASK)
    np.testing.assert_allclose(compiled("renormalised")(e, mask, centers).sum(-1), 1, rtol=1e-6)
    assert np.all(compiled("p")(e, mask, centers).sum(-1) < 0.999)


@every_alignment
def test_nothing_inside_the_window_gives_zeros_and_no_gradient(name):
    # Row 0: positions 0 to 3 hidden, the window holds 0 to 3; row 1 is empty; row 2 has its window beyond the source.
    mask, centers = np.ones((B, T, S), bool), np.array([[1.5, 3.0, -9.0]] * B)
    mask[0, 0, :4] = mask[0, 1] = False
    for result in compiled_gradient(name)(draw(B, T, S), mask, centers, draw(B, T, S, seed=1)):
        np.testing.assert_array_equal(result[0], 0)
        assert np.any(result[1, :2] != 0) or (name == "m" and result.shape == (B, T))


@every_alignment
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_scores_outside_the_window_or_masked_may_be_anything(name, garbage):
    e = np.float32(draw(B, T, S))
    seen = transcribed(name, e, MASK, CENTERS, 2) > 0
    dirty = np.where(seen, e, np.float32(garbage))
    results = [compiled_gradient(name)(inputs, MASK, CENTERS, draw(B, T, S, seed=1)) for inputs in (e, dirty)]
    jax.tree.map(np.testing.assert_array_equal, *results)
    np.testing.assert_array_equal(results[0][1][~seen], 0)


@every_alignment
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_scores_stay_finite_and_the_dtype_comes_back(name, dtype):
    e = (1e4 * np.sign(draw(B, T, S))).astype(dtype)
    results = compiled_gradient(name)(e, MASK, CENTERS.astype(dtype), draw(B, T, S, seed=1).astype(dtype))
    assert all(result.dtype == dtype and np.all(np.isfinite(result)) for result in results)
    wide = compiled(name)(e.astype(jnp.float32), MASK, CENTERS.astype(dtype).astype(jnp.float32))
    np.testing.assert_array_equal(results[0], wide.astype(dtype))


@every_alignment
def test_gradients_equal_finite_differences(name, float64):
    # No centre may stand within the step of a window's edge, where the weights jump.
    align = jax.jit(lambda e, p: ALIGNMENTS[name](e, MASK, p, window=2))
    check_grads(align, (draw(B, T, S), CENTERS + 0.013), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["m", "renormalised"])
def test_vmap_eager_and_broadcasting_centers(name):
    # Centres [T] are those of every example, as local-m's are.
    e, centers = draw(B, T, S), np.arange(T)
    found = compiled(name)(e, MASK, np.tile(centers, (B, 1)).astype(np.float32))
    mapped = jax.jit(jax.vmap(partial(ALIGNMENTS[name], window=2), (0, 0, None)))(e, MASK, centers)
    np.testing.assert_allclose(mapped, found, rtol=1e-6)
    np.testing.assert_allclose(ALIGNMENTS[name](e, MASK, centers, window=2), found, rtol=1e-6)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("local_m: .* at least 0 positions; got -1", lambda e, p: local_m(e, None, p, window=-1)),
        ("local_p: .* at least 1 positions; got 0", lambda e, p: local_p(e, None, p, window=0)),
        ("window_starts: .* at least 0 positions; got -2", lambda e, p: window_starts(p, S, window=-2)),
    ],
)
def test_a_window_that_is_none_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((T, S)), np.zeros(T))


@pytest.mark.parametrize("align", [local_m, local_p])
def test_wrong_shapes_are_named(align):
    with pytest.raises(TypeCheckError, match="parameter 'centers'"):
        align(np.zeros((T, S)), None, np.zeros(S), window=2)


def predictor(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return draw(B, T, Q, seed=seed), draw(Q, U, seed=seed), draw(U, seed=seed)


def test_predicted_centers_equal_the_formula(float64):
    queries, weight, energy = predictor()
    found = np.asarray(jax.jit(predicted_centers)(queries, weight, energy, np.array([4, 7])))
    for b, t in np.ndindex(B, T):
        exponent = energy @ np.tanh(weight.T @ queries[b, t])
        np.testing.assert_allclose(found[b, t], [4, 7][b] / (1 + np.exp(-exponent)), rtol=1e-12)


def test_a_predicted_window_holds_a_real_position_and_stays_finite():
    # Saturated either way; D = 1, for sources of 1, 2 and 7 positions.
    queries, energy = np.float32([[1e4], [-1e4], [0], [1], [-1]]), np.float32([1e4])

    @jax.jit
    def run(length):
        def weights(queries, energy):
            centers = predicted_centers(queries, np.ones((1, 1), np.float32), energy, length)
            return local_p(jnp.zeros((5, S)), masks.padding(length, S), centers, window=1)

        found, pull_back = jax.vjp(weights, queries, energy)
        return found, pull_back(found)

    for length in (1, 2, S):
        found, gradients = run(np.array(length))
        assert np.all(found.sum(-1) > 0.1)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_predicted_centers_are_float32_at_least():
    shapes = [jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in predictor()]
    assert jax.eval_shape(predicted_centers, *shapes, np.array([4, 7])).dtype == jnp.float32


def test_the_gradient_reaches_the_predictor(float64):
    e, cotangents = draw(B, T, S), draw(B, T, S, seed=1)

    @jax.jit
    def loss(queries, weight, energy):
        centers = predicted_centers(queries, weight, energy, np.array([4, 7]))
        return jnp.sum(cotangents * local_p(e, masks.padding(np.array([4, 7]), S), centers, window=2))

    check_grads(loss, predictor(), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
    assert all(np.all(np.abs(gradient) > 1e-6) for gradient in jax.grad(loss, (0, 1, 2))(*predictor()))


@every_alignment
def test_padding_changes_no_result(name):
    e, centers = draw(B, T, S), np.linspace(0, 5, B * T).reshape(B, T)
    padded = compiled(name)(e, np.broadcast_to(np.arange(S) < 5, (B, T, S)), centers)
    found = compiled(name)(e[..., :5], np.ones((B, T, 5), bool), centers)
    np.testing.assert_allclose(padded[..., :5], found, rtol=1e-6)
    np.testing.assert_array_equal(padded[..., 5:], 0)

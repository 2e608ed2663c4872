"""Location features by hand and against torch, in blocks of every fit; coverage in chunks; fertility."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional.coverage import coverage, fertility, location_features
from attention_zoo.functional.loop import scan

B, T, S, V, F = 2, 5, 7, 13, 3
features_of, coverage_of = jax.jit(location_features), jax.jit(coverage)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def test_location_features_by_hand():
    # The first filter reads the neighbour on the right, the second sums all three.
    filters = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    found = features_of(np.array([[1.0, 2.0, 4.0, 8.0]]), filters)
    np.testing.assert_array_equal(found, [[[2, 3], [4, 7], [8, 14], [0, 12]]])


@pytest.mark.parametrize("case", ["narrow", "wide", "long"])
def test_location_features_equal_torch(case, golden, float64):
    arrays = golden("torch_location", case)
    found, pull_back = jax.vjp(features_of, arrays["previous"], arrays["weight"][:, 0].T)
    np.testing.assert_allclose(found, np.moveaxis(arrays["features"], 1, 2), rtol=1e-12, atol=1e-15)
    previous, filters = jax.device_get(pull_back(np.moveaxis(arrays["cotangents/features"], 1, 2)))
    np.testing.assert_allclose(previous, arrays["gradients/previous"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(filters.T[:, None], arrays["gradients/weight"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("size", "width"), [(1, 5), (64, 1), (65, 3), (128, 5), (149, 101)])
def test_blocks_of_every_fit_equal_numpy(size, width, float64):
    previous, filters = draw(size), draw(width, F)
    found = np.asarray(features_of(previous, filters))
    padded = np.pad(previous, width // 2)
    for f in range(F):
        np.testing.assert_allclose(found[:, f], np.correlate(padded, filters[:, f], "valid"), rtol=1e-10, atol=1e-12)


def test_location_features_of_nothing():
    assert location_features(np.zeros((B, 0)), np.zeros((5, F))).shape == (B, 0, F)


def test_an_even_width_is_refused():
    with pytest.raises(ValueError, match="location_features: filters have an odd width; got 4"):
        location_features(np.zeros((B, S)), np.zeros((4, F)))


def test_padding_changes_no_feature():
    previous, filters = np.where(np.arange(S) < 4, draw(B, S), 0), draw(5, F)
    found, short = jax.device_get((features_of(previous, filters), features_of(previous[:, :4], filters)))
    np.testing.assert_allclose(found[:, :4], short, atol=1e-6)


def test_leading_axes_and_vmap():
    previous, filters = np.float32(draw(B, T, S)), np.float32(draw(5, F))
    found = np.asarray(features_of(previous, filters))
    assert found.shape == (B, T, S, F)
    mapped = jax.jit(jax.vmap(jax.vmap(location_features, (0, None)), (0, None)))(previous, filters)
    np.testing.assert_allclose(mapped, found, atol=1e-6)
    np.testing.assert_allclose(features_of(previous[1, 2], filters), found[1, 2], atol=1e-6)
    exported = jax.export.export(features_of)(previous, filters)
    np.testing.assert_allclose(exported.call(previous, filters), found, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_given_dtype_comes_back(dtype, float64):
    previous, filters = jax.ShapeDtypeStruct((B, S), dtype), jax.ShapeDtypeStruct((5, F), dtype)
    assert jax.eval_shape(location_features, previous, filters).dtype == dtype


def test_location_features_in_a_loop_have_the_gradients_of_lax_scan(float64):
    filters, energy, xs = draw(5, F), draw(F), draw(T, B, S)

    def step(constants, alignment, x):
        filters, energy = constants
        alignment = jax.nn.softmax(jnp.tanh(location_features(alignment, filters)) @ energy + x)
        return alignment, alignment

    def plain(step, constants, carry, xs):
        return jax.lax.scan(jax.checkpoint(partial(step, constants)), carry, xs)

    def loss(loop, constants, xs):
        return jnp.sum(loop(step, constants, jnp.full((B, S), 1 / S), xs)[1] ** 2)

    gradient = jax.jit(jax.value_and_grad(loss, (1, 2)), static_argnums=0)
    found, expected = gradient(scan, (filters, energy), xs), gradient(plain, (filters, energy), xs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-13), found, expected)
    check_grads(jax.jit(partial(loss, plain)), ((filters, energy), xs), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_coverage_by_hand():
    before, after = coverage_of(np.array([10.0, 0.0]), np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]))
    np.testing.assert_array_equal(before, [[10, 0], [10.25, 0.75], [11.25, 0.75]])
    np.testing.assert_array_equal(after, [11.75, 1.25])


@pytest.mark.parametrize("chunks", [[3, 2], [1] * T, [0, 5], [4, 0, 1]])
def test_coverage_in_chunks_equals_coverage_at_once(chunks, float64):
    weights, state, parts = draw(B, T, S), draw(B, S), []
    before, after = coverage_of(state, weights)
    for chunk in np.split(weights, np.cumsum(chunks)[:-1], axis=1):
        part, state = coverage_of(state, chunk)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), before, rtol=1e-12)
    np.testing.assert_allclose(state, after, rtol=1e-12)


def test_coverage_does_not_see_its_own_step_or_later_ones():
    jacobian = jax.jit(jax.jacobian(lambda weights: coverage(jnp.zeros(1), weights)[0]))(draw(T, 1))
    np.testing.assert_array_equal(np.asarray(jacobian)[:, 0, :, 0], np.tri(T, k=-1))


def test_small_weights_are_not_lost_in_the_sum():
    # A bfloat16 sum of these stands still at 1.
    weights = np.full((521, 1), 2.0**-9, jnp.bfloat16)
    before, after = jax.device_get(coverage_of(np.ones(1), weights))
    assert before.dtype == after.dtype == jnp.float32
    np.testing.assert_array_equal(after, 1 + 521 / 512)
    narrow = coverage_of(np.ones(1, jnp.bfloat16), weights)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), narrow, (before, after))


def test_fertility_by_hand():
    found = fertility(np.array([[np.log(3.0), 7.0], [0.0, 7.0]]), np.array([1.0, 0.0]), 2.0)
    np.testing.assert_allclose(found, [1.5, 1.0], rtol=1e-6)


def test_fertility_lies_between_0_and_the_largest_and_stays_finite():
    @jax.jit
    def run(annotations, weight):
        found, pull_back = jax.vjp(lambda a, w: fertility(a, w, 5.0), annotations, weight)
        return found, pull_back(found)

    annotations = (draw(B, S, V) * 1e4).astype(jnp.bfloat16)
    found, gradients = jax.device_get(run(annotations, np.ones(V, jnp.bfloat16)))
    assert found.dtype == jnp.float32 and np.all((found >= 0) & (found <= 5)) and np.any(found == 5)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_fertility_gradients_equal_finite_differences(float64):
    arguments = draw(B, S, V), draw(V)
    check_grads(jax.jit(lambda a, w: fertility(a, w, 2.0)), arguments, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)

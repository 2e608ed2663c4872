"""Layer normalisation and the rectifier: equal to Flax's and JAX's, in value and gradient, and what they keep."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from attention_zoo.functional.norms import layer_norm, relu

B, T, D = 3, 5, 7
GENERATOR = np.random.default_rng(0)
X, DY = (GENERATOR.normal(size=(B, T, D)) for _ in range(2))
SCALE, BIAS = (GENERATOR.normal(size=D) for _ in range(2))


def with_gradients(function, cotangent, *arguments):
    @jax.jit
    def run(cotangent, *arguments):
        outputs, pull_back = jax.vjp(function, *arguments)
        return outputs, *pull_back(cotangent.astype(outputs.dtype))

    return jax.device_get(run(cotangent, *arguments))


def flax_norm(epsilon, dtype=None):
    model = nn.LayerNorm(epsilon=epsilon, dtype=dtype)
    return lambda x, scale, bias: model.apply({"params": {"scale": scale, "bias": bias}}, x)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # which writes one sum differently
@pytest.mark.parametrize("epsilon", [1e-6, 0.3])
def test_equals_flax_in_value_and_gradient(epsilon, backend, float64, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    arguments = 3 + 2 * X, SCALE, BIAS
    found = with_gradients(partial(layer_norm, epsilon=epsilon), DY, *arguments)
    expected = with_gradients(flax_norm(epsilon), DY, *arguments)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), found, expected)


def test_gradient_by_finite_differences(float64):
    check_grads(jax.jit(layer_norm), (X, SCALE, BIAS), order=1, modes=["rev"])


def test_a_hand_solved_vector():
    # mean 3, variance 4: (1 - 3) / 2 = -1 and (5 - 3) / 2 = 1.
    found = layer_norm(np.float32([1, 5]), np.float32([10, 100]), np.float32([0, 7]), epsilon=0.0)
    np.testing.assert_allclose(found, [-10, 107], rtol=1e-6)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_half_precision_is_computed_in_float32_and_dtypes_are_flaxs(dtype):
    x = (50 + X).astype(jnp.bfloat16)  # whose squares bfloat16 could not tell apart
    parameters = SCALE.astype(np.float32), BIAS.astype(np.float32)
    found = with_gradients(partial(layer_norm, dtype=dtype), DY, x, *parameters)
    expected = with_gradients(flax_norm(1e-6, dtype), DY, x, *parameters)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
    np.testing.assert_allclose(*(np.float32(outputs[0]) for outputs in (found, expected)), rtol=2**-8, atol=2**-8)
    for one, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=0, atol=2**-6 * np.abs(other).max())


def test_constant_vectors_give_the_bias_and_finite_gradients():
    constant = np.full((2, D), 2, np.float32)  # whose mean is exact
    outputs, *gradients = with_gradients(layer_norm, np.ones((2, D)), constant, np.float32(SCALE), np.float32(BIAS))
    np.testing.assert_allclose(outputs, np.tile(BIAS, (2, 1)), atol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_vmap_and_jit_change_nothing():
    arguments = X.astype(np.float32), SCALE.astype(np.float32), BIAS.astype(np.float32)
    found = jax.jit(jax.vmap(layer_norm, in_axes=(0, None, None)))(*arguments)
    np.testing.assert_allclose(found, layer_norm(*arguments), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_relu_equals_jax_also_at_zero_and_forward(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, tangent = np.float32([-2, -0.0, 0, 1e-30, 3]), np.float32([1, 2, 3, 4, 5])
    for ours, theirs in zip(jax.jvp(relu, (x,), (tangent,)), jax.jvp(jax.nn.relu, (x,), (tangent,)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(jax.grad(lambda x: relu(x).sum())(x), [0, 0, 0, 1, 1])
    assert relu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def kept(function, *arguments):
    """The shapes of what the gradient of a function keeps, but for its arguments."""
    residuals = jax.tree.leaves(jax.vjp(function, *arguments)[1])
    return sorted(r.shape for r in residuals if all(r is not a for a in arguments))


def test_only_vectors_are_kept_beside_the_inputs():
    arguments = jnp.float32(X).reshape(-1, D), jnp.float32(SCALE), jnp.float32(BIAS)
    sizes = [np.prod(shape) for shape in kept(layer_norm, *arguments)]
    assert sum(sizes) <= arguments[0].size + 3 * B * T + 2 * D

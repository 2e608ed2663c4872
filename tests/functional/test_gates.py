"""An LSTM's gates by one tanh are its sigmoids and its tanh, and their slopes those of autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.gates import LSTM

D = 3
DRAW = np.random.default_rng(0)
GATES = DRAW.normal(scale=4, size=(5, 4 * D))


def written_out(gates):
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    return jnp.concatenate([jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)], axis=-1)


def test_by_hand():
    """s(0) = 1/2, s(log 3) = 3/4, tanh(log 2) = 3/5, s(-log 3) = 1/4; their slopes s (1 - s) and 1 - tanh^2."""
    activated = LSTM.function(jnp.log(jnp.array([1, 3, 2, 1 / 3])))
    np.testing.assert_allclose(activated, [0.5, 0.75, 0.6, 0.25], rtol=1e-6)
    np.testing.assert_allclose(LSTM.slope(activated), [0.25, 0.1875, 0.64, 0.1875], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-15), ("float32", 2e-7), ("bfloat16", 2**-8)])
def test_equal_sigmoids_and_tanh(dtype, error, float64):
    gates = jnp.asarray(GATES, dtype)
    activated = LSTM.function(gates)
    assert activated.dtype == LSTM.slope(activated).dtype == gates.dtype
    np.testing.assert_allclose(np.float64(activated), written_out(np.float64(gates)), rtol=0, atol=error)


def test_slopes_equal_autodiff(float64):
    slopes = jnp.diagonal(jax.jacfwd(written_out)(GATES[0]))
    np.testing.assert_allclose(LSTM.slope(LSTM.function(GATES[0])), slopes, rtol=1e-10, atol=1e-15)
    _, along = jax.jvp(LSTM.function, (GATES,), (jnp.ones_like(GATES),))
    np.testing.assert_allclose(LSTM.slope(LSTM.function(GATES)), along, rtol=1e-10, atol=1e-15)


def test_far_out_they_are_at_their_ends_and_flat():
    for number, ends in ((jnp.inf, [1, 1, 1, 1]), (-jnp.inf, [0, 0, -1, 0]), (1e30, [1, 1, 1, 1])):
        activated = LSTM.function(jnp.full(4, number, jnp.float32))
        np.testing.assert_array_equal(activated, ends)
        np.testing.assert_array_equal(LSTM.slope(activated), 0)

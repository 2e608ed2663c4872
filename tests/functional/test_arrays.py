"""Arrays for loops and sums to write: what they hold, and when XLA makes them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import arrays
from attention_zoo.functional.arrays import zeros_after
from attention_zoo.modules import Embedding

N, D, B = 97, 7, 5  # the tokens and the width of an embedding, and how many are looked up
NUMBERS = [0.0, -0.0, 1.0, -1 / 3, np.nan, np.inf, -np.inf, 1e-40]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("number", NUMBERS)
def test_zeros_are_zeros_whatever_they_are_made_of(number, dtype):
    source = {"small": jnp.ones(2), "large": jnp.full((2, 3), number, dtype), "integers": jnp.ones(11, jnp.int32)}
    zeros = jax.jit(lambda source: zeros_after((2, 2), jnp.float32, source))(source)
    np.testing.assert_array_equal(zeros, np.zeros((2, 2), np.float32))
    assert not np.signbit(zeros).any()
    assert zeros.dtype == jnp.float32


@pytest.mark.parametrize("source", [(), jnp.zeros((0, 3)), jnp.ones(3, jnp.int32)])
def test_zeros_of_no_numbers(source):
    np.testing.assert_array_equal(zeros_after((3,), jnp.bfloat16, source), jnp.zeros(3, jnp.bfloat16))


@pytest.mark.usefixtures("float64")
def test_zeros_under_vmap_and_differentiated():
    numbers = jnp.asarray(NUMBERS)
    np.testing.assert_array_equal(jax.vmap(lambda x: zeros_after((2,), x.dtype, x))(numbers), np.zeros((8, 2)))
    np.testing.assert_array_equal(jax.jacobian(lambda x: zeros_after((2,), x.dtype, x))(numbers), np.zeros((2, 8)))


def test_each_embedding_has_zeros_of_its_own_made_when_its_gradient_is_known():
    """XLA copies none of them; it would copy one array of zeros for both."""
    embedding = Embedding(N, D)
    params = [embedding.init(jax.random.key(n), jnp.zeros(B, jnp.int32)) for n in range(2)]

    def loss(params, tokens):
        source, target = (embedding.apply(one, tokens) for one in params)
        return jnp.tanh(source * target).sum()

    program = jax.jit(jax.grad(loss)).lower(params, jnp.zeros(B, jnp.int32)).compile().as_text()
    assert not re.findall(rf"f32\[{N},{D}\]\S* copy\(", program)


def test_on_several_devices_nothing_is_taken_from_one_of_them(monkeypatch):
    monkeypatch.setattr(arrays, "one_cpu", lambda: False)
    program = jax.make_jaxpr(lambda x: zeros_after((2,), x.dtype, x))(jnp.ones(3))
    assert "slice" not in str(program)

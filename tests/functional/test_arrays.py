"""Arrays for loops and sums to write: what they hold, and when XLA makes them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import arrays
from attention_zoo.functional.arrays import zeros_after
from attention_zoo.functional.programs import trace
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


def test_zeros_wait_for_every_array_of_numbers():
    """Where some of these are constants, as gradients of results that nobody reads are, the others are left."""
    source = {"small": jnp.ones(2), "large": jnp.ones((5, 7), jnp.bfloat16), "integers": jnp.ones(11, jnp.int32)}
    read = trace(lambda source: zeros_after((2,), jnp.float32, source), source).reads[0]
    assert read == {"small": True, "large": True, "integers": False}


def test_zeros_for_one_embedding_are_not_copied_for_another():
    embedding = Embedding(N, D)
    params = [embedding.init(jax.random.key(n), jnp.zeros(B, jnp.int32)) for n in range(2)]

    def loss(params, tokens):
        source, target = (embedding.apply(one, tokens) for one in params)
        return jnp.tanh(source * target).sum()

    program = jax.jit(jax.grad(loss)).lower(params, jnp.zeros(B, jnp.int32)).compile().as_text()
    assert f"f32[{N},{D}]" in program
    assert not re.findall(rf"f32\[{N},{D}\]\S* copy\(", program)


def test_the_gradient_of_an_embedding_is_exported_for_any_number_of_tokens():
    embedding, matrix = Embedding(N, D), jnp.ones((N, D))

    def gradient(matrix, tokens):
        vectors = lambda matrix: embedding.apply({"params": {"embedding": matrix}}, tokens[:, :-1])  # noqa: E731
        return jax.grad(lambda matrix: jnp.sin(vectors(matrix)).sum())(matrix)

    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, s"), jnp.int32)
    tokens = jnp.arange(6, dtype=jnp.int32).reshape(2, 3)
    exported = jax.export.export(jax.jit(gradient))(jax.ShapeDtypeStruct((N, D), jnp.float32), shape)
    np.testing.assert_allclose(exported.call(matrix, tokens), gradient(matrix, tokens), rtol=1e-6)


def test_on_several_devices_nothing_is_taken_from_one_of_them(monkeypatch):
    of_one, of_many = (lambda x: zeros_after((2,), x.dtype, x) for _ in range(2))
    assert "bitcast_convert_type" in str(jax.make_jaxpr(of_one)(jnp.ones(3)))
    monkeypatch.setattr(arrays, "one_cpu", lambda: False)
    assert "bitcast_convert_type" not in str(jax.make_jaxpr(of_many)(jnp.ones(3)))

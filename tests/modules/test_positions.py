"""Learned positions are a table; the relative bias is its functional, with one table for all who share the module."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from attention_zoo.functional.positions import relative
from attention_zoo.modules.positions import LearnedPositions, RelativeBias


def test_learned_positions_are_rows_of_a_table():
    model, positions = LearnedPositions(7, 5), jnp.array([[0, 4, 2], [6, 6, 1]])
    variables = model.init(jax.random.key(0), positions)
    table = variables["params"]["embedding"]
    assert table.shape == (7, 5) and table.dtype == jnp.float32
    np.testing.assert_array_equal(model.apply(variables, positions), np.asarray(table)[positions])
    outside = model.apply(variables, jnp.array([-1, 7, 99]))
    np.testing.assert_array_equal(outside, np.asarray(table)[[0, 6, 6]])


def test_dtype_of_the_computation_leaves_parameters_float32():
    vectors, variables = LearnedPositions(7, 5, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), jnp.arange(3))
    assert vectors.dtype == jnp.bfloat16
    assert variables["params"]["embedding"].dtype == jnp.float32


class Two(nn.Module):
    """Two readers of one bias, as layers share T5's."""

    def setup(self) -> None:
        self.bias = RelativeBias(3, buckets=8, max_distance=20, bidirectional=False)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.bias()(queries, keys), self.bias()(queries[..., -1:], keys)


def test_the_relative_bias_owns_one_table_and_teaches_it():
    queries, keys = jnp.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]), jnp.arange(7)
    (whole, last), variables = jax.jit(Two().init_with_output)(jax.random.key(0), queries, keys)
    (table,) = jax.tree.leaves(variables["params"])
    assert table.shape == (8, 3)
    expected = jax.jit(relative(table, max_distance=20, bidirectional=False))(queries, keys)
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(last, whole[..., -1:, :])
    assert whole.shape == (2, 3, 5, 7)
    gradient = jax.jit(jax.grad(lambda variables: Two().apply(variables, queries, keys)[0].sum()))(variables)
    # Every pair counts once; only what is far in the past has no pair here.
    np.testing.assert_array_equal(jnp.sum(jax.tree.leaves(gradient)[0], 0), [70, 70, 70])

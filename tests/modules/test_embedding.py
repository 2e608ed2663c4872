"""Learned and one-hot embeddings say the same once the next layer's weights are the embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from attention_zoo.modules import Dense, Embedding, OneHotEmbedding

TOKENS = jnp.array([[4, 0, 2], [1, 1, 6]])


def test_one_hot_into_a_dense_layer_is_a_learned_embedding():
    learned = Embedding(7, 5)
    variables = learned.init(jax.random.key(0), TOKENS)
    kernel = {"params": {"kernel": variables["params"]["embedding"]}}
    by_one_hot = Dense(5, use_bias=False).apply(kernel, OneHotEmbedding(7).apply({}, TOKENS))
    np.testing.assert_array_equal(learned.apply(variables, TOKENS), by_one_hot)


def test_attend_is_the_product_with_the_same_matrix():
    model = Embedding(7, 5)
    variables = model.init(jax.random.key(0), TOKENS)
    vectors = model.apply(variables, TOKENS)
    logits = model.apply(variables, vectors, method="attend")
    np.testing.assert_allclose(logits, vectors @ variables["params"]["embedding"].T, rtol=1e-6)


def test_tokens_are_integers():
    for model in (Embedding(7, 5), OneHotEmbedding(7)):
        with pytest.raises(TypeCheckError, match="parameter 'tokens'"):
            model.init(jax.random.key(0), TOKENS / 2)


def test_dtype_of_the_computation_leaves_parameters_float32():
    model = Embedding(7, 5, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), TOKENS)
    assert variables["params"]["embedding"].dtype == jnp.float32
    assert model.apply(variables, TOKENS).dtype == jnp.bfloat16
    assert OneHotEmbedding(7, dtype=jnp.bfloat16).apply({}, TOKENS).dtype == jnp.bfloat16


def test_gradients_of_a_frequent_token_are_summed_in_float32():
    model, tokens = Embedding(3, 2, dtype=jnp.bfloat16), jnp.ones(1001, int)

    def total(params):
        return model.apply({"params": params}, tokens).astype(jnp.float32).sum()

    gradient = jax.grad(total)({"embedding": jnp.ones((3, 2))})["embedding"]
    np.testing.assert_array_equal(gradient, [[0, 0], [1001, 1001], [0, 0]])  # of which bfloat16 has none

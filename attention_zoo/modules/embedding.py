"""Tokens to vectors: learned, or one-hot so that the two can be compared."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from attention_zoo.functional.loop import project


class Embedding(nn.Module):
    """Learned embeddings, `x_t = E[y_t]`; `attend` uses the same matrix as an output layer.

    vocabulary: N, the number of tokens. width: D. dtype: of the vectors; parameters are float32.
    """

    vocabulary: int
    width: int
    dtype: Dtype | None = None
    initializer: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.initializer, (self.vocabulary, self.width))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [...] to vectors [..., D]."""
        return self._matrix()[tokens]

    def attend(self, vectors: jax.Array) -> jax.Array:
        """Vectors [..., D] to logits [..., N], `E x` (tied output, Press and Wolf 2017)."""
        vectors, matrix = nn.dtypes.promote_dtype(vectors, self._matrix(), dtype=self.dtype)
        return project(vectors, matrix.T)

    def _matrix(self) -> jax.Array:
        return self.embedding if self.dtype is None else self.embedding.astype(self.dtype)


class OneHotEmbedding(nn.Module):
    """One-hot vectors, `x_t = e_{y_t}`: nothing is learned here, so the next layer's weights are the embedding.

    vocabulary: N, the number of tokens and the width of the vectors.
    """

    vocabulary: int
    dtype: Dtype | None = None

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens [...] to vectors [..., N]."""
        return jax.nn.one_hot(tokens, self.vocabulary, dtype=self.dtype or jnp.float32)

"""Tokens to vectors: learned, or one-hot so that the two can be compared."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from attention_zoo.functional.arrays import laid_out, varying, zeros_after
from attention_zoo.functional.products import project
from attention_zoo.notation import Array, Float, Int, checked


@jax.custom_vjp
def _look_up(matrix: jax.Array, tokens: Array) -> jax.Array:
    """Rows of a matrix. Its gradient begins as zeros that wait for what is added to them."""
    return matrix[tokens]


def _forward(matrix: jax.Array, tokens: Array) -> tuple[jax.Array, Any]:
    return matrix[tokens], (matrix, tokens)


def _backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    matrix, tokens = kept
    return zeros_after(matrix.shape, matrix.dtype, gradient).at[tokens].add(gradient), None


_look_up.defvjp(_forward, _backward)


class Embedding(nn.Module):
    """Learned embeddings, `x_t = E[y_t]`; `attend` uses the same matrix as an output layer. Reverse mode only.

    vocabulary: N, the number of tokens. width: D. dtype: of the vectors; parameters are float32.
    """

    vocabulary: int
    width: int
    dtype: Dtype | None = None
    initializer: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.initializer, (self.vocabulary, self.width))

    @checked
    def __call__(self, tokens: Int[Array, "*b"]) -> Float[jax.Array, "*b D"]:
        """Tokens [...] to vectors [..., D]."""
        # Read before it is rounded, so that the gradients of a frequent token are summed in float32.
        return jnp.asarray(_look_up(*varying(jnp.asarray(self.embedding), tokens)), self.dtype)

    @checked
    def attend(self, vectors: Float[Array, "*b D"]) -> Float[jax.Array, "*b N"]:
        """Vectors [..., D] to logits [..., N], `E x` (tied output, Press and Wolf 2017)."""
        vectors, matrix = nn.dtypes.promote_dtype(vectors, self.matrix(), dtype=self.dtype)
        return project(vectors, matrix.T)

    def matrix(self) -> jax.Array:
        """E in the dtype of the computation, [N, D]."""
        return jnp.asarray(self.embedding, self.dtype)

    def kernel(self) -> jax.Array:
        """E^T, [D, N], of a tied output layer whose loss reads it often (`losses.projected_cross_entropy`)."""
        return laid_out(self.matrix().T)


class OneHotEmbedding(nn.Module):
    """One-hot vectors, `x_t = e_{y_t}`: nothing is learned here, so the next layer's weights are the embedding.

    vocabulary: N, the number of tokens and the width of the vectors.
    """

    vocabulary: int
    dtype: Dtype | None = None

    @checked
    def __call__(self, tokens: Int[Array, "*b"]) -> Float[jax.Array, "*b N"]:
        """Tokens [...] to vectors [..., N]."""
        return jax.nn.one_hot(tokens, self.vocabulary, dtype=self.dtype or jnp.float32)

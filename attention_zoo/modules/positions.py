"""Positions with parameters: a vector for each, and T5's bias for each bucket of distances."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from attention_zoo.functional import positions as functional
from attention_zoo.notation import Array, Float, Int, checked


class LearnedPositions(nn.Module):
    """Learned positions, a vector `P[p]` for each (Gehring 2017, section 3.1; BERT, ViT).

    longest: the number of positions. width: D. dtype: of the vectors; parameters are float32.
    """

    longest: int
    width: int
    dtype: Dtype | None = None
    initializer: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    @checked
    def __call__(self, positions: Int[Array, "*b T"]) -> Float[jax.Array, "*b T D"]:
        """Positions [..., T] to vectors [..., T, D]; what lies outside 0 ... longest - 1 gets the nearest vector.

        A row may be longer than `longest` where it is packed, so that the caller checks the length of a sequence.
        """
        embedding = self.param("embedding", self.initializer, (self.longest, self.width))
        matrix = embedding if self.dtype is None else embedding.astype(self.dtype)
        return jnp.take(matrix, positions, axis=0, mode="clip")


class RelativeBias(nn.Module):
    """T5's relative bias, learned for each head and bucket of distances; see `functional.positions.relative`.

    heads: H. buckets, max_distance, bidirectional: see `functional.positions.relative_buckets`. One bias may serve
    all layers, as in T5. initializer: that of T5X.
    """

    heads: int
    buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True
    initializer: Initializer = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")

    @nn.compact
    def __call__(self) -> functional.Bias:
        """The bias, `(query positions [..., t], key positions [..., s]) -> float32 [..., H, t, s]`."""
        embedding = self.param("embedding", self.initializer, (self.buckets, self.heads))
        return functional.relative(embedding, max_distance=self.max_distance, bidirectional=self.bidirectional)

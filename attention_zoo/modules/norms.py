"""Normalisation layers by name."""

from collections.abc import Callable

import jax
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.norms import layer_norm


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, see `functional.norms.layer_norm`.

    epsilon: added to the variance. dtype: of the outputs; parameters are float32.
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Vectors [..., D] to vectors [..., D]."""
        width = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return layer_norm(inputs, scale, bias, epsilon=self.epsilon, dtype=self.dtype)


NORMS: dict[str, Callable[..., nn.Module]] = {"layer": LayerNorm, "rms": nn.RMSNorm}

"""The zoo's linear layer."""

import jax
from flax import linen as nn
from flax.typing import Dtype, Initializer

from attention_zoo.functional.products import project


class Dense(nn.Module):
    """Linear layer `y = x W + b` over the last axis of [..., I], with all leading axes flattened into one.

    The same mathematics as `flax.linen.Dense`; for the reason, see `functional.products.project`.

    features: width of y. dtype: of the computation; parameters are float32. Where some rows are not `real`, [...],
    their results are not to be read.
    """

    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, inputs: jax.Array, real: jax.Array | None = None) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        return project(inputs, kernel, bias, real=real)

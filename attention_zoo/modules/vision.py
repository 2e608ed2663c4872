"""A convolutional encoder: an image as a grid of annotation vectors, to be attended to."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.norms import relu
from attention_zoo.functional.positions import sinusoidal_2d
from attention_zoo.modules.norms import LayerNorm
from attention_zoo.notation import Array, Float, checked


class ConvEncoder(nn.Module):
    """Convolutions of 3 x 3 with rectified outputs; the last grid holds the annotations (Xu 2015, section 3.1.1).

    The annotations are normalised (`LayerNorm`): of an empty place, which rectifiers leave near zero, attention would
    else see nothing but where it is. features: channels of each layer, the last one V; strides: of each layer. The grid
    is the image, smaller by the product of the strides (rounded up). The first layer looks at 5 x 5 pixels.
    """

    features: Sequence[int] = (32, 64, 64, 64)
    strides: Sequence[int] = (2, 2, 1, 1)
    dtype: Dtype | None = None

    @nn.compact
    @checked
    def __call__(self, images: Float[Array, "B Y X C"]) -> Float[jax.Array, "B R Q V"]:
        """Images [B, height, width, channels] to annotations [B, rows, columns, V].

        Raises:
            ValueError: there are not as many strides as layers, or none.
        """
        if not self.features or len(self.features) != len(self.strides):
            raise ValueError(f"ConvEncoder: as many strides as features; got {self.strides} and {self.features}")
        found = jnp.asarray(images)
        for layer, (features, stride) in enumerate(zip(self.features, self.strides, strict=True)):
            side = 3 if layer else 5
            convolution = nn.Conv(
                features, (side, side), (stride, stride), kernel_init=nn.initializers.he_normal(), dtype=self.dtype
            )
            found = relu(convolution(found))
        return LayerNorm(dtype=self.dtype)(found)


@checked
def located(grid: Float[Array, "B R Q V"]) -> Float[Array, "B R Q V"]:
    """Annotations with their places: `a + sinusoidal_2d`, see `functional.positions`.

    Raises:
        ValueError: V is not a multiple of four.
    """
    return grid + sinusoidal_2d(*grid.shape[1:], dtype=grid.dtype).reshape(1, *grid.shape[1:])

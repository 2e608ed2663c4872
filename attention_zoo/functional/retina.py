"""Glimpses: squares of several sizes around a location, read out of an image of any size at the same cost."""

import jax
import jax.numpy as jnp

from attention_zoo.notation import Array, Float, Int, checked


@checked
def to_pixels(locations: Float[Array, "*b 2"], height: int, width: int) -> Float[Array, "*b 2"]:
    """Locations (y, x) in [-1, 1] as lengths in pixels from the upper left corner, `p = (l + 1) / 2 * (height, width)`.

    Pixel i covers [i, i + 1): -1 is the upper or left edge of the image, 0 its middle, 1 its lower or right edge. A
    point is in a box of pixels (top, left, bottom, right) where `top <= y < bottom` and `left <= x < right`.

    >>> to_pixels(jnp.array([-1.0, 0.5]), 60, 40).tolist()
    [0.0, 30.0]
    """
    locations = jnp.asarray(locations)
    sides = jnp.broadcast_to(jnp.array((height, width), locations.dtype), locations.shape)
    return (locations + 1) / 2 * sides


@checked
def centres(locations: Float[Array, "*b 2"], height: int, width: int) -> Int[Array, "*b 2"]:
    """The corner between pixels that is nearest to a location, `c = floor(p + 1/2)` with p of `to_pixels`; int32.

    A square of s pixels around it covers the pixels c - s // 2 to c - s // 2 + s - 1: an even one lies around the
    corner, an odd one half a pixel further down and to the right.
    """
    return jnp.floor(to_pixels(locations, height, width) + 0.5).astype(jnp.int32)


@checked
def retina(
    images: Float[Array, "B Y X C"], locations: Float[Array, "B 2"], size: int, scales: int
) -> Float[Array, "B {scales} {size} {size} C"]:
    """Patches of growing size and falling resolution around a location (the glimpse sensor of Mnih 2014, section 3).

    Patch k covers size 2^k x size 2^k pixels around `centres(locations)`; each of its values is the mean of 2^k x 2^k
    pixels, those outside the image counting as zeros. Only the pixels of the largest patch are read, so that the work
    does not depend on the size of the image. Linear in the images; locations get no gradient.

    Args:
        images: [B, height, width, channels].
        locations: (y, x) in [-1, 1], see `to_pixels`; further out is outside the image.
        size: side of each patch, in values.
        scales: how many patches.

    Returns:
        patches [B, scales, size, size, channels], the finest first.

    Raises:
        ValueError: size or scales is below 1.

    >>> retina(jnp.arange(16.0).reshape(1, 4, 4, 1), jnp.zeros((1, 2)), 2, 2)[0, ..., 0].tolist()
    [[[5.0, 6.0], [9.0, 10.0]], [[2.5, 4.5], [10.5, 12.5]]]
    """
    if size < 1 or scales < 1:
        raise ValueError(f"retina: size and scales are at least 1; got {size} and {scales}")
    images, locations = jnp.asarray(images), jnp.asarray(locations)
    side = size << (scales - 1)
    starts = centres(locations, *images.shape[1:3]) - side // 2  # [B, 2]
    largest = jax.vmap(_window, (0, 0, None))(images, starts, side)  # [B, side, side, C]
    patches = []
    for scale in range(scales):
        wide = size << scale
        inside = slice(side // 2 - wide // 2, side // 2 - wide // 2 + wide)
        patches.append(_pooled(largest[:, inside, inside], 1 << scale))
    return jnp.stack(patches, 1)


def _window(image: Array, start: Array, side: int) -> jax.Array:
    """A square of an image [Y, X, C] from a corner [2], zeros where there is no image: [side, side, C]."""
    rows, columns = start[:, None] + jnp.arange(side)[None]
    read = image.at[rows[:, None], columns[None]]
    return read.get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _pooled(patches: Array, step: int) -> jax.Array:
    batch, side, _, channels = patches.shape
    size = side // step
    return patches.reshape(batch, size, step, size, step, channels).mean((2, 4))

"""Glimpses: by hand, against a plain crop and pool at every scale and across the border, and at the same cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional.retina import centres, retina, to_pixels

B, Y, X, C = 5, 17, 23, 2
# The middle, a corner, an edge, and beyond the border: in parts, and so far that nothing is seen.
LOCATIONS = np.float32([[0, 0], [-1, -1], [0.93, 0.21], [1.4, -0.6], [-3, 5]])

read = jax.jit(retina, static_argnums=(2, 3))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def crop_and_pool(image: np.ndarray, location: np.ndarray, size: int, scales: int) -> np.ndarray:
    """Pixel by pixel: the sum over each cell of what is inside the image, divided by the whole cell."""
    corners = [int(np.floor((place + 1) / 2 * side + 0.5)) for place, side in zip(location, image.shape, strict=False)]
    patches = np.zeros((scales, size, size, image.shape[-1]))
    for scale in range(scales):
        step = 2**scale
        for row in range(size * step):
            for column in range(size * step):
                y, x = (corner - size * step // 2 + place for corner, place in zip(corners, (row, column), strict=True))
                if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
                    patches[scale, row // step, column // step] += image[y, x] / step**2
    return patches


def test_pixels_by_hand():
    locations = np.float32([[-1, -1], [0, 0], [1, 1], [0.5, -0.5], [1.5, -2.0]])
    expected = [[0, 0], [3, 5], [6, 10], [4.5, 2.5], [7.5, -5]]
    np.testing.assert_array_equal(to_pixels(locations, 6, 10), expected)
    np.testing.assert_array_equal(centres(locations, 6, 10), [[0, 0], [3, 5], [6, 10], [5, 3], [8, -5]])


def test_a_corner_by_hand():
    image = jnp.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])[None, ..., None]
    patches = read(image, jnp.array([[-1.0, 1.0]]), 2, 2)[0, ..., 0]
    np.testing.assert_array_equal(patches, [[[0, 0], [3, 0]], [[0, 0], [(2 + 3 + 5 + 6) / 4, 0]]])


@pytest.mark.parametrize(("size", "scales"), [(3, 3), (4, 2), (1, 1), (13, 2)])
def test_equals_crop_and_pool_at_all_scales_and_across_the_border(size, scales):
    images = draw(B, Y, X, C)
    patches = read(images, LOCATIONS, size, scales)
    expected = [crop_and_pool(image, place, size, scales) for image, place in zip(images, LOCATIONS, strict=True)]
    np.testing.assert_allclose(patches, expected, atol=1e-6)
    assert not np.any(patches[-1])


def test_batched_equals_single():
    images, turned = draw(B, Y, X, C), LOCATIONS[::-1].copy()
    single = jax.jit(jax.vmap(lambda image, place: retina(image[None], place[None], 3, 2)[0]))(images, LOCATIONS)
    np.testing.assert_array_equal(read(images, LOCATIONS, 3, 2), single)
    # Several places in one image, which is not copied for it.
    several = jax.jit(jax.vmap(lambda places: retina(images, places, 3, 2)))(np.stack([LOCATIONS, turned]))
    np.testing.assert_array_equal(several[1], read(images, turned, 3, 2))


def test_the_gradient_of_the_image_is_finite_differences_and_the_location_has_none(float64):
    images, places = draw(2, 5, 7, 3).astype(float), LOCATIONS[2:4].astype(float)
    check_grads(lambda images: read(images, places, 3, 2), (images,), order=1, modes=["rev"])
    gradient = jax.grad(lambda places: read(images, places, 3, 2).sum())(places)
    np.testing.assert_array_equal(gradient, np.zeros_like(places))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_dtype_stays(dtype):
    assert retina(jnp.zeros((1, 5, 5, 1), dtype), jnp.zeros((1, 2)), 2, 2).dtype == dtype


def cost(side: int) -> tuple[float, int]:
    shapes = jax.ShapeDtypeStruct((3, side, side, 1), jnp.float32), jax.ShapeDtypeStruct((3, 2), jnp.float32)
    compiled = jax.jit(lambda images, places: retina(images, places, 5, 3)).lower(*shapes).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


def test_the_work_does_not_depend_on_the_size_of_the_image():
    (small, small_bytes), (large, large_bytes) = cost(31), cost(997)
    assert small == large > 0 and large_bytes <= small_bytes + 256


@pytest.mark.parametrize(("size", "scales"), [(0, 1), (3, 0)])
def test_what_is_no_glimpse_is_refused(size, scales):
    with pytest.raises(ValueError, match=f"at least 1; got {size} and {scales}"):
        retina(draw(B, Y, X, C), LOCATIONS, size, scales)

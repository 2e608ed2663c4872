"""The convolutional encoder: a layer written out, the sizes of its grid, places, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from attention_zoo.functional.positions import sinusoidal_2d
from attention_zoo.modules.vision import ConvEncoder, located

B, Y, X, C = 2, 7, 10, 3
IMAGES = np.random.default_rng(0).normal(size=(B, Y, X, C)).astype(np.float32)


def convolution(images, kernel, bias, stride):
    """`y_ij = b + sum_uv W_uv x_{si + u, sj + v}` with zeros around, of which the right may have one more."""
    side, (height, width) = len(kernel), images.shape[1:3]
    rows, columns = -(-height // stride), -(-width // stride)
    missing = [max((count - 1) * stride + side - size, 0) for count, size in ((rows, height), (columns, width))]
    padded = np.pad(images, [(0, 0), *((gap // 2, gap - gap // 2) for gap in missing), (0, 0)])
    found = np.zeros((len(images), rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + side, j * stride : j * stride + side]
            found[:, i, j] = np.einsum("buvc,uvcd->bd", window, kernel) + bias
    return found


def normalised(values, scale, bias):
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.sqrt(values.var(-1, keepdims=True) + 1e-6) * scale + bias


def test_two_layers_by_hand():
    encoder = ConvEncoder((5, 4), (2, 1))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), IMAGES)["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: np.float32(random.normal(0, 0.5, leaf.shape)), shapes)
    first, second, norm = params["Conv_0"], params["Conv_1"], params["LayerNorm_0"]
    assert first["kernel"].shape == (5, 5, C, 5) and second["kernel"].shape == (3, 3, 5, 4)
    hidden = np.maximum(convolution(IMAGES, first["kernel"], first["bias"], 2), 0)
    hidden = np.maximum(convolution(hidden, second["kernel"], second["bias"], 1), 0)
    expected = normalised(hidden, norm["scale"], norm["bias"])
    found = jax.jit(encoder.apply)({"params": params}, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("features", "strides", "size", "grid"),
    [
        ((32, 64, 64, 64), (2, 2, 1, 1), (40, 40), (10, 10)),
        ((4, 8), (2, 2), (41, 43), (11, 11)),
        ((4,), (1,), (5, 7), (5, 7)),
        ((4, 4, 4), (2, 3, 2), (25, 13), (3, 2)),
    ],
)
def test_the_grid_is_the_image_over_the_strides_rounded_up(features, strides, size, grid):
    images = np.zeros((B, *size, C), np.float32)
    encoder = ConvEncoder(features, strides)
    found, params = jax.eval_shape(lambda: encoder.init_with_output(jax.random.key(0), images))
    assert found.shape == (B, *grid, features[-1])
    half = ConvEncoder(features, strides, dtype=jnp.bfloat16)
    assert jax.eval_shape(half.apply, params, images).dtype == jnp.bfloat16


def test_the_default_is_that_of_the_experiments():
    found = jax.eval_shape(lambda: ConvEncoder().init_with_output(jax.random.key(0), np.zeros((B, 40, 40, 1)))[0])
    assert found.shape == (B, 10, 10, 64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_located_adds_the_place_row_by_row(dtype):
    grid = jnp.asarray(np.random.default_rng(2).normal(size=(B, 3, 5, 8)), dtype)
    found = located(grid)
    assert found.dtype == dtype
    places = np.asarray(sinusoidal_2d(3, 5, 8, dtype=dtype)).reshape(3, 5, 8)
    np.testing.assert_array_equal(found, grid + jnp.asarray(places)[None])
    assert len(np.unique(np.asarray(located(jnp.zeros_like(grid)))[0].reshape(15, 8), axis=0)) == 15


@pytest.mark.parametrize(("features", "strides"), [((4, 8), (2,)), ((), ())])
def test_layers_and_strides_go_together(features, strides):
    with pytest.raises(ValueError, match="ConvEncoder: as many strides as features; got"):
        jax.eval_shape(ConvEncoder(features, strides).init, jax.random.key(0), IMAGES)


def test_a_width_without_places_and_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="multiple of 4, above zero; got 6"):
        located(jnp.zeros((B, 3, 5, 6)))
    with pytest.raises(TypeCheckError, match="images"):
        jax.eval_shape(ConvEncoder().init, jax.random.key(0), IMAGES[0])

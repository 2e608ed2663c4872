"""Small images: distorted, cut up and put down."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow_datasets as tfds

from attention_zoo.data.canvases import DIGITS, cut_pieces, distorted, glyphs, paste, random_ways

IMAGES = np.random.default_rng(0).random((3, 7, 7), np.float32)


def way(matrix):
    return np.tile(np.array(matrix, np.float32), (3, 1, 1))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0, 0], [0, 1, 0]], IMAGES),
        ([[0, 1, 0], [-1, 0, 0]], np.rot90(IMAGES, 1, (1, 2))),  # (y, x) from (x, -y)
        ([[-1, 0, 0], [0, 1, 0]], IMAGES[:, ::-1]),
        ([[1, 0, 2 / 7], [0, 1, 0]], np.pad(IMAGES[:, 1:], ((0, 0), (0, 1), (0, 0)))),  # a pixel up
        ([[1, 0, 0], [0, 1, 1 / 7]], np.pad((IMAGES[..., 1:] + IMAGES[..., :-1]) / 2, ((0, 0), (0, 0), (0, 1)))),
    ],
)
def test_distortions_by_hand(matrix, expected):
    found = distorted(IMAGES, way(matrix))
    if matrix[1][2]:  # half a pixel to the left: the last column is half outside
        expected = expected.copy()
        expected[..., -1] = IMAGES[..., -1] / 2
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_distortions_are_scipys():
    ways = random_ways(np.random.default_rng(1), (3,), 0.4)
    assert ways.shape == (3, 2, 3) and (np.abs(ways - np.eye(2, 3)) <= 0.4).all()
    for found, image, matrix in zip(distorted(IMAGES, ways), IMAGES, ways.astype(float), strict=True):
        offset = matrix[:, 2] * 3.5 + 3 - matrix[:, :2] @ [3, 3]
        around = np.pad(image, 9).astype(float)
        offset += 9 - matrix[:, :2] @ [9, 9]
        expected = scipy.ndimage.affine_transform(around, matrix[:, :2], offset, order=1)[9:16, 9:16]
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_what_is_far_outside_is_empty():
    assert not distorted(IMAGES, way([[1, 0, 5], [0, 1, 0]])).any()
    assert not distorted(IMAGES, way([[1, 0, 0], [0, 1, -5]])).any()
    np.testing.assert_array_equal(random_ways(np.random.default_rng(0), (2,), 0), np.stack([np.eye(2, 3)] * 2))


def test_paste_is_a_loop():
    canvases, expected = np.zeros((2, 3, 11, 13), np.float32)
    rows, places = np.array([2, 0, 2]), np.array([[0, 6], [4, 0], [4, 2]])
    paste(canvases, rows, IMAGES, places)
    for row, image, (top, left) in zip(rows, IMAGES, places, strict=True):
        expected[row, top : top + 7, left : left + 7] = image
    np.testing.assert_array_equal(canvases, expected)


def test_pieces_are_parts_with_ink():
    images = IMAGES.copy()
    images[:, :4] = 0
    pieces = cut_pieces(images, 3, np.random.default_rng(0))
    parts = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2)).reshape(-1, 3, 3)
    assert {piece.tobytes() for piece in pieces} == {part.tobytes() for part in parts if part.mean() >= 0.2}
    assert len(cut_pieces(np.zeros((2, 7, 7), np.float32), 3, np.random.default_rng(0)))  # all of them, if none has


def test_digits_are_resized_smoothly_and_keep_their_ink():
    small, large = (glyphs("digits", size, 18, 0, None) for size in (8, 20))
    assert small.words == DIGITS and small.classes == tuple("0123456789")
    for name in ("train", "dev", "test"):
        np.testing.assert_array_equal(small.splits[name].labels, large.splits[name].labels)
        assert large.splits[name].images.shape[1:] == (20, 20)
        np.testing.assert_allclose(large.splits[name].images.mean(), small.splits[name].images.mean(), rtol=0.01)


def test_other_sources_by_name():
    with tfds.testing.mock_data(num_examples=41):
        known = glyphs("mnist", 7, 18, 0, None)  # a fourth of its 28 pixels
        assert known.splits["train"].images.shape == (41, 7, 7) and known.words == DIGITS
        assert glyphs("fashion_mnist", 7, 18, 0, None).words[0] == "T-shirt/top"
        with pytest.raises(ValueError, match=r"images with one channel are wanted, .*; got 'cifar10'"):
            glyphs("cifar10", 8, 18, 0, None)
        with pytest.raises(ValueError, match="has no data set 'no_such_thing'"):
            glyphs("no_such_thing", 8, 18, 0, None)

"""Small images on a large canvas: where the digits come from, how they are distorted, cut up and put down."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from attention_zoo.data.digits import digits, tfds_images
from attention_zoo.data.images import Images, LabelledImages
from attention_zoo.data.pictures import resized

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PIECES = 10_000  # so many are cut out, to choose from
LEAST_INK = 0.2  # the mean of a piece of clutter: an empty corner of a digit is none


class Glyphs(NamedTuple):
    """Images to put down: float32 `[n, size, size]` in [0, 1] of each split; their classes, and those in words."""

    splits: dict[str, Images]
    classes: tuple[str, ...]
    words: tuple[str, ...]


def glyphs(source: str, size: int, held_out: int, data_seed: int, data_dir: Path | str | None) -> Glyphs:
    """Scikit-learn's digits (`source="digits"`), or a TFDS data set such as `mnist`, resized to `size` pixels a side.

    Raises:
        ValueError: the images have colours, or cannot be had.
    """
    if source == "digits":
        data = digits(1_000, held_out=held_out, data_seed=data_seed, data_dir=data_dir)
    else:
        data = tfds_images(source, 1_000, data_dir=data_dir)
    if data.shape[-1] != 1:
        raise ValueError(f"source: images with one channel are wanted, as digits and mnist have; got '{source}'")
    words = DIGITS if data.labels == tuple("0123456789") else tuple("-".join(name.split()) for name in data.labels)
    return Glyphs({name: _resized_split(data, name, size) for name in ("train", "dev", "test")}, data.labels, words)


def _resized_split(data: LabelledImages, name: str, size: int) -> Images:
    batches = [
        (resized(batch["images"], size, size)[batch["valid"], ..., 0], batch["labels"][batch["valid"]])
        for batch in data.split(name)
    ]
    return Images(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def cut_pieces(images: np.ndarray, piece: int, rng: np.random.Generator) -> np.ndarray:
    """Random squares of `piece` pixels out of images `[n, size, size]`, those with too little ink left out."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (piece, piece), axis=(1, 2))
    rows = rng.integers(len(images), size=PIECES)
    tops, lefts = rng.integers(images.shape[1] - piece + 1, size=(2, PIECES))
    pieces = windows[rows, tops, lefts]
    ink = pieces.mean((1, 2))
    return pieces[ink >= min(LEAST_INK, ink.max())]


def random_ways(rng: np.random.Generator, shape: Sequence[int], distort: float) -> np.ndarray:
    """Affine maps near the identity: each of the six numbers off by up to `distort`, float32 `[*shape, 2, 3]`.

    Half of them are the identity: what is distorted is blurred too, and images that never are must be known as well.
    """
    ways = rng.uniform(-distort, distort, (*shape, 2, 3)).astype(np.float32)
    ways[rng.random(tuple(shape)) < 0.5] = 0
    return ways + np.eye(2, 3, dtype=np.float32)


def distorted(images: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Images `[n, size, size]` read through affine maps `[n, 2, 3]`, bilinear, with zeros around them.

    Pixel (y, x) of the result is the image at `way @ (y, x, 1)`, with coordinates from -1 to 1 between the outer edges.
    """
    count, size, _ = images.shape
    wide = size + 3
    around = np.pad(images, ((0, 0), (1, 2), (1, 2))).ravel()
    line = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    # Not by BLAS, whose last digits depend on how many images there are.
    by_row, by_column, moved = (numbers[..., None] for numbers in ways.T)  # [2, n, 1] each
    read = (by_row * line + moved)[..., None] + (by_column * line)[..., None, :]
    places = (read.reshape(2, count, -1) + 1) * np.float32(size / 2) + np.float32(0.5)
    down, right = np.clip(places, 0, size + 1)  # in `around`
    top, left = down.astype(np.int32), right.astype(np.int32)
    down, right = down - top, right - left
    corner = np.arange(count, dtype=np.int32)[:, None] * np.int32(wide * wide) + top * np.int32(wide) + left
    pixels = [around.take(corner + np.int32(step)) for step in (0, 1, wide, wide + 1)]
    upper, lower = (one + (other - one) * right for one, other in (pixels[:2], pixels[2:]))
    return (upper + (lower - upper) * down).reshape(images.shape)


def paste(canvases: np.ndarray, rows: np.ndarray, images: np.ndarray, places: np.ndarray) -> None:
    """Writes images `[n, size, size]` into `canvases [B, Y, X]`: k into row `rows[k]`, from (top, left) `places[k]`."""
    _, height, width = canvases.shape
    size = np.arange(images.shape[1])
    corner = (rows.astype(np.int64) * height + places[:, 0]) * width + places[:, 1]
    canvases.reshape(-1)[corner[:, None, None] + size[:, None] * width + size] = images

"""Images with a class each, as batches of one shape."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from matplotlib.image import imread

from attention_zoo.data.batches import FILLER, draw_plan
from attention_zoo.data.packing import Epoch, Epochs
from attention_zoo.data.prepare import examples
from attention_zoo.data.text import Batch
from attention_zoo.data.vocabulary import write_whole


@dataclass(frozen=True)
class Images:
    """A split: images uint8 `[rows, height, width, channels]` and the number of each one's class `[rows]`."""

    images: np.ndarray
    labels: np.ndarray


class LabelledImages:
    """Images and their classes as batches of one shape.

    A batch holds `images` float32 `[B, height, width, channels]` in [0, 1], `labels` int32 `[B]` and `valid` bool
    `[B]` (False for the images that fill up the last batch of a split). `peak` is the stored value that becomes 1.
    With `shift` above 0 a training image is moved by up to so many pixels down or up and across, zeros coming in;
    the way follows from the seed, the epoch and the image. `shape`, height, width and channels, is that of the images
    where there are any.

    Raises:
        ValueError: there is no image in a split, a number is out of range, or images and labels do not fit each other.
    """

    def __init__(
        self,
        splits: Mapping[str, Images],
        classes: Sequence[str],
        *,
        batch_size: int,
        peak: int = 255,
        shift: int = 0,
        notes: Sequence[str] = (),
        shape: Sequence[int] = (),
    ):
        if batch_size < 1 or peak < 1 or shift < 0:
            raise ValueError(
                f"batch_size and peak are at least 1 and shift at least 0; got {batch_size}, {peak}, {shift}"
            )
        self.labels, self.notes = tuple(classes), list(notes)
        self.batch_size, self.peak, self.shift = batch_size, peak, shift
        self._splits = dict(splits)
        for name, split in self._splits.items():
            _check(name, split, len(self.labels))
            shape = split.images.shape[1:]
        self.shape = tuple(int(size) for size in shape)

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
        """Endless batches in an order that follows from the seed; an epoch has every image, and fewer than
        `batch_size` of them again. Its state is checkpointed.

        Raises:
            ValueError: the batch size is not a multiple of `process_count`.
        """
        return self._epochs("train", seed, process_index, process_count).dataset()

    def split(self, name: str) -> grain.IterDataset:
        """One pass over a split in its own order, unmoved; the last batch is filled up, see `valid`."""
        return self._epochs(name).dataset()

    def _epochs(self, name: str, *arguments: Any) -> Epochs:
        split = self._images(name)
        return Epochs(partial(self._draw, len(split.labels)), partial(self._make, split), *arguments)

    def _images(self, name: str) -> Images:
        if name not in self._splits:
            raise ValueError(f"there is no split '{name}': there is {', '.join(self._splits) or 'none at all'}")
        return self._splits[name]

    def _draw(self, count: int, rng: np.random.Generator | None) -> Epoch:
        """The rows of every batch, and by how much each image is moved: int `[count, 2]`."""
        rows = draw_plan(np.zeros(count, int), self.batch_size, rng).rows
        if rng is None:
            return Epoch(rows, np.zeros((count, 2), int))
        return Epoch(rows, rng.integers(-self.shift, self.shift, (count, 2), endpoint=True))

    def _make(self, split: Images, rows: np.ndarray, moves: np.ndarray) -> Batch:
        valid = rows != FILLER
        images = moved(split.images[rows], moves[rows]) if self.shift else split.images[rows]
        return {
            "images": np.where(valid[:, None, None, None], images, 0).astype(np.float32) / np.float32(self.peak),
            "labels": np.where(valid, split.labels[rows], 0).astype(np.int32),
            "valid": valid,
        }

    def shapes(self) -> list[Batch]:
        """A batch of zeros of the one shape there is."""
        rows = self.batch_size
        images = np.zeros((rows, *self.shape), np.float32)
        return [{"images": images, "labels": np.zeros(rows, np.int32), "valid": np.zeros(rows, bool)}]

    def encode_batch(self, paths: Sequence[str]) -> Batch:
        """Pictures of grey values from files, light ink on dark as in the data: `images` and `valid`.

        Raises:
            ValueError: a file is missing, is no picture or has another size; the message says which.
        """
        coloured = self.shape[-1:] == (3,)
        images = [read_picture(Path(path), coloured) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != self.shape:
                wanted, got = (" x ".join(map(str, shape)) for shape in (self.shape, image.shape))
                raise ValueError(f"{path} is {got} (height, width, channels), where {wanted} is read")
        return {"images": np.stack(images), "valid": np.ones(len(images), bool)}

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any pixel, label or setting: another digest is other data."""
        sha = hashlib.sha256(json.dumps(self._settings()).encode())
        for name, split in sorted(self._splits.items()):
            sha.update(f"{name} {split.images.shape}".encode())
            sha.update(split.images.tobytes())
            sha.update(split.labels.astype(np.int32).tobytes())
        return sha.hexdigest()[:16]

    def _settings(self) -> dict[str, Any]:
        settings = {"batch_size": self.batch_size, "peak": self.peak, "shift": self.shift}
        return {"classes": list(self.labels), "shape": list(self.shape), **settings}

    def save(self, folder: Path) -> None:
        """Writes the names of the classes and the settings into a folder, for `LabelledImages.load`."""
        write_whole(Path(folder) / "images.json", (json.dumps(self._settings(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "LabelledImages":
        """The data of a work folder without its images: what the classes are and how values are scaled.

        Raises:
            ValueError: the file is missing or damaged.
        """
        path = Path(folder) / "images.json"
        try:
            settings = json.loads(path.read_text())
            return cls({}, **settings)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged or was not written by this program") from error


def read_picture(path: Path, coloured: bool = False) -> np.ndarray:
    """A picture, float32 `[height, width, channels]` in [0, 1]: its colours, or its grey values as one channel.

    Raises:
        ValueError: the file is missing, or is no picture.
    """
    try:
        values = np.asarray(imread(path))
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).removesuffix(f" {str(path)!r}")
        raise ValueError(f"{path} cannot be read as a picture: {reason}") from error
    scaled = values.astype(np.float32) / (255 if values.dtype == np.uint8 else 1)
    channels = scaled[..., None] if scaled.ndim == 2 else scaled[..., :3]
    if coloured:
        return np.broadcast_to(channels, (*channels.shape[:2], 3))
    return channels.mean(-1, keepdims=True)


def moved(images: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Images `[B, height, width, channels]` moved down and right by `moves` int `[B, 2]`, zeros coming in.

    >>> moved(np.array([[[[1], [2], [3]]]]), np.array([[0, 1]]))[0, 0, :, 0]
    array([0, 1, 2])
    """
    _, height, width, _ = images.shape
    down, right = np.arange(height) - moves[:, :1], np.arange(width) - moves[:, 1:]  # [B, height], [B, width]: whence
    inside = ((down >= 0) & (down < height))[:, :, None] & ((right >= 0) & (right < width))[:, None, :]
    batch = np.arange(len(images))[:, None, None]
    taken = images[batch, down.clip(0, height - 1)[:, :, None], right.clip(0, width - 1)[:, None, :]]
    return np.where(inside[..., None], taken, np.zeros((), images.dtype))


def read_images(builder: tfds.core.DatasetBuilder, split: str, keys: Sequence[str] = ("image", "label")) -> Images:
    """A prepared split of images of one size and their classes."""
    rows = [(row[keys[0]], row[keys[1]]) for row in examples(builder, split)]
    return Images(np.stack([image for image, _ in rows]), np.array([label for _, label in rows], np.int32))


def _check(name: str, split: Images, classes: int) -> None:
    if split.images.ndim != 4 or len(split.images) != len(split.labels) or not len(split.labels):
        raise ValueError(
            f"{name}: wanted images [rows, height, width, channels] and as many labels, at least one; "
            f"got {list(split.images.shape)} and {list(split.labels.shape)}"
        )
    if split.labels.min() < 0 or split.labels.max() >= classes:
        raise ValueError(f"{name}: labels are 0 to {classes - 1}; got {split.labels.min()} to {split.labels.max()}")

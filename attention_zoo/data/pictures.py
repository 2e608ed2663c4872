"""Pictures as batches of one shape: what captioned pictures and pictures to glimpse at have in common."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import grain
import numpy as np

from attention_zoo.data.images import read_picture
from attention_zoo.data.packing import Epoch, Epochs
from attention_zoo.data.text import Batch
from attention_zoo.data.vocabulary import write_whole


class Split(Protocol):
    """One split: stored pictures, or a rule by which they are drawn."""

    def draw(self, batch_size: int, rng: np.random.Generator | None) -> Epoch:
        """The rows of every batch of an epoch, and what was drawn for it; without `rng` the one pass there is."""

    def make(self, rows: np.ndarray, drawn: np.ndarray) -> Batch:
        """The batch of some rows; FILLER ones are zeros and not valid."""

    def content(self) -> bytes:
        """Other bytes for other pictures or other answers."""


class Pictures:
    """Pictures of one shape with an answer each; a subclass says what the answers are.

    A batch holds `images` float32 `[B, height, width, channels]` in [0, 1], the answers, and `valid` bool `[B]` (False
    for the rows that fill up the last batch of a split).

    Args:
        splits: what there is, by name.
        shape: height, width and channels.
        resize: whether files of another size are resized or refused.
        notes: sentences about the data.

    Raises:
        ValueError: a number is below 1.
    """

    file: ClassVar[str]  # the name of the saved settings

    def __init__(
        self,
        splits: Mapping[str, Split],
        *,
        batch_size: int,
        shape: Sequence[int],
        resize: bool = False,
        notes: Sequence[str] = (),
    ):
        self.shape = tuple(int(size) for size in shape)
        if len(self.shape) != 3 or min(batch_size, *self.shape) < 1:
            raise ValueError(f"batch_size and three sizes of shape are at least 1; got {batch_size} and {list(shape)}")
        self.batch_size, self.resize, self.notes = batch_size, resize, list(notes)
        self._splits = dict(splits)

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
        """Endless batches that follow from the seed; their state is checkpointed.

        Raises:
            ValueError: the batch size is not a multiple of `process_count`.
        """
        return self._epochs("train", seed, process_index, process_count).dataset()

    def split(self, name: str) -> grain.IterDataset:
        """One pass over a split, the same each time; the last batch is filled up, see `valid`."""
        return self._epochs(name).dataset()

    def _epochs(self, name: str, *arguments: Any) -> Epochs:
        split = self._part(name)
        return Epochs(partial(split.draw, self.batch_size), split.make, *arguments)

    def _part(self, name: str) -> Any:
        if name not in self._splits:
            raise ValueError(f"there is no split '{name}': there is {', '.join(self._splits) or 'none at all'}")
        return self._splits[name]

    def shapes(self) -> list[Batch]:
        """A batch of zeros of the one shape there is."""
        rows = self.batch_size
        images = np.zeros((rows, *self.shape), np.float32)
        return [{"images": images, **self._blank(rows), "valid": np.zeros(rows, bool)}]

    def _blank(self, rows: int) -> Batch:
        """Answers of zeros."""
        raise NotImplementedError

    def encode_batch(self, paths: Sequence[str]) -> Batch:
        """Pictures from files as `images` and `valid`: in colour where the data is, else as grey values.

        Raises:
            ValueError: a file is missing, is no picture or has a size that is refused; the message says which.
        """
        images = [self._read(Path(path)) for path in paths]
        return {"images": np.stack(images), "valid": np.ones(len(images), bool)}

    def _read(self, path: Path) -> np.ndarray:
        height, width, channels = self.shape
        image = read_picture(path, coloured=channels == 3)
        if image.shape != self.shape and not self.resize:
            wanted, got = (" x ".join(map(str, shape)) for shape in (self.shape, image.shape))
            raise ValueError(f"{path} is {got} (height, width, channels), where {wanted} is read")
        return resized(image, height, width)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any picture, answer or setting: another digest is other data."""
        sha = hashlib.sha256(json.dumps(self._identity()).encode())
        for name, split in sorted(self._splits.items()):
            sha.update(name.encode())
            sha.update(split.content())
        return sha.hexdigest()[:16]

    def _settings(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "shape": list(self.shape), "resize": self.resize}

    def _identity(self) -> Any:
        """What the digest depends on beside the splits."""
        return self._settings()

    def save(self, folder: Path) -> None:
        """Writes the settings into a folder, for `load`."""
        write_whole(Path(folder) / self.file, (json.dumps(self._settings(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The data of a work folder without its pictures: enough to read new ones and to name the answers.

        Raises:
            ValueError: a file is missing or damaged.
        """
        path, stored = Path(folder) / cls.file, cls._stored(Path(folder))
        try:
            return cls(splits={}, **stored, **json.loads(path.read_text()))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged or was not written by this program") from error

    @classmethod
    def _stored(cls, folder: Path) -> dict[str, Any]:
        """What a subclass keeps beside the settings."""
        return {}


def resized(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Images `[..., y, x, channels]` at another size, float32: bilinear, and smoothed first where they shrink.

    What `jax.image.resize(images, shape, "linear")` gives, without compiling anything for each size.
    """
    if images.shape[-3:-1] == (height, width):
        return images.astype(np.float32)
    down, across = _weights(images.shape[-3], height), _weights(images.shape[-2], width)
    return np.einsum("Yy,...yxc,Xx->...YXc", down, images.astype(np.float32), across, optimize=True)


@lru_cache(maxsize=1024)
def _weights(given: int, wanted: int) -> np.ndarray:
    """How much of each given pixel a wanted one has, along one axis: `[wanted, given]`, rows of sum 1."""
    scale = given / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    distance = np.abs(centres[:, None] - np.arange(given)) / max(scale, 1.0)
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)

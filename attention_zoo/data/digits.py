"""Images with a class each: scikit-learn's handwritten digits, and any TFDS data set of images of one size.

Source of the digits: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998, its test part, as
the package scikit-learn carries it: 1,797 images, 8 x 8, ink from 0 to 16. No network. It does not tell who wrote
which digit, so the splits share their 13 writers.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from attention_zoo.data.catalogue import builder_of, make_ready, split_names
from attention_zoo.data.images import Images, LabelledImages, read_images
from attention_zoo.data.parallel import hold_out
from attention_zoo.data.prepare import prepared
from attention_zoo.data.text import Pairs

INK = 16  # the darkest value of scikit-learn's digits


@dataclass(eq=False)
class DigitsConfig(tfds.core.BuilderConfig):
    """What the data depends on, all of it in the name; the images themselves have never changed."""

    name: str = ""
    held_out: int = 18
    data_seed: int = 0

    def __post_init__(self) -> None:
        self.name = f"{self.held_out}held_out-seed{self.data_seed}"


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits; dev and test have equally many of every class, train has the others."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [DigitsConfig()]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8, doc=f"ink from 0 to {INK}"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        try:
            from sklearn.datasets import load_digits  # needed once, to prepare; slow to import
        except ImportError as error:
            raise ImportError("the digits come with the package scikit-learn: pip install scikit-learn") from error
        images, labels = load_digits(return_X_y=True)
        config, rng = self.builder_config, np.random.default_rng(self.builder_config.data_seed)
        shares = np.empty(len(labels), int)  # the place among its class, in a shuffled order
        for label in range(10):
            rows = np.flatnonzero(labels == label)
            shares[rows] = rng.permutation(len(rows)) // config.held_out
        chosen = {"train": shares > 1, "dev": shares == 0, "test": shares == 1}
        images = images.astype(np.uint8).reshape(-1, 8, 8, 1)
        return {name: self._generate_examples(images, labels, np.flatnonzero(take)) for name, take in chosen.items()}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in rows:
            yield int(row), {"image": images[row], "label": int(labels[row])}


def digits(
    batch_size: int = 64,
    *,
    shift: int = 0,
    held_out: int = 18,
    data_seed: int = 0,
    data_dir: Path | str | None = None,
) -> LabelledImages:
    """Handwritten digits, 8 x 8 pixels, ten classes; prepared at first use, which needs scikit-learn.

    Args:
        shift: training images are moved by up to so many pixels; 0 leaves them where they are.
        held_out: images of every class in dev, and as many in test.
        data_seed: which ones.

    Raises:
        ValueError: an argument is out of range, or scikit-learn is not installed and the data not prepared.
    """
    if not 1 <= held_out <= 86:  # 174 images show the rarest digit
        raise ValueError(f"digits: held_out is 1 to 86 images of every class; got {held_out}")
    builder = prepared(Digits, DigitsConfig(held_out=held_out, data_seed=data_seed), data_dir)
    splits = {name: read_images(builder, name) for name in ("train", "dev", "test")}
    return LabelledImages(splits, [str(digit) for digit in range(10)], batch_size=batch_size, peak=INK, shift=shift)


def tfds_images(
    name: str, batch_size: int = 64, *, shift: int = 0, data_dir: Path | str | None = None
) -> LabelledImages:
    """A TFDS data set of images of one size with a class each, such as `mnist` or `cifar10`; first use downloads.

    A dev or test split that the data set lacks is held out from train, equal images on one side. `shift` is that of
    `LabelledImages`.

    Raises:
        ValueError: TFDS has no such data set, it has no images of one size with a class each, or it cannot be had.
    """
    builder = builder_of(name, data_dir)
    keys, classes = _keys(builder)
    make_ready(builder)
    given = {ours: read_images(builder, theirs, keys) for ours, theirs in split_names(builder).items()}
    splits, notes = _hold_out(given)
    return LabelledImages(splits, classes, batch_size=batch_size, shift=shift, notes=notes)


def _keys(builder: tfds.core.DatasetBuilder) -> tuple[tuple[str, str], list[str]]:
    """The names of the image and the class in an example, and the names of the classes."""
    features: Any = builder.info.features
    keys = builder.info.supervised_keys
    if keys and len(keys) == 2 and isinstance(features[keys[1]], tfds.features.ClassLabel):
        shape = features[keys[0]].shape
        if len(shape) == 3 and None not in shape and features[keys[0]].np_dtype == np.uint8:
            return (keys[0], keys[1]), list(features[keys[1]].names)
    raise ValueError(f"the TFDS data set {builder.info.full_name} has no images of one size with a class each")


def _hold_out(given: Mapping[str, Images]) -> tuple[dict[str, Images], list[str]]:
    """`parallel.hold_out` for images, told apart by a digest of their pixels."""
    pixels = {name: [hashlib.sha256(image).hexdigest() for image in part.images] for name, part in given.items()}
    texts = {name: Pairs(digests, [str(row) for row in range(len(digests))]) for name, digests in pixels.items()}
    splits, notes = hold_out(texts)
    filled = {}
    for name, pairs in splits.items():
        part, rows = given.get(name, given["train"]), [int(row) for row in pairs.targets]
        filled[name] = Images(part.images[rows], part.labels[rows])
    return filled, [note.replace(" training pairs ", " training images ") for note in notes]

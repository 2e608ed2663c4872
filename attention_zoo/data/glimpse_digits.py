"""One digit anywhere on a large canvas, to be found and named by glimpses; with clutter around it or without.

Source: Mnih et al. 2014, "Recurrent Models of Visual Attention", arXiv:1406.6247, section 4.1: translated and cluttered
translated digits of 60 and 100 pixels. Here the digits are scikit-learn's unless told otherwise, so nothing is
downloaded; the pieces of clutter, cut out of training digits, stay a pixel away from the digit, which the paper's need
not. Canvases of train are drawn all the time, those of dev and test once; no digit image is in two splits.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention_zoo.data.pictures import Pictures, Split
from attention_zoo.data.scenes import Drawing, Layout, Scenes
from attention_zoo.data.text import Batch
from attention_zoo.data.vocabulary import SPECIALS


class GlimpseImages(Pictures):
    """Canvases with one object each, as batches of one shape.

    A batch holds `images` float32 `[B, Y, X, C]` in [0, 1]; `labels` int32 `[B]`, indices into the names `data.labels`;
    `boxes` float32 `[B, 4]`, the object's (top, left, bottom, right) in pixels, bottom and right exclusive; `valid`
    bool `[B]`.
    """

    file = "glimpse.json"

    def __init__(self, splits: Mapping[str, Split], classes: Sequence[str], **settings: Any):
        super().__init__(splits, **settings)
        self.labels = tuple(classes)

    def _blank(self, rows: int) -> Batch:
        return {"labels": np.zeros(rows, np.int32), "boxes": np.zeros((rows, 4), np.float32)}

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "classes": list(self.labels)}


class OneDigit(Scenes):
    """Scenes of one digit, with its class in place of a caption."""

    def make(self, rows: np.ndarray, drawn: np.ndarray) -> Batch:
        """The canvases of some scenes."""
        batch = super().make(rows, drawn)
        valid = batch["valid"]
        labels = np.where(valid, batch["target"][:, 0] - len(SPECIALS), 0).astype(np.int32)
        return {"images": batch["images"], "labels": labels, "boxes": batch["boxes"][:, 0], "valid": valid}


def translated_digits(
    batch_size: int = 128,
    *,
    canvas: int = 60,
    size: int = 20,
    distort: float = 0.1,
    source: str = "digits",
    train_examples: int = 12_800,
    dev_examples: int = 1_000,
    test_examples: int = 2_000,
    held_out: int = 18,
    data_seed: int = 0,
    data_dir: Path | str | None = None,
) -> GlimpseImages:
    """One handwritten digit anywhere on an empty canvas.

    Args:
        canvas: its side, in pixels; 1,024 costs little more time than 60, but 4 MiB a canvas.
        size: the side of the digit and of its box, in pixels; images of another size are resized to it.
        distort: how far training digits are turned, scaled, sheared and moved, as `random_ways` says; 0 is not at all.
        source: `digits`, scikit-learn's, or a TFDS data set of grey images such as `mnist`.
        train_examples: canvases that make an epoch; every epoch has new ones.
        dev_examples, test_examples: canvases that are always the same.
        held_out: of scikit-learn's digits, the images of every class in dev, and as many in test.
        data_seed: which ones, and where the digits of dev and test are.

    Raises:
        ValueError: an argument is out of range, or the source cannot be had.
    """
    layout = Layout(canvas, (1, 1), size, 0, 1, distort)
    drawing = Drawing(source, train_examples, dev_examples, test_examples, held_out, data_seed, data_dir)
    return _glimpse_images(layout, drawing, batch_size)


def cluttered_digits(
    batch_size: int = 128,
    *,
    canvas: int = 60,
    size: int = 20,
    clutter: int = 4,
    piece: int = 8,
    distort: float = 0.1,
    source: str = "digits",
    train_examples: int = 12_800,
    dev_examples: int = 1_000,
    test_examples: int = 2_000,
    held_out: int = 18,
    data_seed: int = 0,
    data_dir: Path | str | None = None,
) -> GlimpseImages:
    """One handwritten digit anywhere among `clutter` pieces of training digits, squares of `piece` pixels.

    The other arguments and errors are those of `translated_digits`.

    Raises:
        ValueError: an argument is out of range, or the source cannot be had.
    """
    layout = Layout(canvas, (1, 1), size, clutter, piece, distort)
    drawing = Drawing(source, train_examples, dev_examples, test_examples, held_out, data_seed, data_dir)
    return _glimpse_images(layout, drawing, batch_size)


def _glimpse_images(layout: Layout, drawing: Drawing, batch_size: int) -> GlimpseImages:
    splits, known = drawing.splits(layout, OneDigit)
    shape = (layout.canvas, layout.canvas, 1)
    return GlimpseImages(splits, known.classes, batch_size=batch_size, shape=shape, notes=[drawing.note(known)])

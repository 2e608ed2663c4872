"""Digits on a canvas with clutter, to be read out: what a captioner learns without any download.

A caption is the names of the digits in reading order: "three one seven". Two digits stand in one line where their tops
differ by at most half a digit, and in two lines where there is at least a free row of pixels between them. Digits
neither in one line nor in two are never drawn, so the order is not in doubt: lines from the top, each from the left.
The digits are scikit-learn's (see `digits`), their images disjoint between the splits; the clutter of every split is
cut out of training digits. Canvases of train are drawn all the time, those of dev and test once.
"""

from pathlib import Path

from attention_zoo.data.canvases import Glyphs
from attention_zoo.data.captioned import CaptionedImages
from attention_zoo.data.scenes import Drawing, Layout, Scenes
from attention_zoo.data.vocabulary import Words


class Captions:
    """Scenes, with their captions in words."""

    def __init__(self, scenes: Scenes, known: Glyphs):
        self.draw, self.make, self.content = scenes.draw, scenes.make, scenes.content
        self._scenes, self._words = scenes, known.words

    def captions(self) -> list[list[str]]:
        """The one caption of each canvas."""
        return [[" ".join(self._words[label] for label in labels)] for labels in self._scenes.labels()]


def placed_digits(
    batch_size: int = 128,
    *,
    canvas: int = 40,
    digits: tuple[int, int] = (1, 4),
    clutter: int = 6,
    piece: int = 4,
    distort: float = 0.2,
    size: int = 8,
    source: str = "digits",
    train_examples: int = 12_800,
    dev_examples: int = 1_000,
    test_examples: int = 2_000,
    held_out: int = 18,
    data_seed: int = 0,
    data_dir: Path | str | None = None,
) -> CaptionedImages:
    """Handwritten digits on a square canvas, with their names in reading order as the caption.

    Args:
        canvas: its side, in pixels.
        digits: the least and the largest number of digits on a canvas; each number is equally likely.
        clutter: pieces of training digits on every canvas, at least a pixel away from the digits.
        piece: their side, in pixels.
        distort: how far training digits are turned, scaled, sheared and moved, as `random_ways` says; 0 is not at all.
        size: the side of a digit and of its box, in pixels.
        source: `digits`, scikit-learn's, or a TFDS data set of grey images such as `mnist`.
        train_examples: canvases that make an epoch; every epoch has new ones.
        dev_examples, test_examples: canvases that are always the same.
        held_out: of scikit-learn's digits, the images of every class in dev, and as many in test.
        data_seed: which ones, and what the canvases of dev and test look like.

    Raises:
        ValueError: an argument is out of range, the digits find no room, or the source cannot be had.
    """
    layout = Layout(canvas, (int(digits[0]), int(digits[1])), size, clutter, piece, distort)
    drawing = Drawing(source, train_examples, dev_examples, test_examples, held_out, data_seed, data_dir)
    splits, known = drawing.splits(layout)
    return CaptionedImages(
        {name: Captions(scenes, known) for name, scenes in splits.items()},
        Words(known.words),
        batch_size=batch_size,
        shape=(canvas, canvas, 1),
        max_target=layout.digits[1] + 1,
        notes=[drawing.note(known)],
    )

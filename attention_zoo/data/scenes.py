"""Digits and clutter on canvases: which, where and how distorted. Training scenes are drawn anew every epoch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attention_zoo.data.batches import FILLER, draw_plan
from attention_zoo.data.canvases import Glyphs, cut_pieces, distorted, glyphs, paste, random_ways
from attention_zoo.data.images import Images
from attention_zoo.data.packing import Epoch
from attention_zoo.data.text import Batch
from attention_zoo.data.vocabulary import END, SPECIALS

NONE = -1  # the digit of a place that is not used
OUTSIDE = -1_000_000  # where it is
TRIES = 3_000  # before digits count as too many for a canvas
PIECE_TRIES = 300  # before there is no room for a piece of clutter beside the digits, which are then put elsewhere
ROUNDS = 30  # of putting them elsewhere


@dataclass(frozen=True)
class Layout:
    """What a canvas is like: its side in pixels, how many digits, their side, the pieces of clutter and their side."""

    canvas: int
    digits: tuple[int, int]
    size: int
    clutter: int
    piece: int
    distort: float

    def check(self) -> None:
        """Raises ValueError with one sentence when a number is out of range."""
        fewest, most = self.digits
        rules = {
            f"digits: the least number is at least 1 and the largest no less; got {self.digits}": 1 <= fewest <= most,
            f"a digit is 4 to {self.canvas} pixels a side, the canvas; got {self.size}": 4 <= self.size <= self.canvas,
            f"clutter is at least 0 pieces; got {self.clutter}": self.clutter >= 0,
            f"piece is 1 to {self.size - 1} pixels, less than a digit; got {self.piece}": 1 <= self.piece < self.size,
            f"distort is at least 0 and below 1; got {self.distort}": 0 <= self.distort < 1,
        }
        for rule, kept in rules.items():
            if not kept:
                raise ValueError(rule)

    def draw(self, rng: np.random.Generator, count: int, images: int, pieces: int, distort: float) -> np.ndarray:
        """Scenes of some of so many digit images and pieces: a structured array `[count]`."""
        fewest, most = self.digits
        scenes = np.zeros(count, self._type())
        used = rng.integers(fewest, most, count, endpoint=True)
        scenes["place"] = place_digits(rng, used, most, self.canvas, self.size)
        scenes["digit"] = np.where(np.arange(most) < used[:, None], rng.integers(images, size=(count, most)), NONE)
        scenes["way"] = random_ways(rng, (count, most), distort)
        scenes["piece"] = rng.integers(pieces, size=(count, self.clutter))
        todo = np.arange(count)
        for _ in range(ROUNDS):
            rest = (self.size, self.clutter, self.piece, self.canvas)
            scenes["piece_place"][todo], full = scatter(rng, scenes["place"][todo], *rest)
            todo = todo[full]
            if not len(todo):
                return scenes
            scenes["place"][todo] = place_digits(rng, used[todo], most, self.canvas, self.size)
        raise ValueError(f"there is no room for clutter on a canvas of {self.canvas} pixels: take a larger one")

    def _type(self) -> list[Any]:
        most, clutter = self.digits[1], self.clutter
        places = [("place", np.int32, (most, 2)), ("piece_place", np.int32, (clutter, 2))]
        chosen = [("digit", np.int32, (most,)), ("piece", np.int32, (clutter,))]
        return [*chosen, *places, ("way", np.float32, (most, 2, 3))]


class Scenes:
    """One split: digit images, pieces of clutter, and either its scenes or how many are drawn for every epoch."""

    def __init__(self, layout: Layout, images: Images, pieces: np.ndarray, scenes: np.ndarray | int):
        self._layout, self._images, self._pieces, self._scenes = layout, images, pieces, scenes

    def draw(self, batch_size: int, rng: np.random.Generator | None) -> Epoch:
        """The scenes there are, in their order, or as many new ones as fill whole batches."""
        scenes = self._scenes
        if isinstance(scenes, int) and rng is not None:
            rows = np.arange(-(-scenes // batch_size) * batch_size).reshape(-1, batch_size)
            return Epoch(rows, self._fresh(rng, rows.size))
        if isinstance(scenes, int):
            scenes = self._fresh(np.random.default_rng(0), scenes)
        return Epoch(draw_plan(np.zeros(len(scenes), int), batch_size).rows, scenes)

    def _fresh(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self._layout.draw(rng, count, len(self._images.images), len(self._pieces), self._layout.distort)

    def make(self, rows: np.ndarray, drawn: np.ndarray) -> Batch:
        """The canvases of some scenes, with their digits as a caption."""
        valid, scenes = rows != FILLER, drawn[rows]
        used = (scenes["digit"] != NONE) & valid[:, None]
        lengths, shape = used.sum(1), (len(rows), self._layout.digits[1] + 1)
        target, boxes = np.zeros(shape, np.int32), np.zeros((*shape, 4), np.float32)
        target[:, :-1][used] = self._images.labels[scenes["digit"][used]] + len(SPECIALS)
        target[np.arange(len(rows)), lengths] = np.where(valid, END, 0)
        places = scenes["place"][used]
        boxes[:, :-1][used] = np.concatenate([places, places + self._layout.size], 1)
        return {
            "images": self._paint(scenes, used, valid)[..., None],
            "target": target,
            "target_lengths": np.where(valid, lengths + 1, 0).astype(np.int32),
            "boxes": boxes,
            "valid": valid,
        }

    def _paint(self, scenes: np.ndarray, used: np.ndarray, valid: np.ndarray) -> np.ndarray:
        layout = self._layout
        canvases = np.zeros((len(scenes), layout.canvas, layout.canvas), np.float32)
        pieces, places = scenes["piece"][valid].ravel(), scenes["piece_place"][valid].reshape(-1, 2)
        paste(canvases, np.repeat(np.flatnonzero(valid), layout.clutter), self._pieces[pieces], places)
        images = self._images.images[scenes["digit"][used]]
        if layout.distort and isinstance(self._scenes, int):
            images = distorted(images, scenes["way"][used])
        paste(canvases, np.nonzero(used)[0], images, scenes["place"][used])
        return canvases

    def labels(self) -> list[list[int]]:
        """The classes of the digits of each scene, in reading order; where scenes are drawn, those of one epoch."""
        digits = self.draw(1, None).drawn["digit"]
        return [[int(self._images.labels[digit]) for digit in row if digit != NONE] for row in digits]

    def content(self) -> bytes:
        """The layout, the digits, the pieces, and the scenes or their number."""
        arrays = (self._images.images, self._images.labels, self._pieces, np.asarray(self._scenes))
        return repr(asdict(self._layout)).encode() + b"".join(array.tobytes() for array in arrays)


def place_digits(rng: np.random.Generator, used: np.ndarray, most: int, canvas: int, size: int) -> np.ndarray:
    """Where the digits of each canvas are, (top, left) in reading order: int `[n, most, 2]`, OUTSIDE where unused.

    Every placement of `used` `[n]` digits of `size` pixels whose order is clear is equally likely.

    Raises:
        ValueError: no such placement is found.
    """
    places = np.full((len(used), most, 2), OUTSIDE)
    todo = np.arange(len(used))
    for _ in range(TRIES):
        if not len(todo):
            return places
        fresh = rng.integers(canvas - size + 1, size=(len(todo), most, 2))
        clear = is_clear(fresh, used[todo], size)
        places[todo[clear]] = in_order(fresh[clear], used[todo[clear]], size)
        todo = todo[~clear]
    raise ValueError(f"{most} digits of {size} pixels find no room on a canvas of {canvas} pixels: take a larger one")


def is_clear(places: np.ndarray, used: np.ndarray, size: int) -> np.ndarray:
    """Whether the first `used` `[n]` digits at `places` `[n, most, 2]` are a pixel apart and in a clear order.

    In one line are digits whose tops differ by at most half of `size`, in two lines those with a free row of pixels
    between them; what is neither is not clear.
    """
    one, other = np.triu_indices(places.shape[1], 1)
    down, across = np.moveaxis(np.abs(places[:, one] - places[:, other]), -1, 0)  # [n, pairs]
    apart = (down > size) | ((down <= size // 2) & (across > size))
    return (apart | (other >= used[:, None])).all(1)


def in_order(places: np.ndarray, used: np.ndarray, size: int) -> np.ndarray:
    """The first `used` `[n]` of `places` `[n, most, 2]` by lines and in a line from the left, then OUTSIDE."""
    there = np.arange(places.shape[1]) < used[:, None]
    places = np.where(there[..., None], places, OUTSIDE)
    top, left = places[..., 0], places[..., 1]
    above = (there[:, None] & (top[:, None] < top[..., None] - size // 2)).sum(-1)  # the digits in earlier lines
    order = np.lexsort((left, np.where(there, above, places.shape[1])), axis=1)
    return np.take_along_axis(places, order[..., None], axis=1)


def scatter(
    rng: np.random.Generator, taken: np.ndarray, size: int, count: int, piece: int, canvas: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places (top, left) for pieces at least a pixel away from all digits: int `[n, count, 2]`.

    Among themselves pieces may overlap.

    Args:
        taken: int `[n, digits, 2]`, where digits of `size` pixels are, OUTSIDE where there is none.

    Returns:
        the places, and bool `[n]`: for which canvases not all were found, since the digits leave no room.
    """
    places = np.zeros((len(taken), count, 2), np.int32)
    todo = np.ones((len(taken), count), bool)
    for _ in range(PIECE_TRIES):
        row, _ = np.nonzero(todo)
        if not len(row):
            break
        fresh = rng.integers(canvas - piece + 1, size=(len(row), 2))
        apart = fresh[:, None] - taken[row]  # [m, digits, 2]
        places[todo] = fresh
        todo[todo] = ~((apart > size) | (apart < -piece)).any(-1).all(-1)
    return places, np.logical_or.reduce(todo, axis=1)


@dataclass(frozen=True)
class Drawing:
    """How many canvases there are of which digits: the arguments that all data sets of canvases share."""

    source: str
    train_examples: int
    dev_examples: int
    test_examples: int
    held_out: int
    data_seed: int
    data_dir: Path | str | None

    def splits(self, layout: Layout, kind: type[Scenes] = Scenes) -> tuple[dict[str, Any], Glyphs]:
        """Train, dev and test, each with digit images of its own, clutter always from train's; and the classes.

        Raises:
            ValueError: an argument is out of range, the digits find no room, or the source cannot be had.
        """
        layout.check()
        counts = {"train": self.train_examples, "dev": self.dev_examples, "test": self.test_examples}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}_examples is at least 1; got {count}")
        known = glyphs(self.source, layout.size, self.held_out, self.data_seed, self.data_dir)
        pieces = cut_pieces(known.splits["train"].images, layout.piece, np.random.default_rng([self.data_seed, 0]))
        made = {"train": kind(layout, known.splits["train"], pieces, self.train_examples)}
        for number, name in enumerate(("dev", "test"), start=1):
            rng, images = np.random.default_rng([self.data_seed, number]), known.splits[name]
            made[name] = kind(
                layout, images, pieces, layout.draw(rng, counts[name], len(images.images), len(pieces), 0)
            )
        return made, known

    def note(self, known: Glyphs) -> str:
        """One sentence about the sizes."""
        images = ", ".join(f"{len(part.images):,} in {name}" for name, part in known.splits.items())
        fixed = f"{self.dev_examples:,} in dev, {self.test_examples:,} in test"
        return f"digit images: {images}; canvases: {fixed}, and new ones all the time in train"

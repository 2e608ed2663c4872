"""Several sequences in one row, told apart by segment numbers: no pass through the model is spent on padding.

Which lengths share a row is settled once; which sequences of these lengths do, and in which batch, is drawn anew
every epoch. So every epoch has the same number of batches, and any step can be had without those before it.
Source: Krell et al. 2021, "Efficient sequence packing without cross-contamination", arXiv:2107.02027: packing the
histogram of lengths. Here first fit, longest first, for one side or for two that share a row.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from attention_zoo.data.batches import FILLER, Ragged
from attention_zoo.data.text import SIDES, Batch, TextData

MULTIPLE = 8  # widths chosen here are multiples of it, as matrix units like them


class Epoch(NamedTuple):
    """One pass: the row numbers of its batches `[batches, B]`, and whatever else was drawn for it."""

    rows: np.ndarray
    drawn: np.ndarray


class Epochs:
    """Batches by number, for `grain.MapDataset.source`: any step of any epoch, without those before.

    Epoch `e` is `draw(rng)` with a generator made from (seed, e), of equally many batches each time; with `seed=None`
    there is one pass, `draw(None)`. `make(rows, drawn)` gives the batch of some rows. A process gets its own
    consecutive share of the rows of every batch.

    Raises:
        ValueError: the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator | None], Epoch],
        make: Callable[[np.ndarray, np.ndarray], Batch],
        seed: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._draw, self._make, self._seed = draw, make, seed
        self._latest = (0, self._epoch(0))
        self.per_epoch, batch_size = self._latest[1].rows.shape
        if batch_size % process_count:
            raise ValueError(f"a batch of {batch_size} rows cannot be shared by {process_count} processes")
        share = batch_size // process_count
        self._own = slice(process_index * share, (process_index + 1) * share)

    def __len__(self) -> int:
        return self.per_epoch if self._seed is None else sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        number, place = divmod(step, self.per_epoch)
        latest, epoch = self._latest
        if latest != number:
            epoch = self._epoch(number)
            self._latest = (number, epoch)
        return self._make(epoch.rows[place, self._own], epoch.drawn)

    def _epoch(self, number: int) -> Epoch:
        return self._draw(None if self._seed is None else np.random.default_rng([self._seed, number]))

    def dataset(self) -> grain.IterDataset:
        """These batches as a Grain data set; a batch takes little time, so no thread reads ahead."""
        here = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return grain.MapDataset.source(self).to_iter_dataset(here)


class Slots(NamedTuple):
    """The places that first fit gives to sequences, row by row; a slot takes any sequence of its kind's lengths."""

    kind: np.ndarray  # [n] the kind of each sequence, by its lengths
    ranks: np.ndarray  # [n] of each slot: the place of its sequence among all, sorted by kind
    starts: np.ndarray  # [n, sides] where each slot begins in its row
    first: np.ndarray  # [rows + 1] the first slot of each row, and the end


def first_fit(lengths: np.ndarray, widths: np.ndarray) -> Slots:
    """Puts sequences into rows, longest first, each into the first row that has room for all its sides.

    Args:
        lengths: int [n, sides], at least 1 each and at most `widths`.
        widths: int [sides], of a row.
    """
    kinds, kind, counts = np.unique(lengths, axis=0, return_inverse=True, return_counts=True)
    free, rows = np.empty((0, len(widths)), np.int64), [np.empty(0, np.int64)] * len(kinds)
    for number in np.argsort(-(kinds / widths).sum(axis=1), kind="stable"):
        # A row takes as many of a kind as it holds before the next row takes any, so all of them are put at once.
        size, count = kinds[number], counts[number]
        fits = np.flatnonzero((free >= size).all(axis=1))
        room = (free[fits] // size).min(axis=1)
        taken = np.diff(np.minimum(np.cumsum(room), count), prepend=0)
        each, rest = (widths // size).min(), count - taken.sum()
        fresh = np.arange(-(-rest // each))
        chosen = np.concatenate([fits, len(free) + fresh])
        taken = np.concatenate([taken, np.minimum(each, rest - fresh * each)])
        free = np.concatenate([free, np.tile(widths, (len(fresh), 1))])
        free[chosen] -= taken[:, None] * size
        rows[number] = np.repeat(chosen, taken)
    row = np.concatenate(rows)
    ranks = np.argsort(row, kind="stable")
    sizes = np.repeat(kinds, counts, axis=0)[ranks]
    first = np.searchsorted(row[ranks], np.arange(len(free) + 1))
    before = np.cumsum(sizes, axis=0) - sizes
    return Slots(kind.reshape(-1), ranks, before - before[first[row[ranks]]], first)


class Packed:
    """The sequences of a split, packed into rows of a fixed width for each side; one sequence, one row on all sides.

    A batch holds for each side `NAME` int32 `[B, width]` filled up with PAD, `NAME_segments` (1 for the first sequence
    of the row and so on, the same on all sides; 0 for padding) and `NAME_positions` (from 0 in each segment; 0 for
    padding), and `valid` bool `[B]`, False for the empty rows that fill up a batch. An epoch has every sequence once.
    """

    def __init__(self, sides: Mapping[str, Ragged], widths: Mapping[str, int], batch_size: int):
        self.sides, self._batch_size = sides, batch_size
        self._widths = {name: widths[name] for name in sides}
        self.places = " + ".join(f"{width:,}" for width in self._widths.values())
        lengths = np.stack([side.lengths for side in sides.values()], axis=1)
        self.slots = first_fit(lengths, np.array(list(self._widths.values())))
        self.rows, self.sequences = len(self.slots.first) - 1, len(lengths)
        self.per_epoch = -(-self.rows // batch_size)
        # The share of the places of an epoch's batches that hold padding.
        self.waste = 1 - int(lengths.sum()) / (self.per_epoch * batch_size * sum(self._widths.values()))

    def batches(self, seed: int | None = None, process_index: int = 0, process_count: int = 1) -> Epochs:
        """Endless shuffled batches, or with `seed=None` one pass."""
        return Epochs(self.draw, self.make, seed, process_index, process_count)

    def draw(self, rng: np.random.Generator | None) -> Epoch:
        """Rows to batches, empty ones spread evenly over them, and sequences to slots."""
        order = np.arange(self.sequences) if rng is None else rng.permutation(self.sequences)
        sequences = order[np.argsort(self.slots.kind[order], kind="stable")][self.slots.ranks]
        rows = np.arange(self.rows) if rng is None else rng.permutation(self.rows)
        table = np.full((self.per_epoch, self._batch_size), FILLER)
        for place, part in enumerate(np.array_split(rows, self.per_epoch)):
            table[place, : len(part)] = part
        return Epoch(table, sequences)

    def make(self, rows: np.ndarray, sequences: np.ndarray) -> Batch:
        """The batch of some rows, FILLER ones empty; `sequences [n]`: the sequence in each slot."""
        begins = self.slots.first[rows]
        counts = np.where(rows == FILLER, 0, self.slots.first[rows + 1] - begins)
        place = np.repeat(np.arange(len(rows)), counts)  # in the batch, of each segment
        number = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)  # in its row
        slots = begins[place] + number
        batch: Batch = {}
        for column, (name, side) in enumerate(self.sides.items()):
            width = self._widths[name]
            ids, lengths = side.padded(sequences[slots], width)
            segment, position = np.nonzero(np.arange(width) < lengths[:, None])
            values = {"": ids[segment, position], "_segments": number[segment] + 1, "_positions": position}
            for ending, value in values.items():
                array = np.zeros((len(rows), width), np.int32)  # PAD is 0
                array[place[segment], self.slots.starts[slots[segment], column] + position] = value
                batch[name + ending] = array
        return {**batch, "valid": rows != FILLER}

    def note(self, name: str) -> str:
        """One sentence about the split of this name: its rows, and what of them is padding."""
        return (
            f"{name}: {self.sequences:,} sequences packed into {self.rows:,} rows of {self.places} places, "
            f"{self.waste:.1%} of the places in its batches are padding"
        )


class PackedText:
    """Translation pairs packed into rows, in place of the `TextData` that it is made of: `text`, for searches.

    Batches as `Packed` says, of the sides `source` and `target`; both end with END. At a target's position 0 the
    decoder is given START, elsewhere the token before.
    """

    def __init__(self, text: TextData, batch_size: int, source_width: int, target_width: int | None = None):
        self.text, self.batch_size = text, batch_size
        every = {name: _sequences(text, name) for name in text.skipped}  # its keys are the splits
        if target_width is None:
            totals = [int(side.flat.size) for side in every["train"].values()]
            longest = max(int(sides["target"].lengths.max()) for sides in every.values())
            wanted = max(longest, source_width * totals[1] / totals[0])
            target_width = -int(-wanted // MULTIPLE) * MULTIPLE
        self.widths = {"source": source_width, "target": target_width}
        _check(every, self.widths, batch_size)
        self._splits = {name: Packed(sides, self.widths, batch_size) for name, sides in every.items()}
        self.notes = [*text.notes, *(split.note(name) for name, split in self._splits.items())]

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
        """Endless batches in an order that follows from the seed, every pair once an epoch; its state is checkpointed.

        Raises:
            ValueError: the batch size is not a multiple of `process_count`.
        """
        return self.packed("train").batches(seed, process_index, process_count).dataset()

    def split(self, name: str) -> grain.IterDataset:
        """One pass over a split; the last batch is filled up, and `valid` tells which rows are real."""
        return self.packed(name).batches().dataset()

    def packed(self, name: str) -> Packed:
        """The rows of a split.

        Raises:
            ValueError: there is no such split.
        """
        if name not in self._splits:
            raise ValueError(f"there is no split '{name}': there is {', '.join(self._splits) or 'none at all'}")
        return self._splits[name]

    def shapes(self) -> list[Batch]:
        """A batch of zeros of the one shape there is."""
        return [self.packed("train").make(np.full(self.batch_size, FILLER), np.empty(0, int))]

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any id, limit, vocabulary or width: another digest is other data."""
        settings = [self.text.digest, self.batch_size, self.widths]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes what `TextData.load` reads: inputs are read alike, packed or not."""
        self.text.save(folder)


def packed(text: TextData, batch_size: int, source_width: int = 256, target_width: int | None = None) -> PackedText:
    """Translation pairs of any data set of this folder as rows of several pairs each, with segment numbers.

    Args:
        batch_size: rows of a batch.
        source_width, target_width: places of a row; unless told, the target's is in proportion to the source's.

    Raises:
        ValueError: a row is too short for some sequence, or a number is below 1.
    """
    return PackedText(text, batch_size, source_width, target_width)


def _sequences(text: TextData, name: str) -> dict[str, Ragged]:
    """A split's ids, side by side in the order of `text.split`."""
    rows: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
    for batch in text.split(name):
        for row in np.flatnonzero(batch["valid"]):
            for side in SIDES:
                rows[side].append(batch[side][row, : batch[f"{side}_lengths"][row]])
    return {side: Ragged(sequences) for side, sequences in rows.items()}


def _check(every: Mapping[str, Mapping[str, Ragged]], widths: Mapping[str, int], batch_size: int) -> None:
    for name, value in {"batch_size": batch_size, **{f"{side}_width": width for side, width in widths.items()}}.items():
        if value < 1:
            raise ValueError(f"packed: {name} is at least 1; got {value}")
    for split, sides in every.items():
        for side, width in widths.items():
            longest = int(sides[side].lengths.max())
            if longest > width:
                raise ValueError(
                    f"packed: {side}_width is at least {longest:,}, the longest {side} of {split}; got {width:,}"
                )

"""Rows of unequal length as batches of a few static shapes, in an order that follows from a seed alone."""

import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import grain
import numpy as np

from attention_zoo.data.vocabulary import PAD

FILLER = -1  # the row number of a row that is only there to fill up a batch
# Of the places of a batch, where nobody asks for a number of buckets; and the most of them, as each is compiled.
MOST_PADDING, MOST_BUCKETS = 0.1, 8


class Ragged:
    """Sequences of ids in one flat array: 4 bytes an id, and no Python object for each row."""

    def __init__(self, rows: Iterable[Sequence[int] | np.ndarray]):
        arrays = [np.asarray(row, np.int32) for row in rows]
        self.lengths = np.array([len(array) for array in arrays], np.int32)
        self.flat = np.concatenate([np.array([PAD], np.int32), *arrays])  # never without a place to read
        self._starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths + 1

    def padded(self, rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The chosen rows, filled up with PAD, and their lengths: int32 `[B, width]` and `[B]`."""
        lengths = np.where(rows == FILLER, 0, self.lengths[rows])
        columns = np.arange(width)
        places = np.minimum(self._starts[rows][:, None] + columns, len(self.flat) - 1)
        return np.where(columns < lengths[:, None], self.flat[places], np.int32(PAD)), lengths


class Table(NamedTuple):
    """One split as ids: sequences that end with END, and the gold spans where the data set knows them."""

    source: Ragged
    target: Ragged
    spans: np.ndarray | None  # [rows, longest target, 2]

    def batch(self, rows: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """The rows as one batch with `shape` = (S, T); FILLER rows are empty and not valid."""
        source, source_lengths = self.source.padded(rows, shape[0])
        target, target_lengths = self.target.padded(rows, shape[1])
        batch = {
            "source": source,
            "source_lengths": source_lengths,
            "target": target,
            "target_lengths": target_lengths,
            "valid": rows != FILLER,
        }
        if self.spans is not None:
            spans = np.zeros((len(rows), shape[1], 2), np.int32)
            width = min(shape[1], self.spans.shape[1])
            spans[:, :width] = np.where(batch["valid"][:, None, None], self.spans[rows, :width], 0)
            batch["spans"] = spans
        return batch


def boundaries(lengths: np.ndarray, count: int) -> list[int]:
    """The widths of `count` buckets (fewer for fewer distinct lengths) that pad these lengths least.

    Exact, by dynamic programming over the distinct lengths: the least `sum over rows of (width - length)`.
    """
    step = -(-int(lengths.max()) // 256)  # very long rows in steps, so that the table stays small
    values, tally = np.unique(-(-lengths // step) * step, return_counts=True)
    below = np.concatenate([[0], np.cumsum(tally)])
    first, last = np.indices((len(values), len(values)))
    cost = np.where(first <= last, values[last] * (below[last + 1] - below[first]).astype(float), np.inf)
    best, starts = cost[0], []  # best[j]: least cost of the values up to j; starts: where the last bucket begins
    for _ in range(min(count, len(values)) - 1):
        options = best[:-1, None] + cost[1:]
        starts.append(options.argmin(axis=0) + 1)
        best = options.min(axis=0)
    widths, end = [], len(values) - 1
    for start in reversed(starts):
        widths.append(int(values[end]))
        end = int(start[end]) - 1
    return [int(values[end]), *reversed(widths)]


def bucket_shapes(source: np.ndarray, target: np.ndarray, count: int | None = None) -> list[tuple[int, int]]:
    """The shapes (S, T) of at most `count` buckets for pairs of these lengths, each at least the one before.

    With no count they are the fewest that leave at most MOST_PADDING of the places to padding, or MOST_BUCKETS.
    """
    counts = range(1, MOST_BUCKETS + 1) if count is None else [count]
    for shapes in (_shapes(source, target, number) for number in counts):
        if padding(source, target, shapes) <= MOST_PADDING:
            break
    return shapes


def _shapes(source: np.ndarray, target: np.ndarray, count: int) -> list[tuple[int, int]]:
    longer = np.maximum(source, target)
    bucket = np.searchsorted(boundaries(longer, count), longer)
    used = range(int(bucket.max()) + 1)
    widest = np.array([[source[bucket == k].max(), target[bucket == k].max()] for k in used])
    return [(int(s), int(t)) for s, t in np.maximum.accumulate(widest)]


def padding(source: np.ndarray, target: np.ndarray, shapes: Sequence[tuple[int, int]]) -> float:
    """The share of the places, of both sides together, that pairs of these lengths leave empty in their buckets."""
    places = np.array(shapes)[bucket_of(source, target, shapes)].sum()
    return float(1 - (source.sum() + target.sum()) / places)


def bucket_of(source: np.ndarray, target: np.ndarray, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """The number of the first bucket that each pair fits into: int `[rows]`."""
    widths = np.array(shapes)
    return np.maximum(np.searchsorted(widths[:, 0], source), np.searchsorted(widths[:, 1], target))


class Plan(NamedTuple):
    """The batches of one pass: row numbers `[batches, B]`, and each batch's bucket `[batches]`."""

    rows: np.ndarray
    buckets: np.ndarray


def draw_plan(bucket: np.ndarray, batch_size: int, rng: np.random.Generator | None = None) -> Plan:
    """Puts every row into a batch with rows of its bucket, given by its number: `[rows]`.

    Rows of a bucket that do not fill a batch go to the next wider bucket. The last batch is filled up:
    with other rows, drawn anew every epoch, or with FILLER rows where `rng` is None. So a pass sees
    every row once, and fewer than `batch_size` rows again. With `rng` rows and batches are shuffled.
    """
    order = np.arange(len(bucket)) if rng is None else rng.permutation(len(bucket))
    rows, buckets, rest = [], [], order[:0]
    for number in range(int(bucket.max()) + 1):
        rest = np.concatenate([rest, order[bucket[order] == number]])
        full = len(rest) // batch_size * batch_size
        rows.append(rest[:full].reshape(-1, batch_size))
        buckets += [number] * len(rows[-1])
        rest = rest[full:]
    if len(rest):
        missing = batch_size - len(rest)
        extra = np.full(missing, FILLER) if rng is None else np.resize(order, missing)
        rows.append(np.concatenate([rest, extra])[None])
        buckets.append(number)
    shuffled = np.arange(len(buckets)) if rng is None else rng.permutation(len(buckets))
    return Plan(np.concatenate(rows)[shuffled], np.array(buckets)[shuffled])


class Batches:
    """Batches by number, for `grain.MapDataset.source`: any step of any epoch, without those before.

    Epoch `e` follows the plan drawn from (seed, e); with `seed=None` there is one pass in plain order.
    A process gets its own consecutive share of the rows of every batch.
    """

    def __init__(
        self,
        table: Table,
        shapes: Sequence[tuple[int, int]],
        batch_size: int,
        seed: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._table, self._shapes, self._batch_size, self._seed = table, list(shapes), batch_size, seed
        self._bucket = bucket_of(table.source.lengths, table.target.lengths, shapes)
        share = batch_size // process_count
        self._own = slice(process_index * share, (process_index + 1) * share)
        self.per_epoch = -(-len(self._bucket) // batch_size)
        self._latest = (0, self._plan(0))

    def __len__(self) -> int:
        return self.per_epoch if self._seed is None else sys.maxsize

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        epoch, number = divmod(step, self.per_epoch)
        plan = self.epoch(epoch)
        return self._table.batch(plan.rows[number, self._own], self._shapes[plan.buckets[number]])

    def epoch(self, epoch: int) -> Plan:
        """The plan of an epoch; the latest one is kept."""
        latest, plan = self._latest
        if latest != epoch:
            plan = self._plan(epoch)
            self._latest = (epoch, plan)
        return plan

    def _plan(self, epoch: int) -> Plan:
        rng = None if self._seed is None else np.random.default_rng([self._seed, epoch])
        return draw_plan(self._bucket, self._batch_size, rng)

    def dataset(self) -> grain.IterDataset:
        """These batches as a Grain data set; a batch takes microseconds, so no thread reads ahead."""
        here = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return grain.MapDataset.source(self).to_iter_dataset(here)

"""How many examples a second do the data pipelines give, and how much of their batches is padding?

One epoch as `attention_zoo.data` makes it unless told otherwise (experiments on dates and integers ask for fewer
buckets, which pad more): dates and integers to reverse as pairs of texts in buckets of length, the dates as rows of
several texts for a language model, and canvases with captions, which are drawn as they are read. Beside the
texts, plain Python loops over the same examples, shuffled: with every batch as wide as its own longest, which pads
little but needs a compilation for every shape, and with all batches as wide as the longest of all. All must give the
same examples before anything is timed. `padding_waste` counts the places of the texts; `ratio` is a loop's time for
the epoch over the pipeline's.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any
from zlib import crc32

import numpy as np

from attention_zoo.data import Characters, LanguageData, TextData, dates, placed_digits, reverse
from attention_zoo.data.text import SIDES
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row

# Of each pipeline: the examples of an epoch and the batch size; the packed rows are 256 wide, or 64 at "small".
SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "small": {"dates": (101, 7), "reverse": (103, 5), "language": (101, 3), "captions": (22, 11)},
    "paper": {"dates": (20_000, 128), "reverse": (50_000, 10), "language": (20_000, 32), "captions": (12_800, 128)},
}
TOLERANCES = {"float32": 0.0}
WIDTHS = {"small": 64, "paper": 256}

Batch = Mapping[str, np.ndarray]
Example = tuple[np.ndarray, ...]  # its ids on every side, without padding


@dataclass(frozen=True, kw_only=True)
class InputRow(Row):
    """A pipeline's epoch.

    `padding_waste`: the share of the places of its texts, of both sides together, that hold padding.
    `shapes`: how many shapes of batches there are, each a compilation of the step.
    """

    examples_per_second: float
    padding_waste: float
    shapes: int


@dataclass(frozen=True)
class Pipeline:
    """Data as one reads them: `read()` gives an epoch's batches, `examples(batch)` the texts of one, unpadded."""

    sides: tuple[str, ...]
    read: Callable[[], list[Batch]]
    examples: Callable[[Batch], Iterable[Example]]


def plain(pipeline: Pipeline, batch_size: int, width: Callable[[np.ndarray, int], int]) -> Pipeline:
    """A loop of one's own over the same examples, kept in a list; `width(lengths, longest of all)` of each side."""
    examples = [one for batch in pipeline.read() for one in pipeline.examples(batch)]
    longest = [max(map(len, side)) for side in zip(*examples, strict=True)]

    def make(chosen: Sequence[Example]) -> Batch:
        batch: dict[str, np.ndarray] = {}
        for name, side, limit in zip(pipeline.sides, zip(*chosen, strict=True), longest, strict=True):
            lengths = np.array([len(ids) for ids in side], np.int32)
            batch[name] = np.zeros((len(side), width(lengths, limit)), np.int32)
            for row, ids in enumerate(side):
                batch[name][row, : len(ids)] = ids
            batch[f"{name}_lengths"] = lengths
        return batch

    def read() -> list[Batch]:
        order = np.random.default_rng(0).permutation(len(examples))
        starts = range(0, len(order), batch_size)
        return [make([examples[row] for row in order[start : start + batch_size]]) for start in starts]

    return Pipeline(pipeline.sides, read, lambda batch: _pairs(batch, pipeline.sides))


PEERS: Peers = {
    "plain loop to a batch's longest": lambda: lambda lengths, longest: int(lengths.max()),
    "plain loop to the longest of all": lambda: lambda lengths, longest: longest,
}


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> Iterator[Row]:
    """Rows of every pipeline and, of those of texts, of the peers on the same examples."""
    sizes = SIZES[known(size, SIZES, "size")]
    for name, (number, batch_size) in sizes.items():
        ours = _pipelines(WIDTHS[size])[name](number, batch_size)
        entrants = {OURS: ours}
        if name != "captions":
            entrants |= {peer: plain(ours, batch_size, width) for peer, width in bring(PEERS, peers).items()}
        contestants = [
            Contestant(entrant, one.read, (), _checksum(one), jitted=False) for entrant, one in entrants.items()
        ]
        tolerance, case = TOLERANCES["float32"], f"{name}, B{batch_size}"
        timed = compare("input", case, "one epoch", contestants, tolerance=tolerance, repetitions=repetitions)
        yield from [_row(row, one) for row, one in zip(timed, entrants.values(), strict=True)]


def _row(row: Row, pipeline: Pipeline) -> InputRow:
    batches = pipeline.read()
    real = [sum(map(len, one)) for batch in batches for one in pipeline.examples(batch)]
    places = sum(batch[name].size for batch in batches for name in pipeline.sides)
    return InputRow(
        **asdict(row),
        examples_per_second=round(1e3 * len(real) / max(row.median_ms, 1e-9), 1),
        padding_waste=round(1 - sum(real) / places, 4),
        shapes=len({tuple(batch[name].shape for name in pipeline.sides) for batch in batches}),
    )


def _pipelines(width: int) -> dict[str, Callable[[int, int], Pipeline]]:
    """By name: of the examples of an epoch and the batch size."""

    def language(number: int, batch_size: int) -> Pipeline:
        texts = dates(train_examples=number).sources("train")
        data = LanguageData({"train": texts}, Characters.fit(texts), batch_size=batch_size, width=width)
        return Pipeline(("tokens", "targets"), lambda: _epoch(data, data.packed("train").per_epoch), _segments)

    def captions(number: int, batch_size: int) -> Pipeline:
        data = placed_digits(batch_size, train_examples=number)
        return Pipeline(
            ("target",), lambda: _epoch(data, -(-number // batch_size)), lambda one: _pairs(one, ("target",))
        )

    return {
        "dates": lambda number, batch_size: _texts(dates(batch_size, train_examples=number)),
        "reverse": lambda number, batch_size: _texts(reverse(batch_size, train_examples=number)),
        "language": language,
        "captions": captions,
    }


def _texts(data: TextData) -> Pipeline:
    steps = -(-len(data.order("train")) // data.batch_size)
    return Pipeline(SIDES, lambda: _epoch(data, steps), lambda batch: _pairs(batch, SIDES))


def _epoch(data: Any, steps: int) -> list[Batch]:
    return list(islice(iter(data.train(seed=0)), steps))


def _pairs(batch: Batch, sides: Sequence[str]) -> list[Example]:
    """The rows, each side cut at its length."""
    columns = [
        [ids[:length] for ids, length in zip(batch[name], batch[f"{name}_lengths"], strict=True)] for name in sides
    ]
    return list(zip(*columns, strict=True))


def _segments(batch: Batch) -> list[Example]:
    """The texts of packed rows."""
    return [
        (tokens[own == number], targets[own == number])
        for tokens, targets, own in zip(batch["tokens"], batch["targets"], batch["segments"], strict=True)
        for number in range(1, int(own.max()) + 1)
    ]


def _checksum(pipeline: Pipeline) -> Callable[[Iterable[Batch]], np.ndarray]:
    """How many examples batches hold, and a sum over them that no order changes."""

    def compared(batches: Iterable[Batch]) -> np.ndarray:
        found = [b"|".join(ids.tobytes() for ids in one) for batch in batches for one in pipeline.examples(batch)]
        return np.array([len(found), sum(map(crc32, found))], np.float64)

    return compared

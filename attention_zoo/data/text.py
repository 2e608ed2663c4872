"""Pairs of texts as batches of ids: what every data set of this folder becomes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import grain
import numpy as np

from attention_zoo.data.batches import Batches, Ragged, Table, bucket_shapes
from attention_zoo.data.vocabulary import END, Tokenizer, load, write_whole

Batch = dict[str, np.ndarray]
SIDES = ("source", "target")


@dataclass(frozen=True)
class Pairs:
    """A split as text: sources, targets, and where the data set knows them the gold spans.

    `spans[row, t]` is the [start, end) of the source characters that target character t is written
    from, (0, 0) where there are none: int `[rows, longest target, 2]`.
    """

    sources: Sequence[str]
    targets: Sequence[str]
    spans: np.ndarray | None = None


class TextData:
    """Translation pairs as batches of ids, bucketed by length into a few static shapes.

    A batch holds `source` int32 `[B, S]` and `target` int32 `[B, T]` (both end with END and are filled up
    with PAD), `source_lengths` and `target_lengths` int32 `[B]` (END counted), `valid` bool `[B]`
    (False for the rows that fill up the last batch of a split) and, where known, `spans` int32 `[B, T, 2]`.
    Pairs over a limit, or with an empty side, are left out, counted in `skipped` and told by `notes`. There are at most
    `buckets` shapes; unless told, as few as leave little padding, see `batches.bucket_shapes`.

    Raises:
        ValueError: a split has no pair within the limits.
    """

    def __init__(
        self,
        splits: Mapping[str, Pairs],
        source: Tokenizer,
        target: Tokenizer,
        *,
        batch_size: int,
        max_source: int,
        max_target: int,
        buckets: int | None = None,
        notes: Sequence[str] = (),
    ):
        _check_positive(batch_size=batch_size, max_source=max_source, max_target=max_target, buckets=buckets)
        self.source, self.target = source, target
        self.batch_size, self.max_source, self.max_target = batch_size, max_source, max_target
        self.skipped: dict[str, int] = {}
        self.notes = list(notes)
        self._texts: dict[str, Pairs] = {}
        self._tables: dict[str, Table] = {}
        for name, pairs in splits.items():
            self._add(name, pairs)
        self._shapes: list[tuple[int, int]] = []
        self._wider: list[tuple[int, int]] = []
        if "train" in self._tables:
            train = self._tables["train"]
            self._shapes = bucket_shapes(train.source.lengths, train.target.lengths, buckets)
            self._make_room()

    def _add(self, name: str, pairs: Pairs) -> None:
        """Tokenises a split and leaves out what is over the limits."""
        kept, sources, targets = [], [], []
        for row, (source_text, target_text) in enumerate(zip(pairs.sources, pairs.targets, strict=True)):
            source, target = self.source.encode(source_text), self.target.encode(target_text)
            if 0 < len(source) < self.max_source and 0 < len(target) < self.max_target:
                kept.append(row)
                sources.append(np.array([*source, END], np.int32))
                targets.append(np.array([*target, END], np.int32))
        self._count(name, len(kept), len(pairs.sources))
        self._tables[name] = Table(
            Ragged(sources), Ragged(targets), None if pairs.spans is None else np.asarray(pairs.spans)[kept]
        )
        self._texts[name] = Pairs([pairs.sources[row] for row in kept], [pairs.targets[row] for row in kept])

    def _count(self, name: str, kept: int, total: int) -> None:
        limits = f"{self.max_source - 1:,} source or {self.max_target - 1:,} target tokens"
        if not kept:
            raise ValueError(f"{name}: all {total:,} pairs are empty or over {limits}")
        self.skipped[name] = total - kept
        if kept < total:
            self.notes.append(f"{name}: {total - kept:,} of {total:,} pairs left out, empty or over {limits}")

    def _make_room(self) -> None:
        """Lets longer pairs of dev and test in: by a slightly wider last bucket, else by one more shape."""
        tables = self._tables.values()
        longest = (max(int(t.source.lengths.max()) for t in tables), max(int(t.target.lengths.max()) for t in tables))
        last = self._shapes[-1]
        if all(8 * new <= 9 * old for new, old in zip(longest, last, strict=True)):
            self._shapes[-1] = longest
        else:
            self._wider = [longest]

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
        """Endless batches, shuffled anew every epoch, of which this process gets its share of the rows.

        Every epoch sees each pair once, and fewer than `batch_size` of them again to fill up its last batch.
        The iterator's state is the number of the next step.

        Raises:
            ValueError: the batch size is no multiple of the number of processes.
        """
        if self.batch_size % process_count:
            raise ValueError(f"a batch of {self.batch_size} rows cannot be shared by {process_count} processes")
        table = self._table("train")
        return Batches(table, self._shapes, self.batch_size, seed, process_index, process_count).dataset()

    def split(self, name: str) -> grain.IterDataset:
        """One pass over a split; the last batch is filled up, and `valid` tells which rows are real."""
        return self._pass(name).dataset()

    def order(self, name: str) -> np.ndarray:
        """The row numbers of a split in the order in which `split` gives the valid rows."""
        rows = self._pass(name).epoch(0).rows.ravel()
        return rows[rows >= 0]

    def references(self, name: str) -> list[str]:
        """The target texts in the order of `split`."""
        return [self._texts[name].targets[row] for row in self.order(name)]

    def sources(self, name: str) -> list[str]:
        """The source texts in the order of `split`."""
        return [self._texts[name].sources[row] for row in self.order(name)]

    def shapes(self) -> list[Batch]:
        """A batch of zeros for every shape that `train` gives; of loaded data, which has no pairs, for every bucket."""
        if not self._tables:
            return [self._blank(shape) for shape in self._shapes]
        table, rows = self._table("train"), np.full(self.batch_size, -1)
        used = np.unique(Batches(table, self._shapes, self.batch_size, seed=0).epoch(0).buckets)
        return [table.batch(rows, self._shapes[bucket]) for bucket in used]

    def _blank(self, shape: tuple[int, int]) -> Batch:
        ids = {name: np.zeros((self.batch_size, width), np.int32) for name, width in zip(SIDES, shape, strict=True)}
        lengths = {f"{name}_lengths": np.zeros(self.batch_size, np.int32) for name in SIDES}
        return {**ids, **lengths, "valid": np.zeros(self.batch_size, bool)}

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Sources as one batch, with `source`, `source_lengths` and `valid`, as wide as the bucket they fit into.

        Raises:
            ValueError: a text is empty or longer than `max_source`.
        """
        rows = [[*self.source.encode(text), END] for text in texts]
        for number, row in enumerate(rows, start=1):
            if len(row) == 1:
                raise ValueError(f"input {number} is empty")
            if len(row) > self.max_source:
                raise ValueError(
                    f"input {number} has {len(row) - 1:,} tokens, more than the {self.max_source - 1:,} that are read"
                )
        widths = [shape[0] for shape in self._shapes + self._wider] + [self.max_source]
        width = next(width for width in widths if all(len(row) <= width for row in rows))
        source, lengths = Ragged(rows).padded(np.arange(len(rows)), width)
        return {"source": source, "source_lengths": lengths, "valid": np.ones(len(rows), bool)}

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any id, limit or vocabulary: another digest is other data."""
        sha = hashlib.sha256(json.dumps([self.source.to_dict(), self.target.to_dict(), self._settings()]).encode())
        for name, table in sorted(self._tables.items()):
            sha.update(name.encode())
            for part in (table.source, table.target):
                sha.update(part.lengths.tobytes())
                sha.update(part.flat.tobytes())
        return sha.hexdigest()[:16]

    def _settings(self) -> dict:
        return {
            "batch_size": self.batch_size,
            "max_source": self.max_source,
            "max_target": self.max_target,
            "shapes": self._shapes + self._wider,
        }

    def save(self, folder: Path) -> None:
        """Writes both vocabularies and the limits into a folder, for `TextData.load`."""
        folder = Path(folder)
        self.source.save(folder / "source.json")
        self.target.save(folder / "target.json")
        write_whole(folder / "text.json", (json.dumps(self._settings(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "TextData":
        """The data of a work folder without its pairs: enough to read inputs and write outputs.

        Raises:
            ValueError: a file is missing or damaged.
        """
        folder = Path(folder)
        source, target = load(folder / "source.json"), load(folder / "target.json")
        try:
            settings = json.loads((folder / "text.json").read_text())
            shapes = [(int(s), int(t)) for s, t in settings.pop("shapes")]
            data = cls({}, source, target, **settings)
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'text.json'} is damaged or was not written by this program") from error
        data._shapes = shapes
        return data

    def _pass(self, name: str) -> Batches:
        return Batches(self._table(name), self._shapes + self._wider, self.batch_size)

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            raise ValueError(f"there is no split '{name}': there is {', '.join(self._tables) or 'none at all'}")
        return self._tables[name]


def _check_positive(**settings: int | None) -> None:
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")

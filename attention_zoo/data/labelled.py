"""Texts with a label each as batches of ids, and splits by group: no group has texts in two splits."""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import grain
import numpy as np

from attention_zoo.data.batches import Batches, Ragged, Table, bucket_shapes
from attention_zoo.data.parallel import LONGEST
from attention_zoo.data.text import Batch
from attention_zoo.data.vocabulary import END, START, Tokenizer, fit, load, write_whole

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Labelled:
    """A split as text: texts, the name of each one's label, and the group that each belongs to ("" for none)."""

    texts: Sequence[str]
    labels: Sequence[str]
    groups: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", [""] * len(self.texts))

    def take(self, rows: Sequence[int]) -> "Labelled":
        """The chosen rows, in that order."""
        columns = (self.texts, self.labels, self.groups)
        return Labelled(*([column[row] for row in rows] for column in columns))


class LabelTable(Table):
    """One split as ids: `source` is the tokens, `target` the label, a sequence of one."""

    def batch(self, rows: np.ndarray, shape: tuple[int, int]) -> Batch:
        """The rows as one batch, its tokens `shape[0]` wide; FILLER rows are empty and not valid."""
        pair = super().batch(rows, shape)
        return {
            "tokens": pair["source"],
            "lengths": pair["source_lengths"],
            "labels": pair["target"][:, 0],
            "valid": pair["valid"],
        }


class LabelledText:
    """Texts to classify as batches of ids, bucketed by length into a few static shapes.

    A batch holds `tokens` int32 `[B, S]` (they begin with START, end with END and are filled up with PAD), `lengths`
    int32 `[B]` (START and END counted), `labels` int32 `[B]`, indices into the names `data.labels`, and `valid` bool
    `[B]` (False for the rows that fill up the last batch of a split). Texts that are empty or over `max_length` are
    left out, counted in `skipped` and told by `notes`.

    Raises:
        ValueError: a split has no text within the limit, or a label that is not among `labels`.
    """

    def __init__(
        self,
        splits: Mapping[str, Labelled],
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        batch_size: int,
        max_length: int,
        buckets: int = 4,
        notes: Sequence[str] = (),
    ):
        for name, value in {"batch_size": batch_size, "max_length": max_length, "buckets": buckets}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        self.tokenizer, self.labels = tokenizer, tuple(labels)
        self.batch_size, self.max_length = batch_size, max_length
        self.skipped: dict[str, int] = {}
        self.notes = list(notes)
        self._raw: dict[str, Labelled] = {}
        self._tables: dict[str, LabelTable] = {}
        for name, rows in splits.items():
            self._add(name, rows)
        self._shapes: list[tuple[int, int]] = []
        self._wider: list[tuple[int, int]] = []
        if "train" in self._tables:
            train = self._tables["train"]
            self._shapes = bucket_shapes(train.source.lengths, train.target.lengths, buckets)
            longest = max(int(table.source.lengths.max()) for table in self._tables.values())
            if longest > self._shapes[-1][0]:  # longer texts of dev and test have a shape of their own
                self._wider = [(longest, 1)]

    def _add(self, name: str, rows: Labelled) -> None:
        """Tokenises a split and leaves out what is over the limit."""
        unknown = set(rows.labels) - set(self.labels)
        if unknown:
            raise ValueError(f"{name} has labels that are none of the {len(self.labels)}: {', '.join(sorted(unknown))}")
        ids = [self._ids(text) for text in rows.texts]
        kept = [row for row, sequence in enumerate(ids) if 2 < len(sequence) <= self.max_length]
        limit = f"empty or over {self.max_length - 2:,} tokens"
        if not kept:
            raise ValueError(f"{name}: all {len(ids):,} texts are {limit}")
        self.skipped[name] = len(ids) - len(kept)
        if self.skipped[name]:
            self.notes.append(f"{name}: {self.skipped[name]:,} of {len(ids):,} texts left out, {limit}")
        self._raw[name] = rows.take(kept)
        targets = [[self.labels.index(rows.labels[row])] for row in kept]
        self._tables[name] = LabelTable(Ragged(ids[row] for row in kept), Ragged(targets), None)

    def _ids(self, text: str) -> list[int]:
        return [START, *self.tokenizer.encode(text), END]

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
        """Endless batches, shuffled anew every epoch, of which this process gets its share of the rows.

        Every epoch sees each text once, and fewer than `batch_size` of them again to fill up its last batch.

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

    def raw(self, name: str) -> Labelled:
        """The texts, label names and groups of a split, in the order in which `split` gives the valid rows."""
        rows = self._pass(name).epoch(0).rows.ravel()
        return self._raw[name].take(rows[rows >= 0].tolist())

    def shapes(self) -> list[Batch]:
        """A batch of zeros for every shape that `train` gives; of loaded data, which has no texts, for every bucket."""
        if not self._tables:
            return [self._blank(width) for width, _ in self._shapes]
        used = np.unique(Batches(self._table("train"), self._shapes, self.batch_size, seed=0).epoch(0).buckets)
        return [self._blank(self._shapes[bucket][0]) for bucket in used]

    def _blank(self, width: int) -> Batch:
        rows = self.batch_size
        integers = {"tokens": (rows, width), "lengths": (rows,), "labels": (rows,)}
        zeros = {name: np.zeros(shape, np.int32) for name, shape in integers.items()}
        return {**zeros, "valid": np.zeros(rows, bool)}

    def encode_batch(self, texts: Sequence[str]) -> Batch:
        """Texts as one batch, with `tokens`, `lengths` and `valid`, as wide as the bucket they fit into.

        Raises:
            ValueError: a text is empty or longer than `max_length`.
        """
        rows = [self._ids(text) for text in texts]
        for number, row in enumerate(rows, start=1):
            if len(row) == 2:
                raise ValueError(f"input {number} is empty")
            if len(row) > self.max_length:
                raise ValueError(
                    f"input {number} has {len(row) - 2:,} tokens, more than the {self.max_length - 2:,} that are read"
                )
        widths = [shape[0] for shape in self._shapes + self._wider] + [self.max_length]
        width = next(width for width in widths if all(len(row) <= width for row in rows))
        tokens, lengths = Ragged(rows).padded(np.arange(len(rows)), width)
        return {"tokens": tokens, "lengths": lengths, "valid": np.ones(len(rows), bool)}

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any id, label, limit or vocabulary: another digest is other data."""
        sha = hashlib.sha256(json.dumps([self.tokenizer.to_dict(), self._settings()]).encode())
        for name, table in sorted(self._tables.items()):
            sha.update(name.encode())
            for part in (table.source, table.target):
                sha.update(part.lengths.tobytes())
                sha.update(part.flat.tobytes())
        return sha.hexdigest()[:16]

    def _settings(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "shapes": self._shapes + self._wider,
        }

    def save(self, folder: Path) -> None:
        """Writes the vocabulary, the names of the labels and the limits into a folder, for `LabelledText.load`."""
        folder = Path(folder)
        self.tokenizer.save(folder / "tokens.json")
        write_whole(folder / "labelled.json", (json.dumps(self._settings(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "LabelledText":
        """The data of a work folder without its texts: enough to read inputs and to name their labels.

        Raises:
            ValueError: a file is missing or damaged.
        """
        folder = Path(folder)
        tokenizer = load(folder / "tokens.json")
        try:
            settings = json.loads((folder / "labelled.json").read_text())
            shapes = [(int(width), int(one)) for width, one in settings.pop("shapes")]
            data = cls({}, tokenizer, **settings)
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'labelled.json'} is damaged or was not written by this program") from error
        data._shapes = shapes
        return data

    def _pass(self, name: str) -> Batches:
        return Batches(self._table(name), self._shapes + self._wider, self.batch_size)

    def _table(self, name: str) -> LabelTable:
        if name not in self._tables:
            raise ValueError(f"there is no split '{name}': there is {', '.join(self._tables) or 'none at all'}")
        return self._tables[name]


def labelled_text(
    splits: Mapping[str, Labelled],
    labels: Sequence[str],
    *,
    tokenizer: str,
    vocabulary_size: int | None,
    max_length: int | None,
    **settings: Any,
) -> LabelledText:
    """Texts with a vocabulary made from their `train`; `settings` go to `LabelledText`."""
    vocabulary = fit(tokenizer, splits["train"].texts, vocabulary_size)
    return LabelledText(splits, vocabulary, labels, max_length=max_length or LONGEST[tokenizer], **settings)


def split_groups(rows: Labelled, fold: int, folds: int, seed: int = 0) -> tuple[dict[str, Labelled], list[str]]:
    """Fold number `fold` of `folds`: a test split of whole groups, a dev split of whole groups, and the rest to train.

    The groups of each label, shuffled by `seed`, are dealt to the folds in turn (a group with several labels once, with
    those of its first). The fold's own groups are its test split; half of the next fold's are its dev split. A label
    that is left with nothing to train on gets its dev groups back, or else its test groups; a note counts such labels.

    Raises:
        ValueError: there is no such fold.
    """
    if not (folds >= 2 and 0 <= fold < folds):
        raise ValueError(f"split_groups: a fold from 0 to folds - 1 and at least 2 folds; got {fold} of {folds}")
    by_label: dict[str, set[str]] = defaultdict(set)
    for group, label in zip(rows.groups, rows.labels, strict=True):
        by_label[label].add(group)
    place: dict[str, str] = {}
    for label in sorted(by_label):
        groups = sorted(by_label[label] - place.keys())
        random.Random(f"{seed} {label}").shuffle(groups)
        place |= {group: _place(number, fold, folds) for number, group in enumerate(groups, start=len(place))}
    kept = [label for label in sorted(by_label) if all(place[group] != "train" for group in by_label[label])]
    for label in kept:
        taken = "dev" if any(place[group] == "dev" for group in by_label[label]) else "test"
        place |= {group: "train" for group in by_label[label] if place[group] == taken}
    notes = [f"{len(kept)} labels with too few groups are kept in train: {', '.join(kept)}"] if kept else []
    own = {name: [row for row, group in enumerate(rows.groups) if place[group] == name] for name in SPLITS}
    return {name: rows.take(chosen) for name, chosen in own.items()}, notes


def _place(number: int, fold: int, folds: int) -> str:
    """The split of the group that was dealt as the n-th."""
    turn, own = divmod(number, folds)
    if own == fold:
        return "test"
    return "dev" if own == (fold + 1) % folds and turn % 2 == 0 else "train"


def without_repeats(splits: Mapping[str, Labelled]) -> tuple[dict[str, Labelled], list[str]]:
    """Every text once, whatever its case: test has none of train's, dev none of train's and test's; with notes."""
    found: dict[str, Labelled] = {}
    seen: set[str] = set()
    notes = []
    for name in ("train", "test", "dev"):
        rows, elsewhere = splits[name], frozenset(seen)
        kept = []
        for row, text in enumerate(rows.texts):
            if text.casefold() not in seen:
                seen.add(text.casefold())
                kept.append(row)
        found[name] = rows.take(kept)
        across = sum(text.casefold() in elsewhere for text in rows.texts)
        own = len(rows.texts) - len(kept) - across
        notes.append(f"{name}: {own:,} repeats left out, and {across:,} texts that another split has")
    return {name: found[name] for name in splits}, notes

"""Texts for a causal language model, packed into rows of one width: the user's own file, or any list of texts."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from attention_zoo.data.batches import FILLER, Ragged
from attention_zoo.data.packing import Packed
from attention_zoo.data.parallel import content_digest, hold_out, read_plain
from attention_zoo.data.prepare import prepared
from attention_zoo.data.text import Batch, Pairs
from attention_zoo.data.vocabulary import END, START, Tokenizer, check_kind, fit, load, write_whole


class Stream(Packed):
    """A split's texts as rows: `tokens` and the `targets` that follow them, each inside its own segment."""

    def __init__(self, tokens: Ragged, targets: Ragged, width: int, batch_size: int):
        super().__init__({"tokens": tokens, "targets": targets}, {"tokens": width, "targets": width}, batch_size)
        self.places = f"{width:,}"

    def make(self, rows: np.ndarray, sequences: np.ndarray) -> Batch:
        """The batch of some rows, as `LanguageData` says."""
        batch = super().make(rows, sequences)
        segments = batch["tokens_segments"]
        return {
            "tokens": batch["tokens"],
            "targets": batch["targets"],
            "segments": segments,
            "positions": batch["tokens_positions"],
            "mask": segments > 0,
            "valid": batch["valid"],
        }


class LanguageData:
    """Texts as batches of rows that hold several texts each, for a causal language model.

    A text x_1 ... x_n is read as START x_1 ... x_n and predicted as x_1 ... x_n END. One that is longer than a row is
    cut: its next piece is read from the last token of the piece before, so every token is predicted once.
    A batch holds int32 `[B, width]` `tokens`, `targets`, `segments` (from 1; 0 for padding) and `positions` (from 0 in
    each segment), bool `[B, width]` `mask` (True where there is a target) and bool `[B]` `valid` (False for empty
    rows). Texts without any token are left out and told by `notes`.

    Raises:
        ValueError: a split has no token at all, or a number is below 1.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[str]],
        vocabulary: Tokenizer,
        *,
        batch_size: int,
        width: int,
        notes: Sequence[str] = (),
    ):
        for name, value in (("batch_size", batch_size), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        self.vocabulary, self.batch_size, self.width = vocabulary, batch_size, width
        self.notes = list(notes)
        self._streams = {name: self._stream(name, texts) for name, texts in splits.items()}

    def _stream(self, name: str, texts: Sequence[str]) -> Stream:
        encoded = [ids for ids in map(self.vocabulary.encode, texts) if ids]
        if not encoded:
            raise ValueError(f"{name}: all {len(texts):,} texts are empty")
        whole = [np.array([START, *ids, END], np.int32) for ids in encoded]
        pieces = [(row, begin) for row in whole for begin in range(0, len(row) - 1, self.width)]
        tokens = Ragged(row[begin : min(begin + self.width, len(row) - 1)] for row, begin in pieces)
        targets = Ragged(row[begin + 1 : begin + 1 + self.width] for row, begin in pieces)
        stream = Stream(tokens, targets, self.width, self.batch_size)
        cut = sum(len(row) - 1 > self.width for row in whole)
        if len(encoded) < len(texts):
            self.notes.append(f"{name}: {len(texts) - len(encoded):,} of {len(texts):,} texts left out, empty")
        if cut:
            self.notes.append(f"{name}: {cut:,} of {len(texts):,} texts cut, over {self.width - 1:,} tokens")
        self.notes.append(stream.note(name))
        return stream

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
        """Endless batches in an order that follows from the seed, every text once an epoch; its state is checkpointed.

        Raises:
            ValueError: the batch size is not a multiple of `process_count`.
        """
        return self.packed("train").batches(seed, process_index, process_count).dataset()

    def split(self, name: str) -> grain.IterDataset:
        """One pass over a split; the last batch is filled up, and `valid` tells which rows are real."""
        return self.packed(name).batches().dataset()

    def packed(self, name: str) -> Stream:
        """The rows of a split.

        Raises:
            ValueError: there is no such split.
        """
        if name not in self._streams:
            raise ValueError(f"there is no split '{name}': there is {', '.join(self._streams) or 'none at all'}")
        return self._streams[name]

    def shapes(self) -> list[Batch]:
        """A batch of zeros of the one shape there is."""
        return [self.packed("train").make(np.full(self.batch_size, FILLER), np.empty(0, int))]

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that change with any id, vocabulary or size: another digest is other data."""
        sha = hashlib.sha256(json.dumps([self.vocabulary.to_dict(), self._settings()]).encode())
        for name, stream in sorted(self._streams.items()):
            sha.update(name.encode())
            for side in stream.sides.values():
                sha.update(side.lengths.tobytes())
                sha.update(side.flat.tobytes())
        return sha.hexdigest()[:16]

    def _settings(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "width": self.width}

    def save(self, folder: Path) -> None:
        """Writes the vocabulary and the sizes into a folder, for `LanguageData.load`."""
        folder = Path(folder)
        self.vocabulary.save(folder / "vocabulary.json")
        write_whole(folder / "language.json", (json.dumps(self._settings(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "LanguageData":
        """The data of a work folder without its texts: enough to read prompts and write texts.

        Raises:
            ValueError: a file is missing or damaged.
        """
        path = Path(folder) / "language.json"
        vocabulary = load(path.with_name("vocabulary.json"))
        try:
            return cls({}, vocabulary, **json.loads(path.read_text()))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged or was not written by this program") from error


def read_texts(path: Path | str) -> list[str]:
    """The lines of a UTF-8 file that are not blank; only a line feed ends a line.

    Raises:
        ValueError: the file is missing, unreadable, blank or no UTF-8 (the line number is told).
    """
    try:
        content = Path(path).read_bytes()
        lines = content.decode().removeprefix("\ufeff").split("\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number, begin = content.count(b"\n", 0, error.start) + 1, content.rfind(b"\n", 0, error.start) + 1
        where, byte = f"{path}, line {number}", content[error.start]
        raise ValueError(f"{where}: byte {error.start - begin + 1} is 0x{byte:02x}, which is no UTF-8 text") from error
    texts = [line.removesuffix("\r") for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"{path} is empty: it should hold one text a line")
    return texts


@dataclass(eq=False)
class PlainConfig(tfds.core.BuilderConfig):
    """The texts that were read; the name is the digest of their content."""

    name: str = ""
    splits: dict[str, Pairs] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.name = content_digest(self.splits)


class PlainText(tfds.core.GeneratorBasedBuilder):
    """Texts from files of the user's own."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description=__doc__, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(texts.sources) for name, texts in self.builder_config.splits.items()}

    def _generate_examples(self, texts: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
        for row, text in enumerate(texts):
            yield row, {"text": text}


def plain_text(
    train: Path | str,
    *,
    dev: Path | str | None = None,
    test: Path | str | None = None,
    tokenizer: str = "sentencepiece",
    vocabulary_size: int | None = None,
    batch_size: int = 32,
    width: int = 256,
    data_dir: Path | str | None = None,
) -> LanguageData:
    """The user's own texts, one a line, for a causal language model; blank lines are passed over.

    A split that is not given is held out from train (`notes` says how many texts). The vocabulary comes from train,
    `vocabulary_size` bounds it (8,000 pieces for SentencePiece, otherwise all symbols, unless told). A batch has
    `batch_size` rows of `width` places, each with as many texts as it holds.

    Raises:
        ValueError: one sentence with the file and line number that is wrong, or the wrong argument.
    """
    check_kind(tokenizer)
    files = {name: path for name, path in (("train", train), ("dev", dev), ("test", test)) if path is not None}
    given = {name: read_texts(path) for name, path in files.items()}
    splits, notes = hold_out({name: Pairs(texts, texts) for name, texts in given.items()})
    builder = prepared(PlainText, PlainConfig(splits=splits), data_dir)
    texts = {name: read_plain(builder, name, ("text", "text")).sources for name in ("train", "dev", "test")}
    return LanguageData(
        texts,
        fit(tokenizer, texts["train"], vocabulary_size),
        batch_size=batch_size,
        width=width,
        notes=[note.replace(" training pairs ", " training texts ") for note in notes],
    )

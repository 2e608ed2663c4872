"""The user's own parallel text: two aligned files or one TSV file for train, and for dev and test if there are any."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from attention_zoo.data.prepare import as_text, examples, prepared
from attention_zoo.data.text import Pairs, TextData
from attention_zoo.data.vocabulary import Tokenizer, check_kind, fit

# The longest sequence kept unless told otherwise, in tokens, the end mark counted.
LONGEST = {"characters": 400, "words": 100, "sentencepiece": 128}
HELD_OUT, MOST_HELD_OUT = 0.05, 2_000  # the share of train that becomes a missing dev or test, and its largest size


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file; only a line feed ends a line, so that both sides are counted alike.

    Raises:
        ValueError: the file is missing, empty or unreadable, or a line is empty or no UTF-8 (its number is told).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise ValueError(f"{path} is empty: it should hold one text a line")
    rows = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    return [_line(path, number, row) for number, row in enumerate(rows, start=1)]


def _line(path: Path, number: int, row: bytes) -> str:
    try:
        text = row.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: byte {error.start + 1} is 0x{row[error.start]:02x}, which is no UTF-8 text"
        ) from error
    if not text.strip():
        raise ValueError(f"{path}, line {number}: the line is empty; remove it, and its partner in the other file")
    return text


def read_pairs(source: Path | str, target: Path | str | None = None) -> Pairs:
    """Two aligned files, line by line, or with no `target` one TSV file: source, tab, target.

    Raises:
        ValueError: a file as `read_lines` says; unequal line counts (both are told); a TSV line that has not
            exactly one tab, or nothing on one side of it (its number is told).
    """
    source = Path(source)
    if target is None:
        rows = [_columns(source, number, line) for number, line in enumerate(read_lines(source), start=1)]
        return Pairs([row[0] for row in rows], [row[1] for row in rows])
    target = Path(target)
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        raise ValueError(
            f"{source} has {len(sources):,} lines and {target} has {len(targets):,}: "
            "line n of the one must be the translation of line n of the other"
        )
    return Pairs(sources, targets)


def _columns(path: Path, number: int, line: str) -> list[str]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise ValueError(
            f"{path}, line {number}: {len(columns) - 1} tabs, where one is expected between source and target"
        )
    for side, text in zip(("source", "target"), columns, strict=True):
        if not text.strip():
            raise ValueError(f"{path}, line {number}: the {side} is empty")
    return columns


def hold_out(splits: Mapping[str, Pairs]) -> tuple[dict[str, Pairs], list[str]]:
    """Fills in a missing dev or test from train, and says so in a sentence each.

    A missing split gets 5 % of the pairs, 2,000 at most. Which ones depends on the source text alone (the
    smallest SHA-256), so pairs with the same source stay on one side and a re-ordered file is split alike.

    Raises:
        ValueError: there are too few different sources to hold any out.
    """
    filled, notes = dict(splits), []
    for name in ("dev", "test"):
        if name in filled:
            continue
        train, size = filled["train"], len(splits["train"].sources)
        ranked = sorted(set(train.sources), key=lambda text: hashlib.sha256(f"{name} {text}".encode()).digest())
        wanted = min(MOST_HELD_OUT, max(1, round(HELD_OUT * size)))
        chosen = set(ranked[: min(wanted, len(ranked) - 1)])
        if not chosen:
            raise ValueError(f"train has too few different sources to hold out a {name} split: give one")
        filled["train"] = _select(train, [text not in chosen for text in train.sources])
        filled[name] = _select(train, [text in chosen for text in train.sources])
        taken = len(filled[name].sources)
        notes.append(f"{name}: {taken:,} of {size:,} training pairs held out, as no {name} was given")
    return filled, notes


def _select(pairs: Pairs, chosen: Sequence[bool]) -> Pairs:
    return Pairs(
        [text for text, take in zip(pairs.sources, chosen, strict=True) if take],
        [text for text, take in zip(pairs.targets, chosen, strict=True) if take],
    )


def content_digest(splits: Mapping[str, Pairs]) -> str:
    """16 hexadecimal digits of the texts themselves: another file content is another data set."""
    sha = hashlib.sha256()
    for name, pairs in splits.items():
        for text in (name, *pairs.sources, "", *pairs.targets):
            sha.update(text.encode() + b"\n")
    return sha.hexdigest()[:16]


@dataclass(eq=False)
class ParallelConfig(tfds.core.BuilderConfig):
    """The pairs that were read; the name is the digest of their content."""

    name: str = ""
    splits: dict[str, Pairs] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.name = content_digest(self.splits)


class ParallelText(tfds.core.GeneratorBasedBuilder):
    """Pairs of a text and its translation, from files of the user's own."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"source": tfds.features.Text(), "target": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("source", "target"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(pairs) for name, pairs in self.builder_config.splits.items()}

    def _generate_examples(self, pairs: Pairs) -> Iterator[tuple[int, dict[str, str]]]:
        for row, (source, target) in enumerate(zip(pairs.sources, pairs.targets, strict=True)):
            yield row, {"source": source, "target": target}


def parallel_text(
    train_source: Path | str,
    train_target: Path | str | None = None,
    *,
    dev_source: Path | str | None = None,
    dev_target: Path | str | None = None,
    test_source: Path | str | None = None,
    test_target: Path | str | None = None,
    tokenizer: str = "sentencepiece",
    vocabulary_size: int | None = None,
    shared_vocabulary: bool = False,
    batch_size: int = 64,
    max_source: int | None = None,
    max_target: int | None = None,
    buckets: int | None = None,
    data_dir: Path | str | None = None,
) -> TextData:
    """The user's own parallel text; a source file without its target file is read as TSV.

    A split that is not given is held out from train (`notes` says how many pairs). The vocabulary comes from
    train, `vocabulary_size` bounds it (8,000 pieces for SentencePiece, otherwise all symbols, unless told), and
    `shared_vocabulary` makes one for both sides. Pairs over `max_source` or `max_target` tokens, the end mark
    counted, are left out and counted.

    Raises:
        ValueError: one sentence with the file and line number that is wrong, or the wrong argument.
    """
    files = {"train": (train_source, train_target), "dev": (dev_source, dev_target), "test": (test_source, test_target)}
    for name, (source, target) in files.items():
        if source is None and target is not None:
            raise ValueError(f"{name}_target is given without {name}_source")
    check_kind(tokenizer)
    given = {name: read_pairs(source, target) for name, (source, target) in files.items() if source is not None}
    splits, notes = hold_out(given)
    builder = prepared(ParallelText, ParallelConfig(splits=splits), data_dir)
    return text_data(
        {name: read_plain(builder, name) for name in ("train", "dev", "test")},
        tokenizer=tokenizer,
        vocabulary_size=vocabulary_size,
        shared_vocabulary=shared_vocabulary,
        batch_size=batch_size,
        max_source=max_source,
        max_target=max_target,
        buckets=buckets,
        notes=notes,
    )


def text_data(
    splits: Mapping[str, Pairs],
    *,
    tokenizer: str,
    vocabulary_size: int | None,
    shared_vocabulary: bool,
    max_source: int | None,
    max_target: int | None,
    **settings: Any,
) -> TextData:
    """Pairs with vocabularies made from their `train`; `settings` go to `TextData`."""
    train = splits["train"]
    source: Tokenizer
    target: Tokenizer
    if shared_vocabulary:
        source = target = fit(tokenizer, [*train.sources, *train.targets], vocabulary_size)
    else:
        source, target = (fit(tokenizer, texts, vocabulary_size) for texts in (train.sources, train.targets))
    longest = LONGEST[tokenizer]
    return TextData(
        splits, source, target, max_source=max_source or longest, max_target=max_target or longest, **settings
    )


def read_plain(builder: tfds.core.DatasetBuilder, split: str, keys: Sequence[str] = ("source", "target")) -> Pairs:
    """A split of a data set whose examples are pairs of texts."""
    sources, targets = [], []
    for row in examples(builder, split):
        sources.append(as_text(row[keys[0]]))
        targets.append(as_text(row[keys[1]]))
    return Pairs(sources, targets)

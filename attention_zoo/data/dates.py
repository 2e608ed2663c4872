"""Dates as people write them in 23 languages, to ISO: `mardi 3 mai 2016` -> `2016-05-03`, with gold alignments.

Source: the Unicode CLDR's date formats, as the installed package Babel carries them. No network.
"""

import datetime
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import babel
import numpy as np
import tensorflow_datasets as tfds
from babel.dates import DateTimeFormat, parse_pattern, tokenize_pattern

from attention_zoo.data.prepare import as_text, examples, prepared
from attention_zoo.data.text import Pairs, TextData
from attention_zoo.data.vocabulary import Characters

# CLDR locales: 24 of them for 23 languages, English as it is written in America and in Britain.
LANGUAGES = (
    *("en", "en_GB", "de", "nl", "sv", "da", "nb", "fr", "es", "ca", "it", "pt", "ro"),
    *("pl", "cs", "sk", "ru", "uk", "bg", "fi", "et", "hu", "tr", "el"),
)
STYLES = ("full", "long", "medium")
FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
SEPARATOR = "; "
TYPED = 0.25  # the share of dates in lower case, without the special spaces and apostrophes of printed text
KEYBOARD = str.maketrans("\u00a0\u202f\u2019\u02bc", "  ''")
# The part of a date (year, month, day: 0, 1, 2) behind each character of YYYY-MM-DD; -1: a hyphen.
PARTS = np.array([0, 0, 0, 0, -1, 1, 1, -1, 2, 2])


class Piece(NamedTuple):
    """A stretch of a date pattern: its text for every value it can take, and what it tells."""

    field: str  # "year", "month", "day", "weekday", or "" for text between
    texts: dict[int, str]


class Written(NamedTuple):
    """A date as text, and the [start, end) of its year, month and day in it."""

    text: str
    spans: tuple[tuple[int, int], ...]


def pattern_of(language: str, style: str) -> str:
    """The CLDR pattern of a style ("full", "long" or "medium") in a language."""
    return babel.Locale.parse(language).date_formats[style].pattern


def forms(languages: Sequence[str]) -> list[tuple[str, str]]:
    """Every (language, pattern) that writes the month as a word: all-digit dates are often ambiguous."""
    every = {(language, pattern_of(language, style)): None for language in languages for style in STYLES}
    return [form for form in every if "MMM" in form[1] or "LLL" in form[1]]


@cache
def pieces(language: str, pattern: str) -> tuple[Piece, ...]:
    """A pattern taken apart, each piece worded by Babel, so that spans are right by construction."""
    locale = babel.Locale.parse(language)
    return tuple(_piece(kind, value, locale) for kind, value in tokenize_pattern(parse_pattern(pattern).pattern))


def _piece(kind: str, value: Any, locale: babel.Locale) -> Piece:
    if kind == "chars":
        return Piece("", {0: value})
    letter, count = value
    days = {
        "year": [datetime.date(year, 1, 1) for year in range(FIRST.year, LAST.year + 1)],
        "month": [datetime.date(2000, month, 1) for month in range(1, 13)],
        "day": [datetime.date(2000, 1, day) for day in range(1, 32)],
        "weekday": [datetime.date(2000, 1, day) for day in range(1, 8)],
    }
    field = {"y": "year", "M": "month", "L": "month", "d": "day", "E": "weekday", "c": "weekday"}[letter]
    worded = {_value(day, field): DateTimeFormat(day, locale)[letter * count] for day in days[field]}
    return Piece(field, worded)


def _value(day: datetime.date, field: str) -> int:
    """What a field tells of a day, as the key of its piece's texts."""
    if field == "":
        return 0
    return day.weekday() if field == "weekday" else getattr(day, field)


def write(day: datetime.date, language: str, pattern: str, typed: bool = False) -> Written:
    """A date in a pattern of a language; `typed` as at a keyboard: lower case, plain spaces and apostrophes."""
    text, spans = "", {}
    for field, texts in pieces(language, pattern):
        worded = texts[_value(day, field)]
        if typed:
            worded = worded.lower().translate(KEYBOARD)
        spans[field] = (len(text), len(text) + len(worded))
        text += worded
    return Written(text, (spans["year"], spans["month"], spans["day"]))


def write_all(days: Sequence[datetime.date], writings: Sequence[tuple[str, str, bool]]) -> dict[str, Any]:
    """One example of the data set: the dates one after the other, and the spans `[dates, 3, 2]` in the whole."""
    text, spans = "", []
    for day, (language, pattern, typed) in zip(days, writings, strict=True):
        text += SEPARATOR if text else ""
        written = write(day, language, pattern, typed)
        spans.append([(len(text) + start, len(text) + end) for start, end in written.spans])
        text += written.text
    return {
        "source": text,
        "target": " ".join(day.isoformat() for day in days),
        "spans": np.array(spans, np.int32),
    }


@dataclass(eq=False)
class DatesConfig(tfds.core.BuilderConfig):
    """What the data depends on; the name says all of it, so that changed settings never meet old files."""

    name: str = ""
    dates_per_source: int = 1
    train_examples: int = 20_000
    dev_examples: int = 2_500
    test_examples: int = 2_500
    languages: tuple[str, ...] = LANGUAGES
    data_seed: int = 0

    def __post_init__(self) -> None:
        sizes = f"{self.train_examples}-{self.dev_examples}-{self.test_examples}"
        languages = f"{len(self.languages)}languages-{zlib.crc32(' '.join(self.languages).encode()):08x}"
        self.name = f"{self.dates_per_source}dates-{sizes}-{languages}-seed{self.data_seed}-babel{babel.__version__}"


class Dates(tfds.core.GeneratorBasedBuilder):
    """Written dates and their ISO form; no calendar day is in two splits."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [DatesConfig(dates_per_source=number) for number in (1, 2, 3)]

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (self.builder_config.dates_per_source, 3, 2)
        features = {
            "source": tfds.features.Text(),
            "target": tfds.features.Text(),
            "spans": tfds.features.Tensor(shape=shape, dtype=np.int32, doc="[start, end) of year, month and day"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("source", "target"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        config = self.builder_config
        rng = np.random.default_rng(config.data_seed)
        days = rng.permutation(np.arange(FIRST.toordinal(), LAST.toordinal() + 1))
        dev, test = config.dev_examples, config.dev_examples + config.test_examples
        return {
            "train": self._generate_examples(days[test:], config.train_examples, rng),
            "dev": self._generate_examples(days[:dev], config.dev_examples, rng),
            "test": self._generate_examples(days[dev:test], config.test_examples, rng),
        }

    def _generate_examples(
        self, days: np.ndarray, number: int, rng: np.random.Generator
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        config, every = self.builder_config, forms(self.builder_config.languages)
        shape = (number, config.dates_per_source)
        rounds = -(-number * config.dates_per_source // len(days))
        chosen = np.concatenate([rng.permutation(days) for _ in range(rounds)])[: number * shape[1]].reshape(shape)
        which, typed = rng.integers(len(every), size=shape), rng.random(shape) < TYPED
        for row in range(number):
            written = [datetime.date.fromordinal(int(day)) for day in chosen[row]]
            yield row, write_all(written, [(*every[k], bool(t)) for k, t in zip(which[row], typed[row], strict=True)])


def dates(
    batch_size: int = 128,
    dates_per_source: int = 1,
    *,
    languages: Sequence[str] = LANGUAGES,
    train_examples: int = 20_000,
    dev_examples: int = 2_500,
    test_examples: int = 2_500,
    data_seed: int = 0,
    buckets: int | None = None,
    data_dir: Path | str | None = None,
) -> TextData:
    """Written dates to ISO dates, both by characters, with gold spans; prepared at first use, in seconds.

    With `dates_per_source` above 1 a source has several dates, joined by "; ", and its target as many, joined by
    spaces. The defaults of the other arguments are the data set that the experiments report on.

    Raises:
        ValueError: an argument is out of range, or a language is unknown to Babel.
    """
    _check(languages, dates_per_source, train_examples, dev_examples, test_examples)
    config = DatesConfig(
        dates_per_source=dates_per_source,
        train_examples=train_examples,
        dev_examples=dev_examples,
        test_examples=test_examples,
        languages=tuple(languages),
        data_seed=data_seed,
    )
    builder = prepared(Dates, config, data_dir)
    splits = {name: read(builder, name) for name in ("train", "dev", "test")}
    return TextData(
        splits,
        Characters.fit(splits["train"].sources),
        Characters.fit(splits["train"].targets),
        batch_size=batch_size,
        max_source=64 * dates_per_source,
        max_target=11 * dates_per_source,
        buckets=buckets,
    )


def read(builder: tfds.core.DatasetBuilder, split: str) -> Pairs:
    """A prepared split, with a gold span for every character of the target."""
    rows = list(examples(builder, split))
    number = builder.builder_config.dates_per_source
    # What stands behind each target character: 3 * date + part, or -1 for hyphens, spaces and the end mark.
    part = np.concatenate([[*np.where(PARTS < 0, -1, PARTS + 3 * date), -1] for date in range(number)])
    fields = np.stack([row["spans"] for row in rows]).reshape(len(rows), 3 * number, 2)
    spans = np.where((part < 0)[:, None], 0, fields[:, part])
    return Pairs([as_text(row["source"]) for row in rows], [as_text(row["target"]) for row in rows], spans)


def _check(languages: Sequence[str], dates_per_source: int, *sizes: int) -> None:
    if dates_per_source < 1 or min(sizes) < 1:
        raise ValueError("dates_per_source and the numbers of examples must be at least 1")
    held_out, days = sum(sizes[1:]), (LAST - FIRST).days + 1
    if held_out >= days:
        raise ValueError(f"dev and test ask for {held_out:,} days, and there are {days:,} to be shared with train")
    for language in languages:
        try:
            babel.Locale.parse(language)
        except (babel.UnknownLocaleError, ValueError) as error:
            raise ValueError(f"Babel knows no language '{language}'") from error
    if not forms(languages):
        raise ValueError(f"none of the languages {', '.join(languages)} writes a month as a word")

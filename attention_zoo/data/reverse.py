"""The reverse task: a sequence of integers, to be written backwards. A fixed context cannot hold a long one.

Sizes and lengths are those of JoeyNMT's `scripts/generate_reverse_task.py`: 50,000 training and 1,000 dev and
test sequences of integers below 50, 1 to 25 long in training, 1 to 30 long in dev and test.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from attention_zoo.data.prepare import as_text, examples, prepared
from attention_zoo.data.text import Pairs, TextData
from attention_zoo.data.vocabulary import Words


@dataclass(eq=False)
class ReverseConfig(tfds.core.BuilderConfig):
    """What the data depends on, all of it in the name."""

    name: str = ""
    train_examples: int = 50_000
    dev_examples: int = 1_000
    test_examples: int = 1_000
    symbols: int = 50
    train_length: int = 25
    test_length: int = 30
    data_seed: int = 42

    def __post_init__(self) -> None:
        sizes = f"{self.train_examples}-{self.dev_examples}-{self.test_examples}"
        lengths = f"length{self.train_length}-{self.test_length}"
        self.name = f"{sizes}-{self.symbols}symbols-{lengths}-seed{self.data_seed}"


class Reverse(tfds.core.GeneratorBasedBuilder):
    """Sequences of integers and the same sequences backwards."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [ReverseConfig()]

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
        config = self.builder_config
        train, dev, test = (np.random.default_rng([config.data_seed, split]) for split in range(3))
        return {
            "train": self._generate_examples(config.train_examples, config.train_length, train),
            "dev": self._generate_examples(config.dev_examples, config.test_length, dev),
            "test": self._generate_examples(config.test_examples, config.test_length, test),
        }

    def _generate_examples(self, number: int, longest: int, rng: np.random.Generator) -> Iterator[tuple[int, dict]]:
        for row in range(number):
            integers = rng.integers(self.builder_config.symbols, size=rng.integers(1, longest + 1)).astype(str)
            yield row, {"source": " ".join(integers), "target": " ".join(integers[::-1])}


def reverse(
    batch_size: int = 10,
    *,
    train_examples: int = 50_000,
    dev_examples: int = 1_000,
    test_examples: int = 1_000,
    symbols: int = 50,
    train_length: int = 25,
    test_length: int = 30,
    data_seed: int = 42,
    buckets: int | None = None,
    data_dir: Path | str | None = None,
) -> TextData:
    """The reverse task, by words, with gold spans; the defaults are JoeyNMT's sizes and batch.

    Raises:
        ValueError: an argument is below 1.
    """
    sizes: dict[str, Any] = {
        "train_examples": train_examples,
        "dev_examples": dev_examples,
        "test_examples": test_examples,
        "symbols": symbols,
        "train_length": train_length,
        "test_length": test_length,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}: it must be at least 1")
    builder = prepared(Reverse, ReverseConfig(data_seed=data_seed, **sizes), data_dir)
    splits = {}
    for name in ("train", "dev", "test"):
        rows = list(examples(builder, name))
        sources = [as_text(row["source"]) for row in rows]
        splits[name] = Pairs(sources, [as_text(row["target"]) for row in rows], _spans(sources))
    words = Words.fit(splits["train"].sources)
    longest = max(train_length, test_length) + 1
    return TextData(
        splits, words, words, batch_size=batch_size, max_source=longest, max_target=longest, buckets=buckets
    )


def _spans(sources: Sequence[str]) -> np.ndarray:
    """The source word that each target word is: the t-th from the end, [rows, longest, 2]."""
    lengths = np.array([len(source.split()) for source in sources])
    last = lengths[:, None] - 1 - np.arange(lengths.max())
    return np.where(last[..., None] < 0, 0, np.stack([last, last + 1], -1)).astype(np.int32)

import numpy as np
import pytest

from attention_zoo.data import reverse
from attention_zoo.data.reverse import Reverse, ReverseConfig


def test_sizes_and_lengths_are_joeynmts(tmp_path):
    splits = Reverse(data_dir=tmp_path)._split_generators(None)
    found = {name: [example["source"].split() for _, example in rows] for name, rows in splits.items()}
    assert {name: len(rows) for name, rows in found.items()} == {"train": 50_000, "dev": 1_000, "test": 1_000}
    for name, longest in (("train", 25), ("dev", 30), ("test", 30)):
        lengths = [len(row) for row in found[name]]
        assert set(lengths) == set(range(1, longest + 1))
        assert abs(sum(lengths) / len(lengths) - (longest + 1) / 2) < 1  # uniform
    assert {int(word) for row in found["train"] for word in row} == set(range(50))


def test_targets_are_sources_backwards():
    data = reverse(train_examples=53, dev_examples=11, test_examples=7)
    for name in ("train", "dev", "test"):
        assert [text.split()[::-1] for text in data.sources(name)] == [text.split() for text in data.references(name)]
    assert data.source is data.target
    assert set(data.skipped.values()) == {0}


def test_a_gold_span_is_the_word_itself():
    data = reverse(4, train_examples=53, dev_examples=11, test_examples=7)
    for batch in data.split("dev"):
        for row in range(batch["valid"].sum()):
            words = batch["target_lengths"][row] - 1  # without END
            start, end = batch["spans"][row].T
            np.testing.assert_array_equal(end[:words] - start[:words], 1)
            np.testing.assert_array_equal(batch["source"][row][start[:words]], batch["target"][row][:words])
            np.testing.assert_array_equal(start[:words], np.arange(words)[::-1])
            np.testing.assert_array_equal(batch["spans"][row][words:], 0)


def test_the_seed_decides(tmp_path):
    def sources(seed):
        return reverse(train_examples=53, dev_examples=11, test_examples=7, data_seed=seed).sources("train")

    assert sources(3) == sources(3) != sources(4)


def test_every_setting_is_in_the_name():
    settings = [
        "train_examples",
        "dev_examples",
        "test_examples",
        "symbols",
        "train_length",
        "test_length",
        "data_seed",
    ]
    assert len({ReverseConfig(**{name: 3}).name for name in settings} | {ReverseConfig().name}) == 8


def test_settings_below_one():
    with pytest.raises(ValueError, match="train_length is 0: it must be at least 1"):
        reverse(train_length=0)

"""The input benchmark at its smallest size: the same examples, and padding counted as one would by hand."""

import numpy as np
import pytest

from attention_zoo.data.batches import MOST_PADDING
from attention_zoo.training import UserError
from benchmarks import input as pipelines

LENGTHS = [[2, 3, 5], [7, 1, 1]]
SIDES = ("source", "target")


def examples():
    return [tuple(np.arange(1, length + 1, dtype=np.int32) for length in pair) for pair in zip(*LENGTHS, strict=True)]


def batch(rows, widths):
    made = {}
    for number, (name, width) in enumerate(zip(SIDES, widths, strict=True)):
        made[name] = np.stack([np.pad(row[number], (0, width - len(row[number]))) for row in rows])
        made[f"{name}_lengths"] = np.array([len(row[number]) for row in rows], np.int32)
    return made


def pipeline(rows):
    read = [batch(rows[:1], (5, 7)), batch(rows[1:], (5, 7))]
    return pipelines.Pipeline(SIDES, lambda: read, lambda one: pipelines._pairs(one, SIDES))


def test_every_pipeline_gives_the_examples_of_a_plain_loop():
    rows = [*pipelines.benchmark("small", repetitions=1)]
    texts = [row for row in rows if not row.case.startswith("captions")]
    assert [row.implementation for row in texts] == ["attention_zoo", *pipelines.PEERS] * 3
    assert all(row.error_vs_reference == 0 and row.examples_per_second > 0 for row in rows)
    for ours, own, one in zip(texts[::3], texts[1::3], texts[2::3], strict=True):
        assert 0 < ours.padding_waste < one.padding_waste
        assert 0 < own.padding_waste < one.padding_waste
    packed = next(row for row in rows if row.case.startswith("language"))
    assert packed.shapes == 1 and packed.padding_waste < MOST_PADDING
    assert rows[-1].case == "captions, B11" and rows[-1].shapes == 1


def test_padding_of_loops_by_hand():
    ours = pipeline(examples())
    one, own = (pipelines.plain(ours, 1, load()) for load in reversed(list(pipelines.PEERS.values())))
    places = [[batch[name].shape[1] for batch in loop.read() for name in SIDES] for loop in (ours, one, own)]
    assert [sum(widths) for widths in places] == [24, 36, 19]  # ours has two batches, the loops have three
    assert all(pipelines._checksum(loop)(loop.read()).tolist() == pipelines._checksum(ours)(ours.read()).tolist()
               for loop in (one, own))  # fmt: skip


def test_captions_are_padded_to_the_longest_that_can_be():
    row = [*pipelines.benchmark("small", repetitions=1, peers=())][-1]
    assert row.implementation == "attention_zoo"
    # One to four digits and the end mark in five places: 2, 3, 4 or 5 of them are used, each as often.
    assert 0 < row.padding_waste < 0.6


@pytest.mark.parametrize("change", ["missing", "twice", "other"])
def test_other_examples_are_refused(monkeypatch, change):
    rows = examples()
    wrong = {"missing": rows[:2], "twice": [*rows[:2], rows[1]], "other": [*rows[:2], (rows[2][0] + 1, rows[2][1])]}
    monkeypatch.setattr(pipelines, "_pipelines", lambda width: {"dates": lambda number, size: pipeline(rows)})
    monkeypatch.setitem(pipelines.SIZES, "small", {"dates": (3, 2)})
    monkeypatch.setattr(pipelines, "plain", lambda ours, size, width: pipeline(wrong[change]))
    with pytest.raises(UserError, match="dates, B2: plain loop to a batch's longest differs from attention_zoo"):
        [*pipelines.benchmark("small", repetitions=1)]


def test_an_unknown_size():
    with pytest.raises(UserError, match="there is no size 'large'; there are small, paper"):
        [*pipelines.benchmark("large")]

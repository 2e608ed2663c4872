"""Accuracy against source length: the bins by hand, the interval against scipy's, and what is drawn."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from attention_zoo.figures import accuracy_by_length, draw_accuracy_by_length, save

LENGTHS = np.array([2, 3, 3, 5, 5, 7, 11])
CORRECT = np.array([True, True, False, False, False, True, True])


def test_bins_by_hand() -> None:
    binned = accuracy_by_length(LENGTHS, CORRECT, np.array([2, 5, 7, 11]))
    assert binned.counts.tolist() == [3, 2, 1]  # 11 is on the last edge, so outside
    np.testing.assert_allclose(binned.accuracy, [2 / 3, 0, 1])


def test_an_empty_bin_has_no_accuracy() -> None:
    binned = accuracy_by_length(LENGTHS, CORRECT, np.array([2, 8, 10, 12]))
    assert binned.counts.tolist() == [6, 0, 1]
    assert np.isnan([binned.accuracy[1], binned.low[1], binned.high[1]]).all()


@pytest.mark.parametrize(("right", "total"), [(0, 13), (13, 13), (5, 13), (1, 1), (997, 1009)])
def test_the_interval_is_wilsons(right: int, total: int) -> None:
    binned = accuracy_by_length(np.full(total, 3), np.arange(total) < right, np.array([3, 4]))
    wanted = binomtest(right, total).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose([binned.low[0], binned.high[0]], [wanted.low, wanted.high], atol=1e-6)


@pytest.mark.parametrize("edges", [[3], [3, 3], [5, 3]])
def test_edges_must_rise(edges: list[int]) -> None:
    with pytest.raises(ValueError, match="at least two and rise"):
        accuracy_by_length(LENGTHS, CORRECT, np.array(edges))


def test_runs_share_bins_that_hold_every_example(tmp_path: Path) -> None:
    runs = {"attention": (LENGTHS, CORRECT), "_fixed": (LENGTHS[:5], ~CORRECT[:5])}
    figure = draw_accuracy_by_length(runs, bins=5)
    save(figure, tmp_path / "length.png")
    axes = figure.axes[0]
    # Widths of 2 from length 2; where the runs differ in examples, the fewest and the most are written.
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["2–3\n3", "4–5\n2", "6–7\n0–1", "8–9\n0", "10–11\n0–1"]
    attention, fixed = axes.lines
    np.testing.assert_allclose(attention.get_xydata(), [(0, 2 / 3), (1, 0), (2, 1), (4, 1)])
    np.testing.assert_allclose(fixed.get_xydata(), [(0, 1 / 3), (1, 1)])
    assert len(axes.collections) == 2  # a band each
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["attention", "_fixed"]


def test_one_length_only_is_one_bin() -> None:
    figure = draw_accuracy_by_length({"a": (np.full(7, 3), np.ones(7, bool))})
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["3\n7"]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "no run"),
        ({"a": (LENGTHS, CORRECT[:3])}, "Run a has 7 lengths but 3 correct flags"),
        ({"a": (LENGTHS[:0], CORRECT[:0])}, "Run a has no examples"),
    ],
)
def test_bad_input_is_one_sentence(runs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_accuracy_by_length(runs)

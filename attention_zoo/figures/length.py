"""Accuracy against source length: where a fixed context gives way and attention does not (Bahdanau 2014, figure 2)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attention_zoo.figures.canvas import COLOURS, QUIET, blank, legend
from attention_zoo.notation import ArrayLike, Bool, Int, checked

Z95 = 1.959964  # the normal quantile of a two-sided 95 % interval


class LengthBins(NamedTuple):
    """Accuracy of the examples in each bin of source lengths; bins without examples have NaN.

    edges: int [K + 1]; bin k holds lengths in [edges[k], edges[k + 1]).
    counts: int [K], examples.
    accuracy: [K], the fraction correct.
    low, high: [K], Wilson's 95 % interval.
    """

    edges: np.ndarray
    counts: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray


@checked
def accuracy_by_length(
    lengths: Int[ArrayLike, "B"], correct: Bool[ArrayLike, "B"], edges: Int[ArrayLike, "K1"]
) -> LengthBins:
    r"""Fraction correct by source length, with Wilson's 95 % interval (Wilson 1927).

    `(p + z^2 / 2n \pm z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`: it stays within [0, 1] and keeps
    its width at p = 0 and p = 1, where the textbook interval is empty.

    Args:
        lengths: source positions of each example, [B].
        correct: whether the example was wholly right, [B].
        edges: rising bin edges, [K + 1]; examples outside are left out.

    >>> accuracy_by_length(np.array([2, 3, 8]), np.array([True, False, True]), np.array([0, 5, 10])).accuracy
    array([0.5, 1. ])
    """
    edges = np.asarray(edges)
    if len(edges) < 2 or (np.diff(edges) <= 0).any():
        raise ValueError(f"Bin edges must be at least two and rise, not {edges.tolist()}.")
    counts, _ = np.histogram(lengths, _half_open(edges))
    right, _ = np.histogram(np.asarray(lengths)[np.asarray(correct)], _half_open(edges))
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = right / counts
        low, high = _wilson(fraction, counts)
    return LengthBins(edges, counts, fraction, low, high)


def _half_open(edges: np.ndarray) -> np.ndarray:
    # numpy's last bin is closed on the right; lengths are whole numbers, so half a step less leaves the edge out.
    return np.append(edges[:-1], edges[-1] - 0.5)


def _wilson(fraction: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = Z95**2 / counts
    middle = (fraction + share / 2) / (1 + share)
    half = np.sqrt(share * fraction * (1 - fraction) + share**2 / 4) / (1 + share)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def draw_accuracy_by_length(
    runs: Mapping[str, tuple[Int[ArrayLike, "B"], Bool[ArrayLike, "B"]]],
    bins: int = 10,
    measure: str = "exact match",
) -> Figure:
    """Several runs' accuracy against source length in one picture, with 95 % bands and the number of examples.

    Args:
        runs: a name for the legend -> (lengths [B], correct [B]); all runs share the bins.
        bins: how many bins of equal width at most.
        measure: what `correct` says, for the axis.

    Raises:
        ValueError: there is no run, a run has no examples, or its two arrays differ in length.
    """
    _refuse(runs)
    edges = _edges(np.concatenate([np.asarray(lengths) for lengths, _ in runs.values()]), bins)
    found = {name: accuracy_by_length(*run, edges) for name, run in runs.items()}
    figure = blank(7.0, 4.2)
    axes = figure.add_subplot()
    for colour, (name, binned) in zip(_cycle(len(found)), found.items(), strict=True):
        _line(axes, name, binned, colour)
    _name_bins(axes, list(found.values()))
    axes.set(ylim=(-0.03, 1.03), ylabel=measure)
    legend(axes, loc="lower left")
    return figure


def _refuse(runs: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    if not runs:
        raise ValueError("There is no run to draw accuracy against length of.")
    for name, (lengths, correct) in runs.items():
        if len(lengths) != len(correct):
            raise ValueError(f"Run {name} has {len(lengths)} lengths but {len(correct)} correct flags.")
        if len(lengths) == 0:
            raise ValueError(f"Run {name} has no examples.")


def _edges(lengths: np.ndarray, bins: int) -> np.ndarray:
    low, high = int(lengths.min()), int(lengths.max()) + 1
    width = -(-(high - low) // bins)
    return np.arange(low, high + width, width)


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _line(axes: Axes, name: str, binned: LengthBins, colour: str) -> None:
    place = np.flatnonzero(binned.counts)
    axes.fill_between(place, binned.low[place], binned.high[place], color=colour, alpha=0.15, linewidth=0)
    axes.plot(place, binned.accuracy[place], color=colour, marker="o", markersize=4, label=name)


def _name_bins(axes: Axes, found: list[LengthBins]) -> None:
    edges = found[0].edges
    counts = np.stack([binned.counts for binned in found])
    names = [
        f"{_range(low, high)}\n{_range(few, many + 1)}"
        for low, high, few, many in zip(edges[:-1], edges[1:], counts.min(0), counts.max(0), strict=True)
    ]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("source length, and examples of that length", fontsize=9)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=QUIET)


def _range(low: int, high: int) -> str:
    return f"{low}" if high - low == 1 else f"{low}–{high - 1}"

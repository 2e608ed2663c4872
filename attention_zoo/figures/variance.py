"""How noisy the estimators of one gradient are, and which of them are biased, in one picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attention_zoo.figures.canvas import COLOURS, QUIET, blank

_UNBIASED, _BIASED = COLOURS[0], COLOURS[1]


def draw_variance(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One line an estimator: its variance on a logarithmic axis, and its bias in words where it has one.

    Args:
        rows: as `python -m benchmarks hard --json FILE` writes them. Of each are read `implementation`, the name;
            `variance`, at 0 drawn on the left edge; `error_vs_reference`, the relative bias, and `bias_bound`: what
            lies above it is marked as biased; `case`, what the bias is measured by, which starts with a word and a
            comma: estimators of one case stand together.

    Raises:
        ValueError: there is no row, or one lacks a number.
    """
    _refuse(rows)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    ordered = [row for case in cases for row in rows if row["case"] == case]
    figure = blank(7.5, 0.9 + 0.27 * len(ordered))
    axes = figure.add_subplot()
    positive = [row["variance"] for row in rows if row["variance"] > 0] or [1.0]
    edge = min(positive) / 4
    for place, row in enumerate(ordered):
        _point(axes, place, row, edge)
        if not place or row["case"] != ordered[place - 1]["case"]:
            _heading(axes, place, row["case"])
    axes.set(xscale="log", xlim=(edge / 1.5, max(positive) * 6), ylim=(len(ordered) - 0.4, -0.6))
    axes.set_yticks(range(len(ordered)), [row["implementation"] for row in ordered], fontsize=8, parse_math=False)
    axes.set_xlabel("variance of one gradient, summed over its entries", fontsize=9)
    _finish(axes)
    return figure


def _refuse(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        raise ValueError("There is no estimator to draw the variance of.")
    for row in rows:
        for name in ("variance", "error_vs_reference", "bias_bound"):
            if not isinstance(row.get(name), (int, float)):
                raise ValueError(f"The row of {row.get('implementation', 'an estimator')} has no number {name!r}.")


def _point(axes: Axes, place: int, row: Mapping[str, Any], edge: float) -> None:
    biased = row["error_vs_reference"] > row["bias_bound"]
    exact = row["variance"] == 0
    value = edge if exact else row["variance"]
    colour = _BIASED if biased else _UNBIASED
    axes.plot([edge / 1.5, value], [place, place], color=colour, linewidth=1, alpha=0.3)
    axes.plot(value, place, marker=_marker(exact, biased), color=colour, markersize=6, linestyle="")
    words = ["no variance"] if exact else []
    words += [f"bias {100 * row['error_vs_reference']:.0f} %"] if biased else []
    axes.annotate(", ".join(words), (value, place), (7, 0), textcoords="offset points", va="center", fontsize=7)


def _heading(axes: Axes, place: int, case: str) -> None:
    if place:
        axes.axhline(place - 0.5, color=QUIET, linewidth=0.6)
    style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8, "color": QUIET, "parse_math": False}
    axes.text(0.995, place, case, transform=axes.get_yaxis_transform(), **style)


def _marker(exact: bool, biased: bool) -> str:
    return "<" if exact else "D" if biased else "o"


def _finish(axes: Axes) -> None:
    kinds = (("no bias found", "o", _UNBIASED), ("biased", "D", _BIASED))
    handles = [Line2D([], [], marker=mark, color=colour, linestyle="", label=name) for name, mark, colour in kinds]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="lower right")
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=QUIET)

"""How costs grow: the exponents of a doubling, one line a mechanism."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attention_zoo.figures.canvas import COLOURS, QUIET, blank

_KINDS = {"time_growth": ("time", "o", COLOURS[0]), "temporaries_growth": ("temporaries", "D", COLOURS[1])}


def draw_growth(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel a letter, one line a mechanism: the exponents of its time and its temporary memory.

    Args:
        rows: each with `implementation`, the name, and `time_growth` and `temporaries_growth`: letter -> exponent, None
            where there is none. All have the same letters.

    Raises:
        ValueError: there is no row, or it names no letter.
    """
    letters = list(rows[0]["time_growth"]) if rows else []
    if not letters:
        raise ValueError("There is no growth to draw.")
    figure = blank(2.2 + 2.0 * len(letters), 0.9 + 0.24 * len(rows))
    panels = figure.subplots(1, len(letters), sharex=True, squeeze=False)[0]
    for axes, letter in zip(panels, letters, strict=True):
        for field, (_, marker, colour) in _KINDS.items():
            points = [(row[field][letter], place) for place, row in enumerate(rows) if row[field][letter] is not None]
            style: dict[str, Any] = {"marker": marker, "color": colour, "markersize": 5, "linestyle": ""}
            axes.plot([value for value, _ in points], [place for _, place in points], **style)
        _finish(axes, letter, len(rows))
        axes.set_yticks(range(len(rows)), [])
    panels[0].set_yticks(range(len(rows)), [row["implementation"] for row in rows], fontsize=8, parse_math=False)
    handles = [Line2D([], [], marker=mark, color=hue, linestyle="", label=name) for name, mark, hue in _KINDS.values()]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside lower center", ncols=len(handles))
    return figure


def _finish(axes: Axes, letter: str, count: int) -> None:
    axes.set_title(f"exponent of {letter}", fontsize=9)
    axes.set_ylim(count - 0.4, -0.6)
    for exponent in (0, 1, 2):
        axes.axvline(exponent, color=QUIET, linewidth=0.6, alpha=0.5)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=QUIET)

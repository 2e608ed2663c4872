"""The alignment heat map: which source position each target token was written from."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attention_zoo.figures.canvas import COLOURS, QUIET, blank
from attention_zoo.figures.labels import families, label, sentence
from attention_zoo.notation import ArrayLike, Float, Int, checked

WIDEST, TALLEST = 16.0, 12.0
LETTERS_AN_INCH = 12
OUTLINE = COLOURS[1]


class _Grid(NamedTuple):
    """Sizes in inches and points: the side of a cell and the letters that fit beside it."""

    cell: float
    font: float
    every: int


@checked
def draw_alignment(
    weights: Float[ArrayLike, "T S"],
    source: Sequence[str],
    target: Sequence[str],
    spans: Int[ArrayLike, "T 2"] | None = None,
    title: str | None = None,
) -> Figure:
    """Heat map of `alpha_ts`, source tokens along the top and target tokens down the side (Bahdanau 2014, figure 3).

    Args:
        weights: alignment weights of one example, without padding, [T, S].
        source: the S source tokens.
        target: the T target tokens.
        spans: gold [start, end) of source positions a target token is written from, outlined; (0, 0) for none.
        title: a line above the picture, such as the source and what it became.

    Returns:
        a figure that grows with the lengths up to 16 x 12 inches; beyond that the cells shrink.

    Raises:
        ValueError: as many labels as weights are not given, a weight is not finite, or a span is outside the source.
    """
    table = np.asarray(weights, np.float32)
    _refuse(table, source, target, spans)
    grid = _grid(*table.shape)
    rows, columns = table.shape
    figure = blank(columns * grid.cell + 1.6, rows * grid.cell + 1.2)
    axes = figure.add_subplot()
    _heat(figure, axes, table, grid)
    _name_columns(axes, source, grid)
    _name_rows(axes, target, grid)
    for span in _merged(np.zeros((0, 2), int) if spans is None else np.asarray(spans)):
        axes.add_patch(span)
    if title:
        lines = textwrap.wrap(sentence(title), max(40, int(LETTERS_AN_INCH * figure.get_figwidth())))
        figure.suptitle("\n".join(lines), fontsize=10, family=list(families()), parse_math=False)
    return figure


@checked
def draw_alignments(panels: Mapping[str, tuple[np.ndarray, Sequence[str], Sequence[str]]], columns: int = 4) -> Figure:
    """Heat maps of several mechanisms side by side: each panel's name, weights [T, S], source and target tokens.

    Raises:
        ValueError: there is no panel, or one of them is refused by `draw_alignment`.
    """
    if not panels:
        raise ValueError("There is no alignment to draw.")
    for weights, source, target in panels.values():
        _refuse(weights, source, target, None)
    tallest, widest = np.max([weights.shape for weights, _, _ in panels.values()], axis=0)
    cell = min(0.16, 5.0 / widest)
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = blank(columns * (widest * cell + 0.7), rows * (tallest * cell + 0.8))
    grid = _Grid(cell, 6.0, max(1, int(np.ceil(6.6 / (cell * 72)))))
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, (weights, source, target)) in zip(every, panels.items(), strict=False):
        # From zero to one in every panel, so that sharp and soft alignments can be told apart.
        axes.imshow(weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
        axes.tick_params(length=0)
        axes.spines[:].set_color("#bbbbbb")
        axes.set_title(name, fontsize=9)
        _name_columns(axes, source, grid)
        _name_rows(axes, target, grid)
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    return figure


def _refuse(table: np.ndarray, source: Sequence[str], target: Sequence[str], spans: ArrayLike | None) -> None:
    if table.shape != (len(target), len(source)):
        raise ValueError(
            f"The alignment has {table.shape[0]} target and {table.shape[1]} source positions, "
            f"but there are {len(target)} target and {len(source)} source tokens."
        )
    if table.size == 0:
        raise ValueError("The alignment is empty: there is nothing to draw.")
    if not np.isfinite(table).all():
        raise ValueError("The alignment has weights that are not finite.")
    if spans is not None:
        low, high = np.asarray(spans).T
        if (low < 0).any() or (high > len(source)).any() or (low > high).any():
            raise ValueError(f"A gold span is not within the {len(source)} source positions.")


def _grid(rows: int, columns: int) -> _Grid:
    cell = min(0.26, WIDEST / columns, TALLEST / rows)
    font = min(10.0, max(5.0, cell * 72 * 0.6))
    return _Grid(cell, font, max(1, int(np.ceil(font * 1.1 / (cell * 72)))))


def _heat(figure: Figure, axes: Axes, table: np.ndarray, grid: _Grid) -> None:
    # From zero, so that white is exactly "did not look"; to the largest weight, so that soft alignments show.
    image = axes.imshow(table, cmap="Blues", vmin=0.0, vmax=max(float(table.max()), 1e-6), aspect="equal")
    axes.set_xticks(np.arange(table.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(table.shape[0] + 1) - 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    if grid.every == 1:
        axes.grid(which="minor", color="#e6e6e6", linewidth=0.4)
    axes.spines[:].set_color("#bbbbbb")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=24, pad=0.02)
    bar.set_label("weight", fontsize=8, color=QUIET)
    bar.ax.tick_params(labelsize=8, colors=QUIET)
    bar.outline.set_visible(False)


def _name_columns(axes: Axes, tokens: Sequence[str], grid: _Grid) -> None:
    shown = range(0, len(tokens), grid.every)
    axes.xaxis.tick_top()
    axes.set_xticks(list(shown))
    names = axes.set_xticklabels(
        [label(tokens[position]) for position in shown],
        fontsize=grid.font,
        family=list(families()),
        parse_math=False,
    )
    # A letter is about 0.65 of its size wide: a label wider than its cells is turned, and words with many such all are.
    wide = [len(name.get_text()) * grid.font * 0.65 > grid.cell * grid.every * 72 for name in names]
    words = sum(wide) > len(wide) / 4
    for name, turned in zip(names, wide, strict=True):
        if turned or words:
            name.set(rotation=60, horizontalalignment="left", rotation_mode="anchor")


def _name_rows(axes: Axes, tokens: Sequence[str], grid: _Grid) -> None:
    shown = range(0, len(tokens), grid.every)
    axes.set_yticks(list(shown))
    axes.set_yticklabels(
        [label(tokens[position]) for position in shown],
        fontsize=grid.font,
        family=list(families()),
        parse_math=False,
    )


def _merged(spans: np.ndarray) -> list[Rectangle]:
    """One outline a block: neighbouring target tokens written from the same span share it."""
    outlines: list[Rectangle] = []
    row = 0
    while row < len(spans):
        start, end = (int(edge) for edge in spans[row])
        last = row
        while last + 1 < len(spans) and tuple(spans[last + 1]) == (start, end):
            last += 1
        if end > start:
            corner, width, height = (start - 0.5, row - 0.5), end - start, last - row + 1
            # Above the grid, whose lines would cut it in two.
            outlines.append(Rectangle(corner, width, height, fill=False, edgecolor=OUTLINE, linewidth=1.4, zorder=4))
        row = last + 1
    return outlines

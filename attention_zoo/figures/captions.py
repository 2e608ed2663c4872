"""A caption over its image: where the model looked for each of the words."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from attention_zoo.figures.canvas import COLOURS, blank
from attention_zoo.figures.labels import families, label, sentence
from attention_zoo.notation import ArrayLike, Float, checked

SIDE = 1.5  # inches of the longer side of a panel
COLUMNS = 6
LETTERS_AN_INCH = 12
LOOKED, TRUE = COLOURS[1], COLOURS[5]
# From nothing, so that what was not looked at is seen as it is.
HEAT = LinearSegmentedColormap.from_list("heat", [to_rgba(LOOKED, 0.0), to_rgba(LOOKED, 0.85)])
GREY = 0.299, 0.587, 0.114  # what the eye makes of red, green and blue (ITU-R BT.601)
_EDGE = (withStroke(linewidth=1.6, foreground="black"),)


@checked
def draw_caption(
    image: Float[ArrayLike, "Y X C"],
    words: Sequence[str],
    weights: Float[ArrayLike, "T S"],
    grid: tuple[int, int],
    *,
    chosen: bool = False,
    probabilities: Float[ArrayLike, "T"] | None = None,
    boxes: Float[ArrayLike, "T 4"] | None = None,
    title: str | None = None,
) -> Figure:
    """The image, then one panel a word: the word above the image, on it what was attended to (Xu 2015, figures 2, 3).

    Soft attention is heat, upsampled smoothly from the grid; the strongest place of each panel has full heat. Hard
    attention is an outline around the chosen cell. Under both a coloured image is grey.

    Args:
        image: one channel or three, in [0, 1], [Y, X, C].
        words: the T words of the caption; of none, the image is drawn alone.
        weights: alignment weights at S locations, row by row, [T, S]; a row of zeros looked at nothing.
        grid: rows and columns of the locations, which share the image evenly.
        chosen: the attention is hard, and the largest weight of each row is at the chosen location.
        probabilities: of the chosen locations, [T], written beside them; the attention is hard then.
        boxes: (top, left, bottom, right) in pixels, bottom and right exclusive, of what each word names, thinly
            outlined, [T, 4]; zeros where nothing is known.
        title: a line above the picture.

    Returns:
        a figure of rows of up to six panels.

    Raises:
        ValueError: there is not a row of weights for each word; the grid has not S locations; the image has neither one
            channel nor three; or a number is not finite.
    """
    given = {"image": image, "weights": weights, "probabilities": probabilities, "boxes": boxes}
    known = {name: np.asarray(array, np.float32) for name, array in given.items() if array is not None}
    _refuse(known, words, grid)
    picture, count = known["image"], len(words)
    figure, (first, *panels) = _panels(picture.shape[:2], count + 1, bool(title))
    _show(first, picture)
    _name(first, "")
    for place, (axes, word) in enumerate(zip(panels, words, strict=True)):
        _show(axes, picture @ np.array(GREY, np.float32)[:, None] if picture.shape[2] == 3 else picture)
        _name(axes, label(word))
        table = known["weights"][place].reshape(grid)
        if table.max() > 0:
            (_outline if chosen or probabilities is not None else _heat)(axes, table)
            if probabilities is not None:
                _write(axes, table, float(known["probabilities"][place]))
        if boxes is not None:
            _true_box(axes, known["boxes"][place])
    if title:
        lines = textwrap.wrap(sentence(title), max(30, int(LETTERS_AN_INCH * figure.get_figwidth())))
        figure.suptitle("\n".join(lines), fontsize=10, family=list(families()), parse_math=False)
    return figure


def _refuse(known: Mapping[str, np.ndarray], words: Sequence[str], grid: tuple[int, int]) -> None:
    if len(known["weights"]) != len(words):
        raise ValueError(f"The caption has {len(words)} words, but there are weights of {len(known['weights'])}.")
    rows, columns = grid
    if rows < 1 or columns < 1 or rows * columns != known["weights"].shape[1]:
        raise ValueError(
            f"A grid of {rows} x {columns} has not the {known['weights'].shape[1]} locations of the weights."
        )
    if known["image"].shape[2] not in (1, 3) or not known["image"].size:
        raise ValueError(f"An image is [height, width, 1 or 3 channels]; got {list(known['image'].shape)}.")
    for name, array in known.items():
        if not np.isfinite(array).all():
            raise ValueError(f"Not all of the {name} are finite.")


def _panels(size: tuple[int, ...], count: int, titled: bool) -> tuple[Figure, list[Axes]]:
    """A figure, and in it as many axes as are counted for images of [height, width], in pixels."""
    height, width = size
    inches = SIDE / max(height, width)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = blank(columns * (max(width * inches, 0.8) + 0.12), rows * (height * inches + 0.32) + 0.3 * titled)
    every = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in every[:count]:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#bbbbbb")
    for axes in every[count:]:
        axes.set_visible(False)
    return figure, every[:count]


def _show(axes: Axes, picture: np.ndarray) -> None:
    """An image [Y, X, C] whose axes are in pixels."""
    height, width = picture.shape[:2]
    shown = np.clip(picture[..., 0] if picture.shape[2] == 1 else picture, 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), interpolation="nearest")


def _name(axes: Axes, word: str) -> None:
    axes.set_title(word, fontsize=10, pad=3, family=list(families()), parse_math=False)


def _heat(axes: Axes, table: np.ndarray) -> None:
    """Weights [rows, columns] over the whole image."""
    extent = (*axes.get_xlim(), *axes.get_ylim())
    axes.imshow(table, cmap=HEAT, vmin=0, vmax=table.max(), extent=extent, interpolation="bicubic")


def _outline(axes: Axes, table: np.ndarray) -> None:
    """The cell with the largest weight, in a line that is seen on black and on white."""
    left, top, width, height = _cell(axes, table)
    outline = Rectangle((left, top), width, height, fill=False, edgecolor=LOOKED, linewidth=1.8, zorder=3)
    outline.set_path_effects([withStroke(linewidth=3.2, foreground="white")])
    axes.add_patch(outline)


def _cell(axes: Axes, table: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, width and height, in pixels, of the cell with the largest weight."""
    rows, columns = table.shape
    row, column = divmod(int(table.argmax()), columns)
    width, height = axes.get_xlim()[1] / columns, axes.get_ylim()[0] / rows
    return column * width, row * height, width, height


def _write(axes: Axes, table: np.ndarray, probability: float) -> None:
    """The probability of the chosen cell, under it, or above it in the lower half of the image."""
    left, top, width, height = _cell(axes, table)
    lower = top + height / 2 > axes.get_ylim()[0] / 2
    place = left + width / 2, top if lower else top + height
    share = place[0] / axes.get_xlim()[1]
    side = "left" if share < 0.2 else "right" if share > 0.8 else "center"
    axes.annotate(
        f"{probability:.2f}",
        place,
        (0, 3 if lower else -3),
        textcoords="offset points",
        color="white",
        fontsize=8,
        horizontalalignment=side,
        verticalalignment="bottom" if lower else "top",
        path_effects=_EDGE,
    )


def _true_box(axes: Axes, box: np.ndarray) -> None:
    top, left, bottom, right = (float(edge) for edge in box)
    if bottom > top and right > left:
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=TRUE, linewidth=0.9))

"""Where a model looked: its glimpses, one after the other, over the image; and what looking costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attention_zoo.figures.canvas import COLOURS, QUIET, blank, legend
from attention_zoo.figures.labels import families, sentence
from attention_zoo.functional.retina import centres
from attention_zoo.notation import ArrayLike, Float, checked

SIDE = 4.0  # inches of the longer side
BOX = "#2ca02c"


@checked
def draw_glimpses(
    image: Float[ArrayLike, "Y X C"],
    locations: Float[ArrayLike, "T 2"],
    size: int,
    scales: int,
    title: str | None = None,
    box: Float[ArrayLike, "4"] | None = None,
) -> Figure:
    """The path of the glimpses, numbered from 1, and the square that each covers at every scale.

    Args:
        image: [height, width, channels], one channel or three, in [0, 1].
        locations: (y, x) in [-1, 1], see `functional.retina.to_pixels`.
        size, scales: see `functional.retina.retina`: squares of size 2^k pixels; the coarser, the fainter.
        title: a line above the picture, such as what the image was taken for.
        box: (top, left, bottom, right) in pixels, of what was to be found; dashed.

    Raises:
        ValueError: there is no glimpse, the image has neither one channel nor three, or a location is not finite.
    """
    picture, places = np.asarray(image, np.float32), np.asarray(locations, np.float32)
    _refuse(picture, places)
    height, width = picture.shape[:2]
    inches = SIDE / max(height, width)
    figure = blank(max(width * inches, 1.5) + 0.3, max(height * inches, 1.0) + 0.6)
    axes = figure.add_subplot()
    shown = picture[..., 0] if picture.shape[2] == 1 else picture
    axes.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    if box is not None:
        _rectangle(axes, np.asarray(box, np.float32), edgecolor=BOX, linestyle="--", linewidth=1.2)
    middles = np.asarray(centres(jnp.asarray(places), height, width))
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(middles))]
    for middle, colour in zip(middles, colours, strict=True):
        _squares(axes, middle, size, scales, colour)
    _path(axes, middles, colours)
    if title:
        axes.set_title(sentence(title), fontsize=9, family=list(families()), parse_math=False)
    return figure


def draw_cost(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time and temporary memory against the side of the canvas, both axes logarithmic: one line a model.

    Args:
        rows: each with `implementation`, `direction` ("inference", "training"), `side` (pixels), `median_ms`,
            `temporary_bytes` and `flops`.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("There is no cost to draw.")
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    panels = {"median_ms": ("milliseconds", 1.0), "temporary_bytes": ("temporary MB", 1e6), "flops": ("GFLOP", 1e9)}
    figure = blank(3.6 * len(panels), 2.9 * len(directions))
    every = figure.subplots(len(directions), len(panels), squeeze=False)
    for line, direction in enumerate(directions):
        for axes, (field, (label, unit)) in zip(every[line], panels.items(), strict=True):
            chosen = [row for row in rows if row["direction"] == direction]
            _lines(axes, [(row["implementation"], row["side"], row[field] / unit) for row in chosen])
            axes.set_title(f"{direction}: {label}", fontsize=9)
    return figure


def _refuse(picture: np.ndarray, places: np.ndarray) -> None:
    if picture.shape[2] not in (1, 3):
        raise ValueError(f"An image has one channel or three; got {picture.shape[2]}.")
    if not len(places):
        raise ValueError("There is no glimpse to draw.")
    if not np.isfinite(places).all():
        raise ValueError("A location is not finite.")


def _rectangle(axes: Axes, box: np.ndarray, **style: Any) -> None:
    top, left, bottom, right = box.tolist()
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **style))


def _squares(axes: Axes, middle: np.ndarray, size: int, scales: int, colour: str) -> None:
    for scale in range(scales):
        side = size << scale
        corner = middle - side // 2
        box = np.concatenate([corner, corner + side])
        _rectangle(axes, box, edgecolor=colour, linewidth=1.2, alpha=0.9 / 2**scale)


def _path(axes: Axes, middles: np.ndarray, colours: Sequence[str]) -> None:
    """Numbers at the glimpses, and the way between them, which is one line."""
    axes.plot(middles[:, 1], middles[:, 0], color="white", linewidth=1.0, alpha=0.6)
    for number, ((y, x), colour) in enumerate(zip(middles.tolist(), colours, strict=True), 1):
        circle = {"boxstyle": "circle,pad=0.15", "facecolor": colour, "edgecolor": "none", "alpha": 0.85}
        # Inside the picture, so that a glimpse at its very edge has its number too.
        axes.text(x, y, str(number), color="white", fontsize=7, ha="center", va="center", bbox=circle)


def _lines(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    for number, name in enumerate(dict.fromkeys(name for name, _, _ in points)):
        line = np.array([(side, value) for one, side, value in points if one == name])
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(*line.T, marker="o", markersize=4, color=colour, label=name)
    sides = sorted({side for _, side, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sides, [f"{side:g}" for side in sides])
    axes.set_yscale("log")
    axes.set_xlabel("side of the canvas, pixels", fontsize=8)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=7, colors=QUIET)
    legend(axes, fontsize=7)

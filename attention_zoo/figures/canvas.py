"""Making an empty figure and writing a finished one, without pyplot's global state."""

import os
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
QUIET = "#666666"


def blank(width: float, height: float) -> Figure:
    """An empty white figure of `width` x `height` inches that is laid out when it is drawn."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def legend(axes: Axes, **options: Any) -> None:
    """Names every line; matplotlib by itself leaves out names that start with an underscore."""
    names = [str(line.get_label()) for line in axes.lines]
    axes.legend(axes.lines, names, frameon=False, **options)


def save(figure: Figure, path: str | Path, dots_per_inch: int = 150) -> Path:
    """Writes a figure whole or not at all: to a neighbouring file first, which is then renamed.

    Args:
        path: its ending chooses the format (.png, .pdf or .svg); missing folders are made.

    Raises:
        ValueError: the ending is none of these.
        OSError: the file cannot be written there; one sentence says where and why.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"The figure cannot be written to {path}: its name must end in {', '.join(FORMATS)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(figure, path, dots_per_inch)
    except OSError as error:
        raise type(error)(f"The figure cannot be written to {path}: {error.strerror or error}.") from error
    return path


def _replace(figure: Figure, path: Path, dots_per_inch: int) -> None:
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=dots_per_inch, format=path.suffix[1:].lower(), bbox_inches="tight")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

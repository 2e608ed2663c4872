"""Making an empty figure and writing a finished one, without pyplot's global state."""

import os
import tempfile
from pathlib import Path

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
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=dots_per_inch, format=path.suffix[1:].lower(), bbox_inches="tight")
        # mkstemp makes private files; a figure is as readable as any file its user makes.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current

"""Learning curves of one or several runs, read from the metrics.jsonl of their work folders."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attention_zoo.figures.canvas import COLOURS, QUIET, blank, legend

Series = dict[str, tuple[np.ndarray, np.ndarray]]
FILE = "metrics.jsonl"
# How a run went, not what it learnt: drawn only when asked for by name.
_BOOKKEEPING = ("seconds", "time", "rate", "per_second", "epoch", "gradient", "norm", "nonfinite")
_COLUMNS = 3
_SPLITS = {"train": 0, "dev": 1, "test": 2}


def read_metrics(folder: str | Path) -> Series:
    """Every number that a run wrote, by name: `name -> (steps [K], values [K])`, the steps rising.

    Each line of metrics.jsonl is an object with `step`; numbers inside objects are named `outer/inner`, and a
    text `split` goes in front of its line's names. Where a run went on from a checkpoint, steps that were
    done again replace the first try. A last line cut short by a kill is left out.

    Raises:
        ValueError: the folder has no metrics.jsonl, or a line of it is not such an object (its number is given).
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(f"There is no {FILE} in {folder}: it is not the work folder of a run.")
    found: dict[str, dict[int, float]] = {}
    for record in _records(path):
        step = record["step"]
        for name, value in _numbers(record):
            values = found.setdefault(name, {})
            for redone in [earlier for earlier in values if earlier >= step]:
                del values[redone]
            values[step] = value
    return {name: (np.array(list(values)), np.array(list(values.values()))) for name, values in found.items()}


def _records(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif line.strip() and (number < len(lines) or text.endswith("\n")):
            raise ValueError(f"{path}, line {number}: not a JSON object with a whole number `step`.")
    return records


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _numbers(record: Mapping[str, Any], outer: str = "") -> list[tuple[str, float]]:
    split = record.get("split")
    prefix = f"{outer}{split}/" if isinstance(split, str) else outer
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step":
            found.append((f"{prefix}{name}", float(value)))
    return found


def draw_curves(folders: Sequence[str | Path], metrics: Sequence[str] | None = None) -> Figure:
    """One panel a metric, one line a run and split, over training steps.

    Args:
        folders: work folders; the legend names each by the end of its path.
        metrics: which to draw, with their split (`dev/exact_match`) or without, for all splits;
            by default all but seconds, rates, norms and the noise of gradients.

    Raises:
        ValueError: there is nothing to draw, or no run has a metric that was asked for (those known are named).
    """
    if not folders:
        raise ValueError("There is no work folder to draw curves of.")
    runs = {name: read_metrics(folder) for name, folder in zip(_short(folders), folders, strict=True)}
    panels = _panels(sorted({name for series in runs.values() for name in series}), metrics)
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = blank(4.2 * columns, 3.0 * rows + 0.4)
    for place, (metric, names) in enumerate(panels.items(), 1):
        _panel(figure.add_subplot(rows, columns, place), metric, names, runs)
    return figure


def _short(folders: Sequence[str | Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [Path(folder).absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"The same work folder is given twice: {', '.join(map(str, folders))}.")


def _panels(known: list[str], wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """Metric without its split -> its names with split."""
    if wanted is None:
        chosen = [name for name in known if not any(word in name for word in _BOOKKEEPING)]
    else:
        chosen = [name for name in known if name in wanted or name.rsplit("/", 1)[-1] in wanted]
    missing = [name for name in wanted or () if not any(name in (one, one.rsplit("/", 1)[-1]) for one in chosen)]
    if missing or not chosen:
        raise ValueError(f"No run has {', '.join(missing) or 'a metric to draw'}; known: {', '.join(known) or 'none'}.")
    panels: dict[str, list[str]] = {}
    for name in sorted(chosen, key=lambda name: name.rsplit("/", 1)[-1] != "loss"):
        panels.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    return panels


def _panel(axes: Axes, metric: str, names: list[str], runs: Mapping[str, Series]) -> None:
    for index, (run, series) in enumerate(runs.items()):
        for name in names:
            if name in series:
                # Several runs are told apart by colour and their splits by line; the splits of a single run by colour.
                split = _SPLITS.get(name.rpartition("/")[0], 0)
                colour, line = (index, split) if len(runs) > 1 else (split, 0)
                _curve(axes, *series[name], _label(run, name, len(runs)), COLOURS[colour % len(COLOURS)], line)
    axes.set_title(metric.replace("_", " "), fontsize=10, parse_math=False)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=QUIET)
    legend(axes, fontsize=8)


def _label(run: str, name: str, runs: int) -> str:
    split = name.rpartition("/")[0]
    if not split:
        return run
    return f"{run} ({split})" if runs > 1 else split


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, colour: str, line: int) -> None:
    # An evaluation alone would be a line without length; the points of a few are marked.
    marker = {1: "D"}.get(len(steps), "o" if len(steps) <= 20 else "")
    style = ("-", "--", ":", "-.")[line % 4] if len(steps) > 1 else ""
    axes.plot(steps, values, linestyle=style, marker=marker, markersize=4, color=colour, label=label)

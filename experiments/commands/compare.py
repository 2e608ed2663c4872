"""`python -m experiments compare WORKDIR... --plot FILE`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from attention_zoo.figures import draw_accuracy_by_length, save
from attention_zoo.training import UserError
from experiments.commands.predict import check_plot
from experiments.commands.workdir import read_config

Run = tuple[np.ndarray, np.ndarray]


def compare(workdirs: Positional[tuple[Path, ...]], plot: Path) -> int:
    """Draws accuracy against source length for several runs (figure 2 of Bahdanau 2014) and prints a small table.

    Args:
        workdirs: the work folders of the runs.
        plot: where to draw.
    """
    if not workdirs:
        raise UserError("There is nothing to compare: give one work folder or more.")
    check_plot(plot)
    runs = {label: read_lengths(folder) for label, folder in zip(labels(workdirs), workdirs, strict=True)}
    save(draw_accuracy_by_length(runs), plot)
    Console().print(table(runs))
    return 0


def labels(workdirs: Sequence[Path]) -> list[str]:
    """The folders' own names where these differ, else the folders as they were given.

    Raises:
        UserError: a folder is given twice.
    """
    if len(set(workdirs)) < len(workdirs):
        raise UserError(f"A work folder is given twice: {', '.join(map(str, workdirs))}.")
    names = [folder.resolve().name for folder in workdirs]
    return names if len(set(names)) == len(names) else [str(folder) for folder in workdirs]


def read_lengths(folder: Path) -> Run:
    """Source lengths [B] and correct flags [B] of a run's test examples.

    Raises:
        UserError: the folder holds no run, or one that was not evaluated on its test split.
    """
    read_config(folder)
    path = folder / "lengths.json"
    if not path.exists():
        raise UserError(
            f"{folder} holds no lengths.json: python -m experiments evaluate {folder} writes it for a run that "
            "translates; others have no source whose length they could be compared by."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return np.array(found["source_length"], np.int32), np.array(found["correct"], bool)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: python -m experiments evaluate {folder} writes it anew.") from error


def table(runs: dict[str, Run]) -> Table:
    """Exact match over all examples of each run, over the shortest third of the sources and over the longest."""
    shown = Table("run", "examples", "exact match", "shortest third", "longest third", box=None, pad_edge=False)
    for label, (lengths, correct) in runs.items():
        third = correct[np.argsort(lengths, kind="stable")]
        size = max(1, len(third) // 3)
        parts = (correct.mean(), third[:size].mean(), third[-size:].mean())
        shown.add_row(label, str(len(correct)), *(f"{part:.3f}" for part in parts))
    return shown

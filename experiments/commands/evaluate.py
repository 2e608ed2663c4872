"""`python -m experiments evaluate WORKDIR`."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from experiments.commands.workdir import open_run, writable


def evaluate(workdir: Positional[Path], split: Literal["dev", "test"] = "test", beam_size: int = 1) -> int:
    """Prints the metrics of a run's best checkpoint: a table on a terminal, JSON elsewhere.

    Args:
        workdir: the work folder of the run.
        split: the examples to judge it by.
        beam_size: hypotheses that the search keeps; 1 is greedy.
    """
    experiment, params = open_run(workdir)
    writable(workdir)
    found: dict[str, Any] = dict(experiment.evaluate(params, split, beam_size=beam_size, folder=workdir))
    if sys.stdout.isatty():
        table = Table("metric", split, box=None, header_style="bold", pad_edge=False)
        for name, value in found.items():
            table.add_row(name, value if isinstance(value, str) else f"{value:.4f}")
        Console().print(table)
    else:
        print(json.dumps(found, indent=2))
    return 0

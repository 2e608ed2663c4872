"""Metrics as they are printed: a table on a terminal, JSON elsewhere."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(metrics: Mapping[str, Any], split: str) -> None:
    """Prints the metrics of a split on stdout."""
    if not sys.stdout.isatty():
        print(json.dumps(dict(metrics), indent=2))
        return
    table = Table("metric", split, box=None, header_style="bold", pad_edge=False)
    for name, value in metrics.items():
        table.add_row(name, value if isinstance(value, str) else f"{value:.4f}")
    Console().print(table)

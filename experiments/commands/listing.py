"""`python -m experiments list`."""

import re

from rich.console import Console
from rich.table import Table

from experiments.commands.catalogue import docstring, first_paragraph, names


def listing() -> int:
    """Shows every experiment with its claim and the score it reached."""
    table = Table("experiment", "claim", "reached", box=None, header_style="bold", pad_edge=False)
    for name in names():
        text = docstring(name)
        table.add_row(name, first_paragraph(text), reached(text))
    Console().print(table)
    return 0


def reached(text: str) -> str:
    """What stands after `Reached:` in an experiment's docstring, up to the end of its paragraph."""
    found = re.search(r"^Reached:\s*(.*?)(?:\n\s*\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return " ".join(found.group(1).split()) if found else ""

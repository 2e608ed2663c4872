"""`python -m benchmarks report [--check]`: the tables and figures of README and docs, rebuilt from the results.

A page holds a table of `benchmarks.tables.TABLES` between the lines `<!-- benchmarks: NAME -->` and `<!-- end -->`.
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from attention_zoo.figures import draw_growth, draw_variance, save
from attention_zoo.training.errors import UserError
from attention_zoo.training.reporting import write_whole
from benchmarks import glimpse_large
from benchmarks.peers import known
from benchmarks.record import read_all
from benchmarks.tables import TABLES, Results, newest

ROOT = Path(__file__).parents[1]
_START = "<!-- benchmarks: "
_BLOCK = re.compile(rf"^{_START}(.*?) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
# What a benchmark's rows are drawn as, and where.
DRAWN: dict[str, Callable[[list[dict[str, Any]]], Figure]] = {
    "glimpse_large": lambda rows: glimpse_large.draw([_glimpse_row(row) for row in rows]),
    "hard": draw_variance,
    "scores": lambda rows: draw_growth([row for row in rows if row["direction"] == "forward+gradient"]),
}
FIGURES = {"docs/hard/cost.png": "glimpse_large", "docs/hard/variance.png": "hard", "docs/growth.png": "scores"}


def rebuild(check: bool = False) -> int:
    """Rewrites every table, and draws every figure, that results are there for.

    Args:
        check: write nothing; exit with 1 where a table is not that of the results.
    """
    results, stale = read_all(), []
    for page in pages(ROOT):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text, results, page.name)) != text:
            stale.append(page.relative_to(ROOT).as_posix())
            if not check:
                write_whole(page, new)
    if check:
        for name in stale:
            print(f"{name} is not what the results say: run python -m benchmarks report", file=sys.stderr)
        return int(bool(stale))
    for file, benchmark in FIGURES.items():
        if rows := newest(results, benchmark)[1]:
            save(DRAWN[benchmark](rows), ROOT / file)
    print(f"rewritten: {', '.join(stale)}" if stale else "every table is what the results say")
    return 0


def pages(root: Path) -> list[Path]:
    """Where tables may stand."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def filled(text: str, results: Results, name: str, tables: Mapping[str, Callable[[Results], str]] = TABLES) -> str:
    """A page's text with its tables made anew; what stands outside of them stays.

    Raises:
        UserError: a table has no end, or there is none of its name.
    """
    starts = re.findall(f"^{_START}", text, re.MULTILINE)
    if len(_BLOCK.findall(text)) != len(starts):
        raise UserError(f"{name}: a table between `{_START}NAME -->` and `<!-- end -->` is not closed")
    return _BLOCK.sub(lambda block: _block(known(block[1], tables, "table"), results, tables), text)


def _block(name: str, results: Results, tables: Mapping[str, Callable[[Results], str]]) -> str:
    return f"{_START}{name} -->\n\n{tables[name](results)}\n\n<!-- end -->"


def _glimpse_row(row: Mapping[str, Any]) -> glimpse_large.GlimpseRow:
    """A row as it was before it was written."""
    return glimpse_large.GlimpseRow(
        **{field.name: row[field.name] for field in fields(glimpse_large.GlimpseRow) if field.name in row}
    )

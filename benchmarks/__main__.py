"""Side-by-side measurements against named peers.

`python -m benchmarks [NAME ...] [--sizes paper] [--json FILE] [--figure FILE]`
"""

import json
import sys
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Annotated

import tyro
from rich.table import Table

from attention_zoo.figures import FORMATS, draw_variance, save
from attention_zoo.training.errors import UserError
from attention_zoo.training.machine import device, versions
from benchmarks import additive, attention, glimpse_large, hard, seq2seq
from benchmarks.harness import Row, print_table
from benchmarks.roofs import roofs

BENCHMARKS: dict[str, ModuleType] = {
    "additive": additive,
    "attention": attention,
    "glimpse_large": glimpse_large,
    "hard": hard,
    "seq2seq": seq2seq,
}
DRAWN = {"glimpse_large": glimpse_large.draw, "hard": lambda rows: draw_variance([asdict(row) for row in rows])}
SIZES = ("small", "paper", "long")


def run(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    sizes: str = "paper,long",
    repetitions: int = 15,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None,
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Measures attention_zoo beside its peers; results are checked equal before anything is timed.

    Args:
        names: benchmarks to run, or `list` to name them; all of them by default.
        sizes: small, paper, long, or several with commas between; a benchmark that lacks one says so.
        repetitions: interleaved repetitions of each contestant.
        json_file: also write device, versions, roofs and rows there.
        figure: also draw the costs of `glimpse_large` or the estimators of `hard` there, a .png, .pdf or .svg file.
    """
    if names == ("list",):
        for name, benchmark in BENCHMARKS.items():
            print(f"{name}  {(benchmark.__doc__ or '').splitlines()[0]}")
        return
    chosen = [_known(name, tuple(BENCHMARKS), "benchmark") for name in names or BENCHMARKS]
    wanted = [_known(size, SIZES, "size") for size in sizes.split(",")]
    if repetitions < 1:
        raise UserError(f"--repetitions is at least 1; got {repetitions}")
    if json_file is not None and not json_file.parent.is_dir():
        raise UserError(f"{json_file} cannot be written: there is no folder {json_file.parent}")
    if figure is not None:
        _check_figure(figure, chosen, wanted)
    rows: list[Row] = []
    for name in chosen:
        for size in wanted:
            if size not in BENCHMARKS[name].SIZES:
                print(f"{name} has no size {size}: left out", file=sys.stderr)
                continue
            print(f"{name}, {size} ...", file=sys.stderr)
            rows += BENCHMARKS[name].benchmark(size, repetitions)
    estimators = [row for row in rows if isinstance(row, hard.EstimatorRow)]
    show([row for row in rows if not isinstance(row, hard.EstimatorRow)])
    hard.show(estimators)
    if figure is not None:
        name = next(name for name in chosen if name in DRAWN)
        save(DRAWN[name]([row for row in rows if row.benchmark == name]), figure)
    if json_file is not None:
        result = {"device": device(), "versions": versions(), "roofs": roofs(), "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show(rows: list[Row]) -> None:
    """A table of the rows; the ratio is the time of the row's implementation over attention_zoo's."""
    if not rows:
        return
    table = Table("benchmark", "case", "implementation", "ms", "quartiles", "temporaries", "compile", "ratio", "95 %")
    for row in rows:
        table.add_row(
            row.benchmark,
            f"{row.case}\n{row.direction}",
            row.implementation,
            f"{row.median_ms:.1f}",
            f"{row.low_ms:.1f} - {row.high_ms:.1f}",
            f"{row.temporary_bytes / 1e6:.1f} MB",
            f"{row.compile_s:.1f} s",
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f} - {row.ratio_high:.2f}",
        )
    print_table(table)


def _check_figure(figure: Path, names: list[str], sizes: list[str]) -> None:
    drawn = [name for name in names if name in DRAWN and set(sizes) & BENCHMARKS[name].SIZES.keys()]
    if len(drawn) != 1:
        raise UserError(f"--figure draws one of {', '.join(DRAWN)}, at a size that it has; name one benchmark of them")
    if figure.suffix.lower() not in FORMATS:
        raise UserError(f"{figure} cannot be drawn: its name must end in {', '.join(FORMATS)}")


def _known(name: str, names: tuple[str, ...], kind: str) -> str:
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}."
        raise UserError(f"there is no {kind} {name!r}; {hint}")
    return name


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 when all went well, 2 for input it cannot use."""
    try:
        tyro.cli(run, args=arguments, prog="python -m benchmarks")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

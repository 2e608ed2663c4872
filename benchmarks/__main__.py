"""Side-by-side measurements against named peers.

`python -m benchmarks [NAME ...] [--sizes paper] [--dtype float32] [--peers A,B] [--json FILE] [--figure FILE]
[--record]`; `python -m benchmarks report [--check]` rebuilds the tables and figures from what was recorded.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from attention_zoo.figures import FORMATS, save
from attention_zoo.training.errors import UserError
from attention_zoo.training.machine import device, versions
from benchmarks import report
from benchmarks.harness import FEWEST
from benchmarks.machine import roofs
from benchmarks.peers import asked, bring, known
from benchmarks.record import record as kept
from benchmarks.report import DRAWN
from benchmarks.rows import Row, show

NAMES = (
    "additive",
    "attention",
    "captioner",
    "decode",
    "glimpse_large",
    "hard",
    "input",
    "kernels",
    "loss",
    "multihead",
    "recurrent",
    "scores",
    "seq2seq",
    "startup",
    "transformer",
)
BENCHMARKS: dict[str, ModuleType] = {name: import_module(f"benchmarks.{name}") for name in NAMES}
SIZES = ("small", "paper", "long")
DTYPES = ("float32", "bfloat16")


def run(
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    sizes: str = "paper,long",
    repetitions: int = 15,
    dtype: str = "float32",
    peers: Annotated[str | None, tyro.conf.arg(metavar="NAME,...")] = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None,
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    record: bool = False,
) -> None:
    """Measures attention_zoo beside its peers; results are checked equal before anything is timed.

    Args:
        names: benchmarks to run, or `list` to name them; all of them by default.
        sizes: small, paper, long, or several with commas between; a benchmark that lacks one says so.
        repetitions: interleaved repetitions of each contestant; 6 at least for a confidence interval.
        dtype: of the inputs, float32 or bfloat16; a benchmark that lacks it says so.
        peers: who is compared with attention_zoo, with commas between; by default all that can be imported.
        json_file: also write device, versions, roofs and rows there.
        figure: also draw the costs of `glimpse_large`, the estimators of `hard` or the growth of `scores` there, in a
            .png, .pdf or .svg file.
        record: also keep the rows among those of this machine, in `benchmarks/results`, for `report` to show.
    """
    if names == ("list",):
        for name, benchmark in BENCHMARKS.items():
            print(f"{name}  {(benchmark.__doc__ or '').splitlines()[0]}")
        return
    chosen = [known(name, BENCHMARKS, "benchmark") for name in names or BENCHMARKS]
    wanted = [known(size, SIZES, "size") for size in sizes.split(",")]
    known(dtype, DTYPES, "dtype")
    compared = asked(peers, {name: BENCHMARKS[name].PEERS for name in chosen})
    if repetitions < 1:
        raise UserError(f"--repetitions is at least 1; got {repetitions}")
    if json_file is not None and not json_file.parent.is_dir():
        raise UserError(f"{json_file} cannot be written: there is no folder {json_file.parent}")
    if json_file is not None and json_file.is_dir():
        raise UserError(f"{json_file} cannot be written: it is a folder")
    if figure is not None:
        _check_figure(figure, chosen, wanted)
    if record and ("small" in wanted or repetitions < FEWEST or peers is not None):
        raise UserError(
            f"--record keeps what was measured at the sizes paper and long, {FEWEST} times at least, beside all peers"
        )
    if repetitions < FEWEST:
        print(f"below {FEWEST} repetitions a median has no 95 % interval: it stays empty", file=sys.stderr)
    rows: list[Row] = []
    try:
        for row in _measured(chosen, wanted, repetitions, dtype, compared):
            rows.append(row)
    except BaseException:  # What was measured outlives what fails after it, and Ctrl-C.
        if rows:
            _keep(rows, dtype, json_file, record)
        raise
    _keep(rows, dtype, json_file, record)
    if figure is not None:
        name = next(name for name in chosen if name in DRAWN)
        save(DRAWN[name]([asdict(row) for row in rows if row.benchmark == name]), figure)


def _measured(
    names: list[str], sizes: list[str], repetitions: int, dtype: str, peers: list[str] | None
) -> Iterator[Row]:
    """Rows as they are measured; what a benchmark lacks, and who cannot be imported, is said once."""
    there = bring({peer: load for name in names for peer, load in BENCHMARKS[name].PEERS.items()}, peers)
    for name in names:
        benchmark = BENCHMARKS[name]
        if dtype not in benchmark.TOLERANCES:
            print(f"{name} has no choice of dtype, only {', '.join(benchmark.TOLERANCES)}: left out", file=sys.stderr)
            continue
        if peers is not None and not benchmark.PEERS:
            print(f"{name} has no peers to choose from: all of it runs", file=sys.stderr)
        options: dict[str, Any] = {"peers": tuple(there)} if benchmark.PEERS else {}
        options |= {"dtype": dtype} if len(benchmark.TOLERANCES) > 1 else {}
        for size in sizes:
            if size not in benchmark.SIZES:
                print(f"{name} has no size {size}: left out", file=sys.stderr)
                continue
            print(f"{name}, {size}, {dtype} ...", file=sys.stderr)
            yield from benchmark.benchmark(size, repetitions, **options)


def _keep(rows: list[Row], dtype: str, file: Path | None, record: bool) -> None:
    """Writes the rows where that is wanted, and shows them."""
    if file is not None:
        result = {"device": device(), "versions": versions(), "roofs": roofs(dtype)}
        result |= {"rows": [asdict(row) for row in rows]}
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if record and rows:
        print(f"recorded in {kept(rows, roofs(dtype))}")
    for name in dict.fromkeys(row.benchmark for row in rows):
        getattr(BENCHMARKS[name], "show", show)([row for row in rows if row.benchmark == name])


def _check_figure(figure: Path, names: list[str], sizes: list[str]) -> None:
    drawn = [name for name in names if name in DRAWN and set(sizes) & BENCHMARKS[name].SIZES.keys()]
    if len(drawn) != 1:
        raise UserError(f"--figure draws one of {', '.join(DRAWN)}, at a size that it has; name one benchmark of them")
    if figure.suffix.lower() not in FORMATS:
        raise UserError(f"{figure} cannot be drawn: its name must end in {', '.join(FORMATS)}")


def main(arguments: list[str] | None = None) -> int:
    """The command; 0 when all went well, 2 for input it cannot use, 1 where `report --check` finds a difference.

    130 after Ctrl-C.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words[:1] == ["report"]:
            return tyro.cli(report.rebuild, args=words[1:], prog="python -m benchmarks report")
        tyro.cli(run, args=words, prog="python -m benchmarks")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the rest is not measured", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

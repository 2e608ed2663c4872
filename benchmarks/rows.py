"""What a benchmark measures of one implementation, and how it is shown."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured line, as `--json` writes it; None is what could not be measured.

    `median_ms`, `low_ms`, `high_ms`: median and quartiles. `compile_s`: of JAX, the compilation (None
    with a persistent cache); else the first call.
    `temporary_bytes`, `flops`, `bytes_accessed`: the compiler's, where a loop's body counts once. `peak_bytes`: how far
    a call raised the memory of the process. `roof`, `roof_fraction`: what bounds the work on this machine, and the time
    it needs at that roof over the median. `ratio`: this implementation's time over attention_zoo's, pair by pair (above
    1 = attention_zoo is faster), with its 95 % confidence interval; None where there are too few repetitions for one.
    `dtype`: of the inputs. `timed_by`: "wall", or "profiler" where times are of an accelerator's kernels and copies;
    rows without it are of the wall.
    """

    benchmark: str
    case: str
    direction: str
    dtype: str
    implementation: str
    median_ms: float
    low_ms: float
    high_ms: float
    compile_s: float | None = None
    temporary_bytes: int | None = None
    peak_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    roof: str | None = None
    roof_fraction: float | None = None
    error_vs_reference: float | None = None
    ratio: float
    ratio_low: float | None = None
    ratio_high: float | None = None
    timed_by: str = "wall"

    @property
    def interval(self) -> str:
        """The confidence interval of the ratio, to be read; nothing where there is none."""
        if self.ratio_low is None or self.ratio_high is None:
            return ""
        return f"{self.ratio_low:.2f} - {self.ratio_high:.2f}"


def show(rows: Sequence[Row]) -> None:
    """Prints a table of the rows; the ratio is the time of the row's implementation over attention_zoo's."""
    if not rows:
        return
    table = Table("benchmark", "case", "implementation", "ms", "quartiles", "temporaries", "peak", "compile", "of roof",
                  "ratio", "95 %")  # fmt: skip
    for row in rows:
        table.add_row(
            row.benchmark,
            f"{row.case}\n{row.direction}, {row.dtype}",
            row.implementation + ", by the profiler" * (row.timed_by == "profiler"),
            short(row.median_ms),
            f"{short(row.low_ms)} - {short(row.high_ms)}",
            _megabytes(row.temporary_bytes),
            _megabytes(row.peak_bytes),
            "" if row.compile_s is None else f"{row.compile_s:.1f} s",
            "" if row.roof_fraction is None else f"{row.roof_fraction:.0%} {row.roof}",
            f"{row.ratio:.2f}",
            row.interval,
        )
    print_table(table)


def short(milliseconds: float) -> str:
    """A time to be read: three digits after the point below one millisecond, else one."""
    return f"{milliseconds:.{1 if milliseconds >= 1 else 3}f}"


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal, or as it needs to be in a file."""
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f} MB"

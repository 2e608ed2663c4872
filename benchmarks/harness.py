"""Side-by-side timing: equal results first, then interleaved repetitions and ratios with their spread."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from attention_zoo.training.errors import UserError

FEWEST = 6  # repetitions that a 95 % confidence interval of a median needs


@dataclass(frozen=True)
class Contestant:
    """One implementation of a benchmark's work, as a JAX function and its own arguments.

    `compared(work(*arguments))` must equal what the other contestants give; all of it by default.
    """

    implementation: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    compared: Callable[[Any], Any] = lambda result: result


@dataclass(frozen=True)
class Row:
    """One measured line, as `--json` writes it.

    `median_ms`, `low_ms`, `high_ms`: median and quartiles. `ratio`: this implementation's time over
    attention_zoo's, pair by pair (above 1 = attention_zoo is faster), with its 95 % confidence interval; None where
    there are too few repetitions for one. `dtype`: of the inputs.
    """

    benchmark: str
    case: str
    direction: str
    dtype: str
    implementation: str
    median_ms: float
    low_ms: float
    high_ms: float
    compile_s: float
    temporary_bytes: int
    flops: float
    error_vs_reference: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None

    @property
    def interval(self) -> str:
        """The confidence interval of the ratio, to be read; nothing where there is none."""
        if self.ratio_low is None or self.ratio_high is None:
            return ""
        return f"{self.ratio_low:.2f} - {self.ratio_high:.2f}"


def compare(
    benchmark: str,
    case: str,
    direction: str,
    contestants: Sequence[Contestant],
    *,
    tolerance: float,
    repetitions: int = 15,
    dtype: str = "float32",
) -> list[Row]:
    """Compiles all, checks that they agree with the first (attention_zoo), and times them in turn: A B A B ...

    Raises:
        UserError: a result differs from the first by more than `tolerance`, relative to its largest value;
            nothing is timed then.
    """
    compiled, compile_s = zip(*map(_compile, contestants), strict=True)
    results = [one.compared(run(*one.arguments)) for run, one in zip(compiled, contestants, strict=True)]
    errors = [_error(result, results[0]) for result in results]
    for one, error in zip(contestants, errors, strict=True):
        if not error <= tolerance:
            raise UserError(
                f"{benchmark}, {case}: {one.implementation} differs from {contestants[0].implementation} by "
                f"{error:.1e} (tolerance {tolerance:.0e}); not timed"
            )
    rounds = [[1e3 * seconds(run, one.arguments) for run, one in zip(compiled, contestants, strict=True)]
              for _ in range(1 + repetitions)]  # fmt: skip
    times = np.array(rounds[1:])  # the first round warms up
    rows = []
    for number, one in enumerate(contestants):
        cost = (round(compile_s[number], 2), *_cost(compiled[number]), errors[number])
        quartiles = np.quantile(times[:, number], [0.5, 0.25, 0.75]).round(2).tolist()
        ratios = median_with_interval(times[:, number] / times[:, 0])
        rows.append(Row(benchmark, case, direction, dtype, one.implementation, *quartiles, *cost, *ratios))
    return rows


def median_with_interval(values: np.ndarray) -> tuple[float, float | None, float | None]:
    """The median and its 95 % confidence interval from order statistics (no assumption on the distribution).

    The range of n values holds the median with a probability of 1 - 2^(1 - n): 94 % for five, so that below
    FEWEST = 6 there is no such interval, and its ends are None.
    """
    ordered = np.sort(values)
    median = round(float(np.median(ordered)), 3)
    if len(ordered) < FEWEST:
        return median, None, None
    reach = 0.98 * np.sqrt(len(ordered))  # 1.96 standard deviations of a binomial with p = 1/2, halved
    low = max(int(np.floor(len(ordered) / 2 - reach)), 0)
    high = min(int(np.ceil(len(ordered) / 2 + reach)), len(ordered) - 1)
    return median, round(float(ordered[low]), 3), round(float(ordered[high]), 3)


def show(rows: Sequence[Row]) -> None:
    """Prints a table of the rows; the ratio is the time of the row's implementation over attention_zoo's."""
    if not rows:
        return
    table = Table("benchmark", "case", "implementation", "ms", "quartiles", "temporaries", "compile", "ratio", "95 %")
    for row in rows:
        table.add_row(
            row.benchmark,
            f"{row.case}\n{row.direction}, {row.dtype}",
            row.implementation,
            f"{row.median_ms:.1f}",
            f"{row.low_ms:.1f} - {row.high_ms:.1f}",
            f"{row.temporary_bytes / 1e6:.1f} MB",
            f"{row.compile_s:.1f} s",
            f"{row.ratio:.2f}",
            row.interval,
        )
    print_table(table)


def print_table(table: Table) -> None:
    """Prints a table as wide as the terminal, or as it needs to be in a file."""
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def seconds(run: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """The time of one call, until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - began


def _compile(contestant: Contestant) -> tuple[Any, float]:
    began = time.perf_counter()
    compiled = jax.jit(contestant.work).lower(*contestant.arguments).compile()
    return compiled, time.perf_counter() - began


def _error(result: Any, reference: Any) -> float:
    """The largest difference of any leaf, relative to the largest value of that leaf."""

    def one(leaf: Any, expected: Any) -> float:
        leaf, expected = np.asarray(leaf, np.float64), np.asarray(expected, np.float64)
        return float(np.abs(leaf - expected).max() / max(np.abs(expected).max(), 1e-30))

    return max(jax.tree.leaves(jax.tree.map(one, result, reference)))


def _cost(compiled: Any) -> tuple[int, float]:
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return int(memory.temp_size_in_bytes), float((cost or {}).get("flops", float("nan")))

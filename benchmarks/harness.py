"""Side-by-side timing: equal results first, then interleaved repetitions and ratios with their spread."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from attention_zoo.training.errors import UserError
from benchmarks.machine import Needs, peak, seconds, under_roof
from benchmarks.rows import Row

FEWEST = 6  # repetitions that a 95 % confidence interval of a median needs


@dataclass(frozen=True)
class Contestant:
    """One implementation of a benchmark's work: a JAX function, or any other to be called as it is, and its arguments.

    `compared(work(*arguments))`, arrays, must equal what the other contestants give; all of it by default. `jitted`:
    it is compiled first.
    """

    implementation: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    compared: Callable[[Any], Any] = lambda result: result
    jitted: bool = True


def compare(
    benchmark: str,
    case: str,
    direction: str,
    contestants: Sequence[Contestant],
    *,
    tolerance: float,
    repetitions: int = 15,
    dtype: str = "float32",
    needs: Needs | None = None,
) -> list[Row]:
    """Compiles all, checks that they agree with the first (attention_zoo), and times them in turn: A B A B ...

    `needs`: what the work needs of the machine's roofs, whoever does it: operations of matrix products, bytes that
    have to be read and written, evaluations of tanh.

    Raises:
        UserError: a result differs from the first by more than `tolerance`, relative to its largest value;
            nothing is timed then.
    """
    contestants, compiled, compile_s = _able(contestants)
    results = [one.compared(run(*one.arguments)) for run, one in zip(compiled, contestants, strict=True)]
    errors = [_error(result, results[0]) for result in results]
    for one, error in zip(contestants, errors, strict=True):
        if not error <= tolerance:
            raise UserError(
                f"{benchmark}, {case}: {one.implementation} differs from {contestants[0].implementation} by "
                f"{error:.1e} (tolerance {tolerance:.0e}); not timed"
            )
    rounds = [_round(compiled, contestants, first) for first in range(1 + repetitions)]
    times = np.array(rounds[1:])  # the first round warms up
    roof, least = under_roof(needs or {}, dtype)
    rows = []
    for number, one in enumerate(contestants):
        median, low, high = np.quantile(times[:, number], [0.5, 0.25, 0.75]).round(2).tolist()
        ratio, ratio_low, ratio_high = median_with_interval(times[:, number] / times[:, 0])
        rows.append(
            Row(
                benchmark=benchmark,
                case=case,
                direction=direction,
                dtype=dtype,
                implementation=one.implementation,
                median_ms=median,
                low_ms=low,
                high_ms=high,
                compile_s=round(compile_s[number], 2),
                peak_bytes=peak(compiled[number], one.arguments),
                **_cost(compiled[number]),
                roof=roof,
                roof_fraction=None if roof is None else round(1e3 * least / float(np.median(times[:, number])), 3),
                error_vs_reference=errors[number],
                ratio=ratio,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
            )
        )
    return rows


def finite(result: Any) -> float:
    """What is compared where contestants have nothing in common: 0 if all leaves are finite, else NaN, which fails."""
    return 0.0 if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result)) else float("nan")


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


def _able(contestants: Sequence[Contestant]) -> tuple[list[Contestant], list[Any], list[float]]:
    """Those that run, what to call, and how long that took; one of another framework that fails is named, left out."""
    found = []
    for one in contestants:
        try:
            found.append((one, *_compile(one)))
        except Exception as error:
            if one.jitted or not found:
                raise
            print(f"{one.implementation} fails, and is left out: {type(error).__name__}: {error}", file=sys.stderr)
    able, compiled, compile_s = zip(*found, strict=True)
    return list(able), list(compiled), list(compile_s)


def _round(compiled: Sequence[Any], contestants: Sequence[Contestant], first: int) -> list[float]:
    """The milliseconds of each; who comes first, and after whom, changes from round to round."""
    times = [0.0] * len(contestants)
    for number in np.roll(range(len(contestants)), -first):
        times[number] = 1e3 * seconds(compiled[number], contestants[number].arguments)
    return times


def _compile(contestant: Contestant) -> tuple[Any, float]:
    """What to call, and the seconds of JAX's compilation, or of the first call of another."""
    began = time.perf_counter()
    if contestant.jitted:
        run = jax.jit(contestant.work).lower(*contestant.arguments).compile()
    else:
        run = contestant.work
        run(*contestant.arguments)
    return run, time.perf_counter() - began


def _error(result: Any, reference: Any) -> float:
    """The largest difference of any leaf, relative to the largest value of that leaf; infinite between two shapes."""

    def one(leaf: Any, expected: Any) -> float:
        leaf, expected = np.asarray(leaf, np.float64), np.asarray(expected, np.float64)
        if leaf.shape != expected.shape:
            return float("inf")
        return float(np.abs(leaf - expected).max() / max(np.abs(expected).max(), 1e-30))

    return float(np.max(jax.tree.leaves(jax.tree.map(one, result, reference))))  # NaN where any is NaN


def _cost(compiled: Any) -> dict[str, Any]:
    """What the compiler tells; nothing of what JAX did not compile."""
    if not hasattr(compiled, "memory_analysis"):
        return {}
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return {
        "temporary_bytes": int(memory.temp_size_in_bytes),
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
    }

"""Side-by-side timing: equal results first, then interleaved repetitions and ratios with their spread."""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.training.errors import UserError
from benchmarks.device_time import traced
from benchmarks.machine import Needs, accelerated, enough, exact, peak, seconds, under_roof
from benchmarks.rows import Row

FEWEST = 6  # repetitions that a 95 % confidence interval of a median needs
_TRACING = Lock()  # Python traces one at a time: without waiting, each would count the others' time.


@dataclass(frozen=True)
class Contestant:
    """One implementation of a benchmark's work: a JAX function, or any other to be called as it is, and its arguments.

    `compared(work(*arguments))`, arrays, must equal what the other contestants give; all of it by default. `jitted`:
    it is compiled first. `wait`: gives a result back once it is there. `carried`: how many of the arguments, the first
    ones, a call replaces by what it gives behind its first result, as a training step does its parameters; their memory
    becomes that of the new ones.
    """

    implementation: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    compared: Callable[[Any], Any] = lambda result: result
    jitted: bool = True
    wait: Callable[[Any], Any] = jax.block_until_ready
    carried: int = 0


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
    timed_by: str = "profiler",
) -> list[Row]:
    """Compiles all, checks that they agree with the first (attention_zoo), and times them in turn: A B A B ...

    On an accelerator float32 means float32, in products too; they are compiled beside each other; a peer that fails
    there or differs is named and left out, as long as one is left; and who is timed how, `rounds` says.

    Args:
        needs: what the work needs of the machine's roofs, whoever does it: operations of matrix products, bytes that
            have to be read and written, evaluations of tanh.
        timed_by: of an accelerator, "profiler": its kernels and copies; or "wall": calls back to back, for whole steps
            that a loop would repeat. A CPU has the clock on the wall.

    Raises:
        UserError: a result differs from the first by more than `tolerance`, relative to its largest value;
            nothing is timed then.
    """
    ready = _agreeing(_able(contestants, dtype), f"{benchmark}, {case}", tolerance)
    roof, least = under_roof(needs or {}, dtype)
    cached = jax.config.jax_compilation_cache_dir is not None  # Who knows whether it was compiled or read.
    rows = []
    for one, (times, ours, clock) in zip(ready, rounds(ready, repetitions, timed_by), strict=True):
        median, low, high = (_digits(1e3 * time) for time in np.quantile(times, [0.5, 0.25, 0.75]))
        ratio, ratio_low, ratio_high = median_with_interval(times / ours)
        rows.append(
            Row(
                benchmark=benchmark,
                case=case,
                direction=direction,
                dtype=dtype,
                implementation=one.contestant.implementation,
                timed_by=clock,
                median_ms=median,
                low_ms=low,
                high_ms=high,
                compile_s=None if cached and one.contestant.jitted else round(one.compile_s, 2),
                peak_bytes=peak(one.again, ()),
                **_cost(one.run),
                roof=roof,
                roof_fraction=None if roof is None else round(least / float(np.median(times)), 3),
                error_vs_reference=one.error,
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


@dataclass(eq=False)
class Ready:
    """A contestant that runs: what to call, the seconds until it could be called, its result, and how far it is off."""

    contestant: Contestant
    run: Any
    compile_s: float
    result: Any = None
    error: float = 0.0

    def __post_init__(self) -> None:
        count = self.contestant.carried
        own = jax.tree.map(jnp.copy, self.contestant.arguments[:count])  # Others may have the same arrays.
        self._arguments = (*own, *self.contestant.arguments[count:])

    def again(self) -> Any:
        """The result of one more call, which may still be on its way."""
        result = self.run(*self._arguments)
        count = self.contestant.carried
        if count:
            self._arguments = (*result[1 : 1 + count], *self._arguments[count:])
        return result

    def seconds(self, calls: int = 1) -> float:
        """The time of a call on the wall."""
        return seconds(self.again, (), self.contestant.wait, calls=calls)

    def call(self) -> Any:
        """Its result, once it is there."""
        return self.contestant.wait(self.again())


def _able(contestants: Sequence[Contestant], dtype: str) -> list[Ready]:
    """Those that run; one that fails is named and left out if it is of another framework, or on an accelerator.

    There memory ends, and kernels refuse what they have no place for.
    """
    found: list[Ready] = []
    for one, compiled in zip(contestants, _compiled(contestants, dtype), strict=True):
        try:
            ready = Ready(one, *compiled())
            ready.result = one.compared(ready.call())
            found.append(ready)
        except Exception as error:
            if not found or (one.jitted and not accelerated()):
                raise
            print(f"{one.implementation} fails, and is left out: {type(error).__name__}: {error}", file=sys.stderr)
    return found


def _agreeing(ready: Sequence[Ready], work: str, tolerance: float) -> list[Ready]:
    """Those whose results are the first one's."""
    for one in ready:
        one.error = _error(one.result, ready[0].result)
    kept = [one for one in ready if one.error <= tolerance]
    for one in ready:
        if one in kept:
            continue
        sentence = (
            f"{work}: {one.contestant.implementation} differs from {ready[0].contestant.implementation} by "
            f"{one.error:.1e} (tolerance {tolerance:.0e}); not timed"
        )
        if not accelerated() or len(kept) < 2:
            raise UserError(sentence)
        print(sentence, file=sys.stderr)
    return kept


def rounds(
    ready: Sequence[Ready], repetitions: int, timed_by: str = "profiler"
) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Of each its times in seconds, the first one's in the same rounds by the same clock, and which that is.

    Who comes first, and after whom, changes from round to round; one round more warms up. On an accelerator the clock
    is the profiler's, except for one in whose program something loops, as the launches of its rounds are a part of its
    cost, and for one that the profiler does not see: these are called back to back, so that only what launches cannot
    hide is theirs. Where that is the first, it is so for all.
    """
    turns = [np.roll(range(len(ready)), -first) for first in range(1 + repetitions)]
    seen = np.full((1 + repetitions, len(ready)), np.nan)
    if accelerated() and timed_by == "profiler" and not _loops(ready[0].run):
        calls = [(place, number) for place, turn in enumerate(turns) for number in turn]
        for (place, number), busy in zip(
            calls, traced([ready[number].call for _, number in calls]) or (), strict=False
        ):
            seen[place, number] = busy or np.nan
    looks = ~np.isnan(seen).any(axis=0) & [not _loops(one.run) for one in ready]
    looks &= looks[0]
    walls = seen if looks.all() else _walls(ready, turns)
    return [
        (seen[1:, number], seen[1:, 0], "profiler") if looks[number] else (walls[1:, number], walls[1:, 0], "wall")
        for number in range(len(ready))
    ]


def _walls(ready: Sequence[Ready], turns: Sequence[np.ndarray]) -> np.ndarray:
    calls = [enough(one.again, (), one.contestant.wait) for one in ready]
    times = np.zeros((len(turns), len(ready)))
    for place, turn in enumerate(turns):
        for number in turn:
            times[place, number] = ready[number].seconds(calls[number])
    return times


def _loops(run: Any) -> bool:
    """Whether a program that JAX compiled has a loop in it."""
    return hasattr(run, "as_text") and " while(" in (run.as_text() or "")


def _compiled(contestants: Sequence[Contestant], dtype: str) -> list[Callable[[], tuple[Any, float]]]:
    """Of each what gives its program and the seconds that took: on an accelerator, compiled beside each other."""
    ways = [partial(_compile, one, dtype) for one in contestants]
    if not accelerated():
        return ways
    pool = ThreadPoolExecutor(max(1, len(ways)))
    found = [pool.submit(way).result if one.jitted else way for one, way in zip(contestants, ways, strict=True)]
    pool.shutdown(wait=False)
    return found


def _compile(contestant: Contestant, dtype: str) -> tuple[Any, float]:
    """What to call, and the seconds of JAX's compilation, or of the first call of another."""
    if not contestant.jitted:
        began = time.perf_counter()
        contestant.wait(contestant.work(*contestant.arguments))
        return contestant.work, time.perf_counter() - began
    with _TRACING, exact(dtype):
        began = time.perf_counter()
        donated = tuple(range(contestant.carried))
        lowered = jax.jit(contestant.work, donate_argnums=donated).lower(*contestant.arguments)
    return lowered.compile(), time.perf_counter() - began


def _digits(milliseconds: float) -> float:
    return round(float(milliseconds), 2 if milliseconds >= 1 else 4)


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

"""What the machine can do at best, and what a call takes of it: time, memory, and the roofs figures stand under."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What work needs of a roof, by the roof's name, in units: operations, bytes read and written, evaluations.
Needs = Mapping[str, float]
# The side of the matrices, the elements of the vector, and how many tanh in a row: read and written once, a vector
# that fills an accelerator would show the rate of its memory.
ON_CPU, ON_ACCELERATORS = (2048, 1 << 24, 1), (8192, 1 << 28, 16)
# Of data sheets: billions of operations a second of dense products in bfloat16.
PEAKS = {"NVIDIA H100 80GB HBM3": 989_400.0, "NVIDIA H200": 989_400.0}
OF_PEAK = "of its data sheet; padding and the hidden half of causal attention count"
HIDDEN = 0.2  # Seconds of calls back to back in which the launch of the first one does not count.


def accelerated() -> bool:
    """Whether JAX computes elsewhere than on the CPU."""
    return jax.default_backend() != "cpu"


def exact(dtype: str) -> AbstractContextManager[Any]:
    """In which float32 means float32: an accelerator's products would round its inputs to fewer digits."""
    return jax.default_matmul_precision("highest") if accelerated() and dtype == "float32" else nullcontext()


@cache
def roofs(dtype: str = "float32", repetitions: int = 7) -> dict[str, float]:
    """Medians, measured on the spot: billions a second of a matrix product's operations, a copy's bytes, and tanh."""
    side, size, tanhs = ON_ACCELERATORS if accelerated() else ON_CPU
    matrix, vector = jnp.ones((side, side), dtype), jnp.linspace(-1.0, 1.0, size, dtype=dtype)
    work = {
        "matmul_gflops": (jnp.matmul, (matrix, matrix), 2 * side**3),
        "copy_gb_per_s": (lambda x: x + 1, (vector,), 2 * vector.nbytes),
        "tanh_g_per_s": (lambda x: _tanh(x, tanhs), (vector,), tanhs * vector.size),
    }
    measured = {}
    for name, (function, arguments, amount) in work.items():
        with exact(dtype):
            compiled = jax.jit(function).lower(*arguments).compile()
        calls = enough(compiled, arguments)
        times = [seconds(compiled, arguments, calls=calls) for _ in range(1 + repetitions)][1:]
        measured[name] = round(amount / float(np.median(times)) / 1e9, 2)
    return measured


def under_roof(needs: Needs, dtype: str) -> tuple[str | None, float]:
    """The roof that bounds work with such needs, and the seconds that it takes at that roof."""
    bounds = {name: amount / (1e9 * roofs(dtype)[name]) for name, amount in needs.items()}
    roof = max(bounds, key=bounds.__getitem__, default=None)
    return roof, 0.0 if roof is None else bounds[roof]


def utilisation(fraction: float, measured: Mapping[str, float], kind: str) -> float:
    """The share of a device's peak by its data sheet, from that of the matrix product that was measured on it."""
    return fraction * measured["matmul_gflops"] / PEAKS[kind]


def seconds(
    run: Callable[..., Any], arguments: tuple[Any, ...], wait: Callable[[Any], Any] = jax.block_until_ready, *,
    calls: int = 1,
) -> float:  # fmt: skip
    """The time of one call, until its results are there; of several back to back, the mean."""
    began = time.perf_counter()
    for _ in range(calls):
        result = run(*arguments)
    wait(result)
    return (time.perf_counter() - began) / calls


def enough(
    run: Callable[..., Any], arguments: tuple[Any, ...], wait: Callable[[Any], Any] = jax.block_until_ready
) -> int:
    """How many calls back to back hide an accelerator's launches, 50 at most; a CPU has none to hide."""
    if not accelerated():
        return 1
    seconds(run, arguments, wait)
    return min(50, 1 + int(HIDDEN / seconds(run, arguments, wait)))


def peak(run: Callable[..., Any], arguments: tuple[Any, ...]) -> int | None:
    """How many bytes a call adds to the resident memory of this process at its peak.

    None where Linux does not tell, or where the memory is that of an accelerator.
    """
    if accelerated():
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        jax.block_until_ready(run(*arguments))
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def _tanh(x: jax.Array, times: int) -> jax.Array:
    for _ in range(times):
        x = jnp.tanh(x)
    return x


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

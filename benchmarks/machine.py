"""What the machine can do at best, and what a call takes of it: time, memory, and the roofs figures stand under."""

import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What work needs of a roof, by the roof's name, in units: operations, bytes read and written, evaluations.
Needs = Mapping[str, float]


@cache
def roofs(dtype: str = "float32", repetitions: int = 7) -> dict[str, float]:
    """Medians, measured on the spot: billions a second of a matrix product's operations, a copy's bytes, and tanh."""
    matrix, vector = jnp.ones((2048, 2048), dtype), jnp.linspace(-1.0, 1.0, 1 << 24, dtype=dtype)
    work = {
        "matmul_gflops": (jnp.matmul, (matrix, matrix), 2 * 2048**3),
        "copy_gb_per_s": (lambda x: x + 1, (vector,), 2 * vector.nbytes),
        "tanh_g_per_s": (jnp.tanh, (vector,), vector.size),
    }
    measured = {}
    for name, (function, arguments, amount) in work.items():
        compiled = jax.jit(function).lower(*arguments).compile()
        times = [seconds(compiled, arguments) for _ in range(1 + repetitions)][1:]
        measured[name] = round(amount / float(np.median(times)) / 1e9, 2)
    return measured


def under_roof(needs: Needs, dtype: str) -> tuple[str | None, float]:
    """The roof that bounds work with such needs, and the seconds that it takes at that roof."""
    bounds = {name: amount / (1e9 * roofs(dtype)[name]) for name, amount in needs.items()}
    roof = max(bounds, key=bounds.__getitem__, default=None)
    return roof, 0.0 if roof is None else bounds[roof]


def seconds(run: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """The time of one call, until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - began


def peak(run: Callable[..., Any], arguments: tuple[Any, ...]) -> int | None:
    """How many bytes a call adds to the resident memory of this process at its peak.

    None where Linux does not tell, or where the memory is that of an accelerator.
    """
    if jax.default_backend() != "cpu":
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        jax.block_until_ready(run(*arguments))
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

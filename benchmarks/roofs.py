"""What this machine can do at best, measured on the spot: the roofs that a benchmark's figures stand under."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import seconds


def roofs(repetitions: int = 7) -> dict[str, float]:
    """Medians of a matrix product (GFLOP/s), a copy (GB/s, read and write) and tanh (billions a second), float32."""
    matrix, vector = jnp.ones((2048, 2048)), jnp.linspace(-1.0, 1.0, 1 << 24)
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

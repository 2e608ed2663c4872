"""What does our door cost in front of an outside attention kernel, cuDNN's or tokamax's, against the raw call?

`dot_product_attention(implementation=...)` beside `jax.nn.dot_product_attention(implementation="cudnn")` and
`tokamax.dot_product_attention`: forward and with the gradient, in bfloat16 or float32, on [B, T, H, D], as projections
leave their heads and the raw calls want them. Ours takes [B, H, T, D]: as in a Transformer's block, the axes are
swapped in front of it and behind, which the compiler may undo. The cases are no mask, a causal mask, padding as a mask
and as the lengths of the sources, and two key heads for eight query heads. cuDNN takes bfloat16 alone, on NVIDIA's
GPUs. tokamax chooses its kernel; on a CPU that is XLA's. Contexts and
gradients are compared before anything is timed (`TOLERANCES`, relative to the largest value).
"""

import sys
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.dot_product import dot_product_attention
from benchmarks import attention
from benchmarks.attention import BY_LENGTHS, GROUPED, PRODUCTS, Entrant
from benchmarks.harness import compare
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row

SIZES = {"small": (2, 4, 38, 16), "paper": (8, 8, 512, 64), "long": (2, 8, 4096, 64)}  # B, H, T, D
CASES = ("plain", "causal", "masked", BY_LENGTHS, "grouped")
TOLERANCES = attention.TOLERANCES


def benchmark(
    size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None, dtype: str = "float32"
) -> Iterator[Row]:
    """Rows of every kernel that is there, or of the named ones, in every case: ours and the raw call."""
    batch, heads, steps, width = SIZES[known(size, SIZES, "size")]
    tolerance = TOLERANCES[known(dtype, TOLERANCES, "dtype")]
    timed = partial(compare, "kernels", tolerance=tolerance, repetitions=repetitions, dtype=dtype)
    for kernel, raw in _there(peers, dtype).items():
        ours = Entrant(partial(_swapped, kernel))
        for case in CASES:
            options, pairs = attention.case_options(case, batch, steps)
            key_heads = heads // GROUPED if case == "grouped" else heads
            arrays = attention.inputs(batch, heads, key_heads, steps, width, dtype)
            for direction, products in PRODUCTS.items():
                contestants = [
                    one.contestant(name, direction, arrays, options) for name, one in {OURS: ours, **raw}.items()
                ]
                needs = {"matmul_gflops": 2 * batch * heads * pairs * width * products}
                label = f"{kernel}, B{batch} H{heads} T{steps} D{width} {case}"
                yield from timed(label, direction, contestants, needs=needs)


def _swapped(kernel: str, *arrays: jax.Array, **options: Any) -> jax.Array:
    heads_first = (jnp.swapaxes(array, 1, 2) for array in arrays)
    return jnp.swapaxes(dot_product_attention(*heads_first, implementation=kernel, **options), 1, 2)


def _there(peers: Collection[str] | None, dtype: str) -> dict[str, dict[str, Entrant]]:
    found = bring(PEERS, peers)
    if dtype != "bfloat16" and found.pop("cudnn", None):
        print(f"cudnn takes no {dtype}: left out", file=sys.stderr)
    return found


def _cudnn() -> dict[str, Entrant]:
    if jax.default_backend() != "gpu":
        raise ImportError("it runs on NVIDIA's GPUs alone")
    return {"jax.nn cudnn": Entrant(partial(attention.jax_nn, implementation="cudnn"))}


PEERS: Peers = {"cudnn": _cudnn, "tokamax": lambda: {"tokamax": Entrant(attention.tokamax())}}

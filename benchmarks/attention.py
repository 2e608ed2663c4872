"""How fast is scaled dot-product attention, forward and with its gradient, against flax.linen, jax.nn and tokamax?

Eight heads of width 64: batch 8 at 512 positions ("paper"), batch 1 at 4096 ("long"), in float32 or bfloat16. The cases
are no mask, a causal mask and padding; contexts and gradients are compared before anything is timed (`TOLERANCES`,
relative to the largest value: in bfloat16 four steps of its grid, as peers round between the two products). Each peer
gets the layout that it asks for, [B, T, H, D], from the start; tokamax takes part where it can be imported.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FLAGS
from flax import linen as nn

from attention_zoo.functional import masks
from attention_zoo.functional.dot_product import dot_product_attention
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, check_guest, known
from benchmarks.rows import Row

SIZES = {"small": (2, 3, 37, 8), "paper": (8, 8, 512, 64), "long": (1, 8, 4096, 64)}  # B, H, T, D
CASES = ("plain", "causal", "masked")
TOLERANCES = {"float32": 1e-4, "bfloat16": 4 * 2.0**-7}
LAYOUTS = {"BHTD": 1, "BTHD": 2}  # and the axis of the heads
Attention = Callable[..., jax.Array]


def benchmark(
    size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None, dtype: str = "float32"
) -> list[Row]:
    """Rows for every case, forward and with the gradient of queries, keys and values; `peers`: all by default."""
    return _measure(_entrants(peers), size, repetitions, CASES, dtype)


def contest(
    name: str,
    attention: Attention,
    size: str = "paper",
    repetitions: int = 15,
    *,
    layout: str = "BHTD",
    cases: Sequence[str] = CASES,
    peers: Collection[str] | None = None,
    dtype: str = "float32",
) -> list[Row]:
    """The benchmark with one contestant more, a function of your own.

    Args:
        name: what its rows are called.
        attention: `(queries, keys, values) -> context`, in JAX; in the case "causal" it is also given `causal=True`,
            and in "masked" `mask=`, True = may attend, [B, 1, 1, S].
        layout: of its arrays, "BHTD" or "BTHD".
        cases: those that it can do.
        peers: who else takes part beside attention_zoo; by default all that can be imported.

    Raises:
        UserError: its context or gradients differ from attention_zoo's; or there is no such layout, size, case or
            dtype, or the name is taken.
    """
    check_guest(name, PEERS)
    axis = LAYOUTS[known(layout, LAYOUTS, "layout")]
    return _measure({**_entrants(peers), name: (attention, axis)}, size, repetitions, cases, dtype)


def _entrants(peers: Collection[str] | None) -> dict[str, tuple[Attention, int]]:
    """Each contestant's function and the axis of its heads."""
    found = {name: (attention, LAYOUTS["BTHD"]) for name, attention in bring(PEERS, peers).items()}
    return {OURS: (dot_product_attention, LAYOUTS["BHTD"]), **found}


def _measure(
    entrants: dict[str, tuple[Attention, int]], size: str, repetitions: int, cases: Sequence[str], dtype: str
) -> list[Row]:
    batch, heads, steps, width = SIZES[known(size, SIZES, "size")]
    tolerance = TOLERANCES[known(dtype, TOLERANCES, "dtype")]
    normal = np.random.default_rng(0).normal
    arrays = tuple(jnp.asarray(normal(size=(batch, heads, steps, width)), dtype) for _ in range(4))
    timed = partial(compare, tolerance=tolerance, repetitions=repetitions, dtype=dtype)
    placed = {1: arrays, 2: tuple(jnp.swapaxes(array, 1, 2) for array in arrays)}
    product = 2 * batch * heads * steps**2 * width
    rows = []
    for case in cases:
        options = _options(known(case, CASES, "case"), batch, steps)
        pairs = 0.5 if case == "causal" else 1.0
        name = f"B{batch} H{heads} T{steps} D{width} {case}"
        for direction, work, products in (("forward", _forward, 2), ("forward+gradient", _gradient, 6)):
            contestants = [
                Contestant(entrant, partial(work, partial(attention, **options)), placed[axis], partial(_leading, axis))
                for entrant, (attention, axis) in entrants.items()
            ]
            needs = {"matmul_gflops": pairs * products * product}
            rows += timed("attention", name, direction, contestants, needs=needs)
    return rows


def _options(case: str, batch: int, steps: int) -> dict[str, Any]:
    """What a case adds to the arguments."""
    lengths = np.random.default_rng(1).integers(steps // 2, steps + 1, batch)
    mask = masks.padding(jnp.asarray(lengths), steps)[:, None]
    options: dict[str, dict[str, Any]] = {"plain": {}, "causal": {"causal": True}, "masked": {"mask": mask}}
    return options[case]


def _flax_linen(queries: Any, keys: Any, values: Any, mask: Any = None, causal: bool = False) -> jax.Array:
    """It has no causal argument and gets the mask that its make_causal_mask makes."""
    whole = nn.make_causal_mask(jnp.zeros((1, queries.shape[1])), dtype=bool) if causal else mask
    return nn.dot_product_attention(queries, keys, values, mask=whole)


def _by_is_causal(attention: Attention) -> Attention:
    return lambda *arrays, mask=None, causal=False: attention(*arrays, mask=mask, is_causal=causal)


def _tokamax() -> Attention:
    if not FLAGS.is_parsed():  # tokamax reads the command line, which is not its own
        FLAGS(sys.argv[:1])
    return _by_is_causal(import_module("tokamax").dot_product_attention)


PEERS: Peers = {
    "flax.linen": lambda: _flax_linen,
    "jax.nn": lambda: _by_is_causal(jax.nn.dot_product_attention),
    "tokamax": _tokamax,
}


def _forward(attention: Attention, queries: Any, keys: Any, values: Any, cotangent: Any) -> Any:
    return (attention(queries, keys, values),)


def _gradient(attention: Attention, queries: Any, keys: Any, values: Any, cotangent: Any) -> Any:
    context, pull_back = jax.vjp(attention, queries, keys, values)
    return context, *pull_back(cotangent)


def _leading(axis: int, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The results with the heads, which stand at `axis`, in one place: [B, H, T, D]."""
    return tuple(jnp.moveaxis(result, axis, 1) for result in results)

"""How fast is scaled dot-product attention, forward and with its gradient, against flax.linen, jax.nn and tokamax?

Eight heads of width 64 in float32: batch 8 at 512 positions ("paper"), batch 1 at 4096 ("long"). The cases are no mask,
a causal mask and padding; contexts and gradients are compared before anything is timed. Each peer gets the layout that
it asks for, [B, T, H, D], from the start; tokamax takes part where it is installed.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FLAGS
from flax import linen as nn

from attention_zoo.functional import masks
from attention_zoo.functional.dot_product import dot_product_attention
from benchmarks.harness import Contestant, Row, compare

SIZES = {"small": (2, 3, 37, 8), "paper": (8, 8, 512, 64), "long": (1, 8, 4096, 64)}  # B, H, T, D
CASES = ("plain", "causal", "masked")
Attention = Callable[..., jax.Array]


def benchmark(size: str = "paper", repetitions: int = 15) -> list[Row]:
    """Rows for every case, forward and with the gradient of queries, keys and values."""
    batch, heads, steps, width = SIZES[size]
    normal = np.random.default_rng(0).normal
    arrays = [jnp.float32(normal(size=(batch, heads, steps, width))) for _ in range(4)]
    turned = [jnp.swapaxes(array, 1, 2) for array in arrays]
    lengths = np.random.default_rng(1).integers(steps // 2, steps + 1, batch)
    rows = []
    for case in CASES:
        mask = masks.padding(jnp.asarray(lengths), steps)[:, None] if case == "masked" else None
        ours = partial(dot_product_attention, mask=mask, causal=case == "causal")
        contestants: dict[str, Attention] = {"attention_zoo": ours, **_peers(case == "causal", mask, steps)}
        name = f"B{batch} H{heads} T{steps} D{width} {case}"
        for direction, work in (("forward", _forward), ("forward+gradient", _gradient)):
            entries = [
                Contestant(peer, partial(work, attention), tuple(arrays), partial(_leading, 1))
                if peer == "attention_zoo"
                else Contestant(peer, partial(work, attention), tuple(turned), partial(_leading, 2))
                for peer, attention in contestants.items()
            ]
            rows += compare("attention", name, direction, entries, tolerance=1e-4, repetitions=repetitions)
    return rows


def _peers(causal: bool, mask: jax.Array | None, steps: int) -> dict[str, Attention]:
    """What the peers offer: flax.linen has no causal argument and gets the mask its make_causal_mask makes."""
    whole = nn.make_causal_mask(jnp.zeros((1, steps)), dtype=bool) if causal else mask
    peers: dict[str, Attention] = {
        "flax.linen": partial(nn.dot_product_attention, mask=whole),
        "jax.nn": partial(jax.nn.dot_product_attention, mask=mask, is_causal=causal),
    }
    if find_spec("tokamax") is not None:
        if not FLAGS.is_parsed():  # tokamax reads the command line, which is not its own
            FLAGS(sys.argv[:1])
        peers["tokamax"] = partial(import_module("tokamax").dot_product_attention, mask=mask, is_causal=causal)
    return peers


def _forward(attention: Attention, queries: Any, keys: Any, values: Any, cotangent: Any) -> Any:
    return (attention(queries, keys, values),)


def _gradient(attention: Attention, queries: Any, keys: Any, values: Any, cotangent: Any) -> Any:
    context, pull_back = jax.vjp(attention, queries, keys, values)
    return context, *pull_back(cotangent)


def _leading(axis: int, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The results with the heads, which stand at `axis`, in one place: [B, H, T, D]."""
    return tuple(jnp.moveaxis(result, axis, 1) for result in results)

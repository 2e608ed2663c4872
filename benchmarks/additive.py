"""How fast and how large is additive attention over whole sequences, against the plain formula with autodiff?

Forward and gradient by queries, keys, values and energy, in float32 or bfloat16, nothing masked. Plain JAX is
`tanh(q + k) @ v -> softmax -> einsum`; Keras's AdditiveAttention (on its JAX backend) takes part where it can be
imported. All have the same arguments and must give the same context and gradients before anything is timed
(`TOLERANCES`, relative to the largest value). In bfloat16 the peers also sum in it: on a CPU Keras's gradient of the
energy is not equal at "paper", and `--peers "plain JAX"` leaves it out.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.functional.additive_attention import additive_attention
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, check_guest, keras_layers, known
from benchmarks.rows import Row

SIZES = {"small": (2, 7, 5, 11), "paper": (32, 50, 50, 256), "long": (16, 256, 256, 256)}
# The energy's gradient sums B T S terms that cancel; summed in one go, as the peers do, it loses digits. In bfloat16,
# whose steps are 2^-7, so does that of the queries.
TOLERANCES = {"float32": 1e-4, "bfloat16": 8 * 2.0**-7}

Attention = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def plain(queries: jax.Array, keys: jax.Array, values: jax.Array, energy: jax.Array) -> jax.Array:
    """Additive attention as one would write it first."""
    scores = jnp.tanh(queries[:, :, None] + keys[:, None]) @ energy
    return jnp.einsum("bts,bsv->btv", jax.nn.softmax(scores), values)


def benchmark(
    size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None, dtype: str = "float32"
) -> list[Row]:
    """One row each for attention_zoo and the peers, by default all: forward and gradient."""
    return _measure({OURS: additive_attention, **bring(PEERS, peers)}, size, repetitions, dtype)


def contest(
    name: str,
    attention: Attention,
    size: str = "paper",
    repetitions: int = 15,
    *,
    peers: Collection[str] | None = None,
    dtype: str = "float32",
) -> list[Row]:
    """The benchmark with one contestant more, a function of your own.

    Args:
        name: what its row is called.
        attention: `(queries [B, T, D], keys [B, S, D], values [B, S, V], energy [D]) -> context [B, T, V]`, in JAX.
        peers: who else takes part beside attention_zoo; by default all that can be imported.

    Raises:
        UserError: its context or gradients differ from attention_zoo's; or there is no such size or dtype, or the
            name is taken.
    """
    check_guest(name, PEERS)
    entrants = {OURS: additive_attention, **bring(PEERS, peers), name: attention}
    return _measure(entrants, size, repetitions, dtype)


def _measure(entrants: dict[str, Attention], size: str, repetitions: int, dtype: str) -> list[Row]:
    batch, steps, source, width = SIZES[known(size, SIZES, "size")]
    tolerance = TOLERANCES[known(dtype, TOLERANCES, "dtype")]
    generator = np.random.default_rng(0)
    shapes = (batch, steps, width), (batch, source, width), (batch, source, width), (width,), (batch, steps, width)
    *arguments, cotangents = (jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes)
    arguments[3] = arguments[3] * width**-0.5
    contestants = [Contestant(name, _work(attention), (arguments, cotangents)) for name, attention in entrants.items()]
    case = f"B{batch} T{steps} S{source} D{width}"
    timed = partial(compare, tolerance=tolerance, repetitions=repetitions, dtype=dtype)
    needs = {"tanh_g_per_s": batch * steps * source * width}
    return timed("additive", case, "forward+gradient", contestants, needs=needs)


def _work(attention: Attention) -> Callable[..., Any]:
    def work(arguments: list[jax.Array], cotangents: jax.Array) -> Any:
        context, pull_back = jax.vjp(attention, *arguments)
        return context, pull_back(cotangents)

    return work


def _keras() -> Attention:
    """Keras's layer as a function of its arguments."""
    layers = keras_layers()

    def attention(queries: jax.Array, keys: jax.Array, values: jax.Array, energy: jax.Array) -> jax.Array:
        with jax.ensure_compile_time_eval():
            layer = layers.AdditiveAttention(dtype=str(queries.dtype))
            layer.build([queries.shape, values.shape, keys.shape])
        return layer.stateless_call([energy], [], [queries, values, keys])[0]

    return attention


PEERS: Peers = {"plain JAX": lambda: plain, "keras": _keras}

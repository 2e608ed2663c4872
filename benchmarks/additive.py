"""How fast and how large is additive attention over whole sequences, against the plain formula with autodiff?

Forward and gradient by queries, keys, values and energy, all float32, nothing masked. Plain JAX is
`tanh(q + k) @ v -> softmax -> einsum`; Keras's AdditiveAttention (on its JAX backend) takes part where it can be
imported. All have the same arguments and must give the same context and gradients.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.functional.additive_attention import additive_attention
from benchmarks.harness import Contestant, Row, compare

SIZES = {"small": (2, 7, 5, 11), "paper": (32, 50, 50, 256), "long": (16, 256, 256, 256)}

Attention = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def plain(queries: jax.Array, keys: jax.Array, values: jax.Array, energy: jax.Array) -> jax.Array:
    """Additive attention as one would write it first."""
    scores = jnp.tanh(queries[:, :, None] + keys[:, None]) @ energy
    return jnp.einsum("bts,bsv->btv", jax.nn.softmax(scores), values)


def benchmark(size: str = "paper", repetitions: int = 15) -> list[Row]:
    """One row each for attention_zoo and the peers: forward and gradient."""
    batch, steps, source, width = SIZES[size]
    generator = np.random.default_rng(0)
    shapes = (batch, steps, width), (batch, source, width), (batch, source, width), (width,), (batch, steps, width)
    *arguments, cotangents = (jnp.float32(generator.normal(size=shape)) for shape in shapes)
    arguments[3] = arguments[3] * width**-0.5
    peers: dict[str, Attention] = {"attention_zoo": additive_attention, "plain JAX": plain}
    if (keras := _keras(width)) is not None:
        peers["keras"] = keras
    contestants = [Contestant(name, _work(attention), (arguments, cotangents)) for name, attention in peers.items()]
    # The energy's gradient sums B T S terms that cancel; summed in one go, as the peers do, it loses digits.
    case = f"B{batch} T{steps} S{source} D{width}"
    return compare("additive", case, "forward+gradient", contestants, tolerance=1e-4, repetitions=repetitions)


def _work(attention: Attention) -> Callable[..., Any]:
    def work(arguments: list[jax.Array], cotangents: jax.Array) -> Any:
        context, pull_back = jax.vjp(attention, *arguments)
        return context, pull_back(cotangents)

    return work


def _keras(width: int) -> Attention | None:
    """Keras's layer as a function of its arguments; None where there is no Keras, or one with another backend."""
    if find_spec("keras") is None:
        return None
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    if keras.config.backend() != "jax":
        return None
    layer = keras.layers.AdditiveAttention()
    layer.build([(None, None, width)] * 3)

    def attention(queries: jax.Array, keys: jax.Array, values: jax.Array, energy: jax.Array) -> jax.Array:
        return layer.stateless_call([energy], [], [queries, values, keys])[0]

    return attention

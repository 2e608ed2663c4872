"""Additive attention over whole sequences, in bounded memory: the [..., T, S, D] tensor of the score never exists."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.attend import read
from attention_zoo.functional.loop import project
from attention_zoo.notation import Array, Bool, Float, checked

# Elements of the [chunk, S, D] block that one step works on: on a CPU, about what the cache of its cores holds.
BLOCK, CPU_BLOCK = 2**25, 2**19
# Up to LARGEST, e^2q and e^2k are normal float32 numbers. Their product is rounded as if q + k were near one, so where
# all are below SMALLEST the gradient of the energy would lose digits.
SMALLEST, LARGEST = 2.0**-4, 43.0


@checked
def additive_attention(
    queries: Float[Array, "*b T D"],
    keys: Float[Array, "*b S D"],
    values: Float[Array, "*b S V"],
    energy: Float[Array, " D"],
    mask: Bool[Array, "*#b #T S"] | None = None,
    *,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> Float[Array, "*b T V"]:
    """Additive attention, `c_t = sum_s softmax_s(v^T tanh(W q_t + U k_s)) v_s` (Bahdanau 2014, eq. 5, 6 and A.1.2).

    Equal to `attend` with the additive score up to rounding, in value and gradient, but a chunk of queries at a time,
    which the backward pass computes once more: memory grows with T and S, not with T S. It returns no weights.
    Computed in float32 at least. Reverse mode only (`jax.grad`, `jax.vjp`).

    Args:
        queries: `W q_t` (with a bias, where there is one), [..., T, D].
        keys: `U k_s`, computed once per sequence, [..., S, D].
        values: [..., S, V].
        energy: `v`, [D].
        mask: True = may attend; broadcasts against [..., T, S]. A row of nothing has a context of zeros.
        dropout: the share of the weights that are dropped, each on its own; the others grow by 1 / (1 - dropout).
        key: for dropout, one for all; what is dropped also depends on the chunk.
        chunk: queries at a time; by default as many as suit the backend.

    Returns:
        context [..., T, V], in the dtype of `values`.

    Raises:
        ValueError: dropout lies outside [0, 1) or has no key, or the chunk is below 1.
    """
    _check(dropout, key, chunk)
    *lead, steps, width = queries.shape
    source, examples = keys.shape[-2], math.prod(lead)
    if 0 in (*lead, steps, source):
        return jnp.zeros((*lead, steps, values.shape[-1]), values.dtype)
    queries, keys, values = (jnp.asarray(a).reshape(examples, *a.shape[-2:]) for a in (queries, keys, values))
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*lead, *mask.shape[-2:])).reshape(examples, *mask.shape[-2:])
    on_cpu = jax.default_backend() == "cpu"
    room = max(1, (CPU_BLOCK if on_cpu else BLOCK) // max(1, source * width))  # pairs of an example and a query
    chunk = min(chunk or room, steps)
    moderate = _moderate(queries, keys, mask) if on_cpu else None
    one = partial(_example, energy=jnp.asarray(energy), moderate=moderate, dropout=dropout, chunk=chunk)
    random = jax.random.split(key, examples) if dropout and key is not None else None
    # Example by example where one fills the room: a batch_size of one would make XLA copy all arguments.
    group = {"batch_size": min(room // chunk, examples)} if room >= 2 * chunk else {}
    recomputed = jax.checkpoint(lambda example: one(*example), prevent_cse=False)
    context = jax.lax.map(recomputed, (queries, keys, values, mask, random), **group)
    return context.reshape(*lead, steps, -1).astype(values.dtype)


def _check(dropout: float, key: jax.Array | None, chunk: int | None) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"additive_attention: dropout lies in [0, 1); got {dropout}")
    if dropout and key is None:
        raise ValueError(f"additive_attention: dropout draws from a key; got dropout {dropout} and no key")
    if chunk is not None and chunk < 1:
        raise ValueError(f"additive_attention: a chunk is at least 1 query; got {chunk}")


def _example(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array | None,
    random: jax.Array | None,
    *,
    energy: jax.Array,
    moderate: jax.Array | None,
    dropout: float,
    chunk: int,
) -> jax.Array:
    """The context of one example, [T, V]: a loop over chunks of its queries, equal in size up to padding."""
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    queries, keys, values, energy = (array.astype(wide) for array in (queries, keys, values, energy))
    steps, number = len(queries), -(-len(queries) // chunk)

    def chunked(rows: jax.Array) -> jax.Array:
        size = -(-steps // number)
        return jnp.pad(rows, ((0, number * size - steps), (0, 0))).reshape(number, size, -1)

    own_rows = mask is not None and len(mask) > 1
    powers = _powers(keys)

    @partial(jax.checkpoint, prevent_cse=False)
    def step(part: tuple[Any, ...]) -> jax.Array:
        queries, rows, n = part
        hidden = _tanh_of_sum(queries, keys, (_powers(queries), powers), moderate)
        weights = softmax(project(hidden, energy[:, None])[..., 0], rows if own_rows else mask)
        if random is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(random, n), 1 - dropout, weights.shape)
            weights = jnp.where(kept, weights / (1 - dropout), 0)
        return read(weights, values)

    parts = (chunked(queries), chunked(mask) if mask is not None and own_rows else None, jnp.arange(number))
    return jax.lax.map(step, parts).reshape(-1, values.shape[-1])[:steps]


def _powers(inputs: jax.Array) -> jax.Array:
    """`e^2x`, without a gradient. What is clipped here is hidden by the mask, or read by nobody."""
    return jax.lax.stop_gradient(jnp.exp(2 * jnp.clip(inputs, -LARGEST, LARGEST)))


def _moderate(queries: jax.Array, keys: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Whether all that may be attended to, or from, has a size for which `_tanh_of_sum` may use its exponentials."""
    sizes = [jnp.abs(jax.lax.stop_gradient(array)) for array in (queries, keys)]
    if mask is not None:
        sizes = [jnp.where(jnp.any(mask, axis)[..., None], size, 0) for size, axis in zip(sizes, (-1, -2), strict=True)]
    largest = jnp.maximum(jnp.max(sizes[0]), jnp.max(sizes[1]))
    return (largest > SMALLEST) & (largest < LARGEST)


@jax.custom_vjp
def _tanh_of_sum(queries: jax.Array, keys: jax.Array, powers: Any, moderate: jax.Array | None) -> jax.Array:
    """`tanh(q_t + k_s)`, [T, S, D]; where moderate, as `1 - 2 / (1 + e^2q e^2k)`: one division instead of a tanh."""

    def by_tanh() -> jax.Array:
        return jnp.tanh(queries[:, None] + keys[None])

    def by_powers() -> jax.Array:
        return 1 - 2 / (1 + powers[0][:, None] * powers[1][None])

    return by_tanh() if moderate is None else jax.lax.cond(moderate, by_powers, by_tanh)


def _forward(*arguments: Any) -> tuple[jax.Array, jax.Array]:
    hidden = _tanh_of_sum(*arguments)
    return hidden, hidden


def _backward(hidden: jax.Array, gradient: jax.Array) -> tuple[Any, ...]:
    gradient = gradient * (1 - jnp.square(hidden))
    # The sum over the queries as a product: XLA:CPU sums over a leading axis far more slowly.
    by_keys = jnp.ones((1, len(hidden)), hidden.dtype) @ gradient.reshape(len(hidden), -1)
    return gradient.sum(1), by_keys.reshape(hidden.shape[1:]), None, None


_tanh_of_sum.defvjp(_forward, _backward)

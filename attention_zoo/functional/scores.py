"""Score: how relevant is source position s to query t? Each function gives scores [..., T, S].

Leading axes of queries and keys broadcast. What a score learns comes in as arrays; `modules.scores`
owns them. Scores that project their keys take keys that are projected already, once per sequence.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.arrays import apart, varying
from attention_zoo.functional.masks import same_rank
from attention_zoo.functional.products import join_queries, product, project, recalling
from attention_zoo.notation import Array, Float, checked

TERMS = 64  # of a sum in one loop; with more of them XLA:CPU takes it apart


@checked
def dot(queries: Float[Array, "*#b T D"], keys: Float[Array, "*#b S D"]) -> Float[Array, "*b T S"]:
    """Dot score, `e_ts = q_t^T k_s` (Luong 2015, eq. 8); queries and keys need equal widths.

    >>> dot(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0], [5.0, 6.0]]))
    Array([[11., 17.]], dtype=float32)
    """
    return product(partial(jnp.einsum, "...td,...sd->...ts"), queries, keys, join=join_queries)


@checked
def scaled_dot(queries: Float[Array, "*#b T D"], keys: Float[Array, "*#b S D"]) -> Float[Array, "*b T S"]:
    """Scaled dot score, `e_ts = q_t^T k_s / sqrt(D)` (Vaswani 2017, eq. 1)."""
    return dot(queries * (queries.shape[-1] ** -0.5), keys)


@checked
def general(
    queries: Float[Array, "*#b T D"], keys: Float[Array, "*#b S K"], weight: Float[Array, "D K"]
) -> Float[Array, "*b T S"]:
    """General (bilinear) score, `e_ts = q_t^T W k_s` (Luong 2015, eq. 8).

    With keys projected once, `k'_s = W k_s`, this is `dot(queries, k')`.
    """
    return dot(queries, project(keys, weight.T))


@checked
def additive(
    queries: Float[Array, "*#b T D"], keys: Float[Array, "*#b S D"], energy: Float[Array, " D"]
) -> Float[Array, "*b T S"]:
    """Additive score, `e_ts = v^T tanh(W q_t + U k_s)` (Bahdanau 2014, A.1.2), of projected queries and keys.

    Args:
        queries: `W q_t`, [..., T, D].
        keys: `U k_s`, computed once per sequence, [..., S, D]; a bias is added to either of both.
        energy: `v`, [D].

    Returns:
        scores [..., T, S]; on the way a [..., T, S, D] tensor exists.

    Where a gradient is taken of `loop.scan` on a CPU, its step cannot itself take `jax.jvp` of this.

    >>> additive(jnp.zeros((1, 2)), jnp.zeros((3, 2)), jnp.ones(2))
    Array([[0., 0., 0.]], dtype=float32)
    """
    queries, keys = same_rank(queries, keys)
    if recalling() and jax.default_backend() == "cpu" and _simple(queries, keys, energy):
        return _additive_once_more(*varying(queries, keys, energy))
    # The [..., T, S, D] tensor is cheaper to compute again in the backward pass than to keep, above all in a scan.
    return jax.checkpoint(_additive, prevent_cse=False)(queries, keys, energy)


def _additive(queries: Array, keys: Array, energy: Array) -> Array:
    return jnp.tanh(queries[..., :, None, :] + keys[..., None, :, :]) @ energy


def _simple(queries: Array, keys: Array, energy: Array) -> bool:
    """Nothing broadcasts, nothing is empty or of a size without a number, and sums may be in the one dtype of all."""
    same = queries.shape[:-2] == keys.shape[:-2] and queries.dtype == keys.dtype == energy.dtype
    known = all(isinstance(size, int) and size for size in (*queries.shape, *keys.shape))  # jax.export knows names
    return bool(same and known and queries.dtype.itemsize >= 4)


# Going back, JAX would write a second tensor of that size, to sum it over S and to add it to the keys' gradient;
# XLA:CPU can do each in one pass over the first.
_additive_once_more = jax.custom_vjp(_additive)


def _forward(queries: Array, keys: Array, energy: Array) -> tuple[Array, Any]:
    hidden = jnp.tanh(queries[..., :, None, :] + keys[..., None, :, :])
    return hidden @ energy, (hidden, energy)


def _backward(kept: Any, gradient: Array) -> tuple[Array, Array, Array]:
    hidden, energy = kept
    axis = hidden.ndim - 3
    by_queries = sum_of_slopes(gradient, hidden, axis + 1)
    by_keys = (gradient[..., None] * (1 - jnp.square(hidden))).sum(axis)
    v = jnp.expand_dims(energy, range(axis + 1))
    # Apart: from jax 0.11 on, XLA would compute it for a product and again for what a loop collects.
    return apart(v * by_queries), v * by_keys, gradient.reshape(-1) @ hidden.reshape(-1, len(energy))


_additive_once_more.defvjp(_forward, _backward)


def sum_of_slopes(weights: jax.Array, hidden: jax.Array, axis: int) -> jax.Array:
    """`sum w_ts (1 - h_tsd^2)` of weights [..., T, S] and hidden [..., T, S, D] over the queries or the source (axis).

    Written as additions of slices: XLA:CPU makes them one loop without a [T, S, D] array of the terms, while its own
    sums over these axes are slow.
    """
    size = hidden.shape[axis]
    each = -(-size // TERMS)

    def term(start: int) -> jax.Array:
        one, other = (jax.lax.slice_in_dim(a, start, min(start + each, size), axis=axis) for a in (weights, hidden))
        return one[..., None] * (1 - jnp.square(other))

    if jax.default_backend() != "cpu":
        return jnp.sum(weights[..., None] * (1 - jnp.square(hidden)), axis)
    starts = range(0, size - each + 1, each)
    total = sum(map(term, starts[1:]), term(0)).sum(axis)
    return total if (rest := starts[-1] + each) == size else total + term(rest).sum(axis)


@checked
def normalised_energy(energy: Float[Array, " D"], gain: Float[Array, ""]) -> Float[Array, " D"]:
    """Weight-normalised energy vector of the additive score, `g v / ||v||` (Salimans and Kingma 2016, eq. 2).

    `additive(W q + b, U k, normalised_energy(v, g))` is the "normed Bahdanau" score; g starts at sqrt(1/D).
    """
    return gain * energy / jnp.linalg.norm(energy)


@checked
def concat(
    queries: Float[Array, "*#b T Q"],
    keys: Float[Array, "*#b S K"],
    weight: Float[Array, "D QK"],
    energy: Float[Array, " D"],
) -> Float[Array, "*b T S"]:
    """Concat score, `e_ts = v^T tanh(W [q_t; k_s])` (Luong 2015, eq. 8), written out from unprojected inputs.

    `W` acts on the two halves apart, so this is `additive(W_q q, W_k k, v)`; equal to that up to rounding.

    Raises:
        ValueError: `weight` does not have as many columns as queries and keys have together.
    """
    width = queries.shape[-1]
    if weight.shape[1] != width + keys.shape[-1]:
        raise ValueError(
            f"concat: weight has {weight.shape[1]} columns, queries and keys have {width} + {keys.shape[-1]} together"
        )
    return additive(project(queries, weight[:, :width].T), project(keys, weight[:, width:].T), energy)


@checked
def location(queries: Float[Array, "*b T D"], weight: Float[Array, "D L"], size: int) -> Float[Array, "*b T S"]:
    """Location score, `e_t = W q_t` (Luong 2015, section 3.1): positions are scored from the query alone.

    Args:
        queries: [..., T, D].
        weight: one column for each of L positions, [D, L].
        size: the number of source positions S, at most L.

    Raises:
        ValueError: the source is longer than the L positions the weight knows.
    """
    if size > weight.shape[1]:
        raise ValueError(f"location: {size} source positions, but the weight knows only {weight.shape[1]}")
    # All L columns, then the first S: a slice of the weight would not be the constant that `loop.scan` knows.
    return project(queries, weight)[..., :size]


@checked
def cosine(
    queries: Float[Array, "*#b T D"], keys: Float[Array, "*#b S D"], sharpness: Float[Array, ""] | float = 1.0
) -> Float[Array, "*b T S"]:
    """Cosine score, `e_ts = beta q_t^T k_s / (||q_t|| ||k_s||)` (Graves 2014, eq. 5 and 6).

    A vector of zeros has cosine zero with everything, and a zero gradient. With keys of length one, from `unit`
    once per sequence, this is `beta dot(unit(queries), keys)`.
    """
    queries = unit(queries)
    return jnp.asarray(sharpness, queries.dtype) * dot(queries, unit(keys))


@checked
def unit(vectors: Float[Array, "*b S D"]) -> Float[Array, "*b S D"]:
    """Vectors of length one, `v / ||v||`; a vector of zeros stays one, and has a zero gradient.

    >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return jnp.where(square == 0, 0, vectors / jnp.sqrt(jnp.where(square == 0, 1, square)))

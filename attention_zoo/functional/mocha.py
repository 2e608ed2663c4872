"""Monotonic chunkwise attention: where a monotonic walk stops, a softmax looks back over a small chunk."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from attention_zoo.functional.monotonic import shifted
from attention_zoo.notation import Array, Bool, Float, checked


@checked
def mocha(
    weights: Float[Array, "*b T S"],
    chunk_scores: Float[Array, "*b T S"],
    mask: Bool[Array, "*#b #T S"] | None,
    width: int,
) -> Float[Array, "*b T S"]:
    """MoChA, `beta_ts = sum_(k=s..s+w-1) alpha_tk exp(u_ts) / sum_(l=k-w+1..k) exp(u_tl)` (Chiu and Raffel 2018).

    The chunk that ends at k is the w positions up to k, less those that do not exist (before the first, or masked).
    Each chunk's softmax starts from the chunk's own largest score, so scores may be of any size. Where alpha is a
    decision (`monotonic.hard`), beta is the softmax over the chunk that ends there.

    Args:
        weights: alpha, of `monotonic.monotonic` or `monotonic.hard`, zero where masked, [..., T, S].
        chunk_scores: u, scores of their own, [..., T, S]; masked ones may be anything.
        mask: True = may attend; broadcasts against `chunk_scores`.
        width: w, the positions in a chunk; with 1 beta is alpha.

    Returns:
        weights [..., T, S], computed in float32 at least, in the dtype of `chunk_scores`; a row sums to what the row
        of alpha sums to.

    Raises:
        ValueError: the width is below one.

    >>> mocha(jnp.array([[0.0, 0.5, 0.5]]), jnp.zeros((1, 3)), None, 2)
    Array([[0.25, 0.5 , 0.25]], dtype=float32)
    """
    if width < 1:
        raise ValueError(f"mocha: width is at least 1; got {width}")
    scores = jnp.asarray(chunk_scores)
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    allowed = jnp.ones(scores.shape, bool) if mask is None else jnp.broadcast_to(mask, scores.shape)
    # What a backward pass needs of each of the w positions of a chunk is cheaper to compute again than to keep.
    shared = jax.checkpoint(partial(_shared, width=min(width, scores.shape[-1])), prevent_cse=False)
    filled = jnp.where(allowed, scores, 0).astype(wide)
    return shared(jnp.asarray(weights, wide), filled, allowed).astype(scores.dtype)


def _shared(stops: jax.Array, scores: jax.Array, allowed: jax.Array, *, width: int) -> jax.Array:
    """Shares the weight of each chunk's end among the chunk's positions, by the softmax of their scores."""
    lowest = jnp.full_like(scores, jnp.finfo(scores.dtype).min)
    # For each distance from the end of a chunk, what stands there: [..., T, S], S being the ends.
    there = [shifted(allowed, distance) for distance in range(width)]
    seen = [jnp.where(real, shifted(scores, distance), lowest) for distance, real in enumerate(there)]
    largest = lax.stop_gradient(reduce(jnp.maximum, seen, lowest))
    unnormalised = [jnp.where(real, jnp.exp(score - largest), 0) for score, real in zip(seen, there, strict=True)]
    total = sum(unnormalised, jnp.zeros_like(scores))
    each = stops / jnp.where(total == 0, 1, total)
    return sum((shifted(each * part, -distance) for distance, part in enumerate(unnormalised)), jnp.zeros_like(scores))

"""Align: turn scores [..., T, S] into a decision, the weights [..., T, S]."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from attention_zoo.notation import Array, Bool, Float, checked


class Alignment(NamedTuple):
    """Where each query looked: one type for soft and hard attention, words, image regions and heads.

    weights: [..., T, S], before dropout; each row sums to one, or to zero where nothing may be attended to.
    log_prob: [..., T], log-probability of the sampled position; None for deterministic alignments.
    entropy: [..., T], entropy in nats of the distribution sampled from; None for deterministic alignments.
    """

    weights: jax.Array
    log_prob: jax.Array | None = None
    entropy: jax.Array | None = None


@checked
def softmax(
    scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None = None
) -> Float[Array, "*b T S"]:
    r"""Global soft alignment, `alpha_ts = exp(e_ts) / sum_s' exp(e_ts')` (Bahdanau 2014, eq. 6).

    Computed in float32 at least and returned in the dtype of `scores`. A row whose mask allows nothing has
    zero weights and zero gradient, never NaN and never the average of padding.

    Args:
        scores: relevance of source position s to query t, [..., T, S].
        mask: True = may attend; broadcasts against `scores`.

    Returns:
        weights [..., T, S], summing to one over S (to zero in empty rows).

    >>> softmax(jnp.zeros((1, 3)), jnp.array([[True, True, False]]))
    Array([[0.5, 0.5, 0. ]], dtype=float32)
    """
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    where = None if mask is None else jnp.broadcast_to(mask, scores.shape)
    # A finite fill keeps empty rows free of inf - inf; `where` then sets their weights to exact zeros.
    filled = scores.astype(wide) if where is None else jnp.where(where, scores, jnp.finfo(wide).min).astype(wide)
    unnormalised = jnp.exp(filled - jax.lax.stop_gradient(jnp.max(filled, axis=-1, keepdims=True, initial=jnp.finfo(wide).min)))
    if where is not None:
        unnormalised = jnp.where(where, unnormalised, 0)
    total = jnp.sum(unnormalised, axis=-1, keepdims=True)
    return (unnormalised / jnp.where(total == 0, 1, total)).astype(scores.dtype)

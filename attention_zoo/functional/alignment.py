"""Align: turn scores [..., T, S] into a decision, the weights [..., T, S]."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from attention_zoo.notation import Array, Bool, Float, checked


class Alignment(NamedTuple):
    """Where each query looked: one type for soft and hard attention, words, image regions and heads.

    weights: [..., T, S], before dropout; a row sums to one, or to zero where nothing may be attended to.
    log_prob: [..., T], log-probability of the sampled position, for score-function estimators; None where no position
        was sampled: soft and relaxed alignments, and at inference.
    entropy: [..., T], in nats, of the distribution sampled from; None where log_prob is.
    """

    weights: jax.Array
    log_prob: jax.Array | None = None
    entropy: jax.Array | None = None


@checked
def softmax(scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None = None) -> Float[Array, "*b T S"]:
    """Global soft alignment, `alpha_ts = exp(e_ts) / sum_k exp(e_tk)` (Bahdanau 2014, eq. 6).

    Computed in float32 at least and returned in the dtype of `scores`. A row whose mask allows nothing has
    zero weights and zero gradient, never NaN and never an average of padding. Masked scores may be anything, NaN and
    infinity included.

    Args:
        scores: relevance of source position s to query t, [..., T, S].
        mask: True = may attend; broadcasts against `scores`.

    Returns:
        weights [..., T, S] that sum to one over S, to zero in rows with nothing to attend to.

    >>> softmax(jnp.zeros((1, 3)), jnp.array([[True, True, False]]))
    Array([[0.5, 0.5, 0. ]], dtype=float32)
    """
    scores = jnp.asarray(scores)  # numpy's float64 becomes float32 where float64 is off
    lowest = jnp.finfo(jnp.promote_types(scores.dtype, jnp.float32)).min
    allowed = jnp.ones_like(scores, bool) if mask is None else jnp.broadcast_to(mask, scores.shape)
    # The finite fill keeps empty rows free of inf - inf; the second `where` makes their weights exact zeros.
    filled = jnp.where(allowed, scores.astype(lowest.dtype), lowest)
    largest = jax.lax.stop_gradient(jnp.max(filled, axis=-1, keepdims=True, initial=lowest))
    unnormalised = jnp.where(allowed, jnp.exp(filled - largest), 0)
    total = jnp.sum(unnormalised, axis=-1, keepdims=True)
    return (unnormalised / jnp.where(total == 0, 1, total)).astype(scores.dtype)

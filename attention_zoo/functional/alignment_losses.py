"""Losses of alignments [..., T, S]: known alignments as supervision, coverage, and the doubly stochastic penalty.

What the masks do not count may hold anything. All are computed in float32 at least.
"""

import jax
import jax.numpy as jnp

from attention_zoo.notation import Array, Bool, Float, Int, checked

# Where a weight is exactly zero its logarithm is that of this, 41 nats, and has no gradient; larger weights are exact.
# A softmax is above it while its scores differ by less than 41.
FLOOR = 1e-18


@checked
def guided_alignment(
    weights: Float[Array, "*b T S"], spans: Int[Array, "*b T 2"], mask: Bool[Array, "*b T"] | None = None
) -> Float[Array, ""]:
    """Guided alignment by spans, `-sum_t log(sum_{s in span_t} alpha_ts) / sum_t 1`, in nats.

    The span as a whole is to be looked at; how the weight is shared inside it is left free. With spans of length one it
    is `guided_alignment_matrix` of the one-hot alignment.

    Args:
        weights: the alignment, [..., T, S].
        spans: the source positions [start, end) each target position is written from, [..., T, 2], as in
            `metrics.alignment_accuracy`; positions without one (end <= start) are left out.
        mask: True = count; [..., T]. None counts all that have a span.

    Returns:
        the mean over the counted positions, 0 if there are none. A span that a sparse alignment gives exactly nothing
        costs `-log FLOOR` and has no gradient.
    """
    start, end = spans[..., :1], spans[..., 1:]
    counted = (end > start)[..., 0] if mask is None else (end > start)[..., 0] & mask
    positions = jnp.arange(weights.shape[-1]).reshape((1,) * (spans.ndim - 1) + (-1,))
    inside = (start <= positions) & (positions < end) & counted[..., None]
    return _mean(-_log(jnp.sum(_wide(weights), axis=-1, where=inside)), counted)


@checked
def guided_alignment_matrix(
    weights: Float[Array, "*b T S"], gold: Float[Array, "*b T S"], mask: Bool[Array, "*b T"] | None = None
) -> Float[Array, ""]:
    """Guided alignment, `-sum_t sum_s A_ts log alpha_ts / sum_t 1`, in nats (Chen 2016, the cross-entropy).

    Args:
        weights: the alignment, [..., T, S].
        gold: A, the known one: rows that sum to one, or rows of zeros, which are left out; [..., T, S].
        mask: True = count; [..., T]. None counts all that have a gold row.

    Returns:
        the mean over the counted positions, 0 if there are none; zero weights are dealt with as in `guided_alignment`.
    """
    linked = (gold > 0) if mask is None else (gold > 0) & mask[..., None]
    losses = -jnp.sum(gold * _log(jnp.where(linked, _wide(weights), 1)), axis=-1, where=linked)
    return _mean(losses, jnp.any(linked, axis=-1))


@checked
def coverage_penalty(weights: Float[Array, "*b T S"], mask: Bool[Array, "*b T"] | None = None) -> Float[Array, ""]:
    """Coverage loss, `sum_s min(alpha_ts, c_ts)` with `c_t = sum_{t' < t} alpha_t'` (See 2017, eq. 11 and 12).

    What it charges is looking again where one has looked before. Its mean over the real target positions.

    Args:
        weights: the alignment, [..., T, S].
        mask: True = a real target position, [..., T]; others neither count nor cover. None counts all.

    Returns:
        between 0 (no location twice) and 1; 0 if no position is counted.
    """
    weights, counted = _real(weights, mask)
    coverage = jnp.cumsum(weights, axis=-2) - weights
    return _mean(jnp.sum(jnp.minimum(weights, coverage), axis=-1), counted)


@checked
def coverage_score(
    weights: Float[Array, "*b T S"], target_mask: Bool[Array, "*b T"], source_mask: Bool[Array, "*b S"]
) -> Float[Array, "*b"]:
    """Coverage of whole hypotheses, for reranking: `sum_s log(min(sum_t alpha_ts, 1))` (Wu 2016, eq. 14, over beta).

    Zero where every real source position was looked at once in all; -41 (`log FLOOR`) for each never looked at.
    """
    weights, _ = _real(weights, target_mask, source_mask)
    return jnp.sum(_log(jnp.minimum(jnp.sum(weights, axis=-2), 1)), axis=-1, where=source_mask)


@checked
def doubly_stochastic_penalty(
    weights: Float[Array, "*b T S"],
    target_mask: Bool[Array, "*b T"],
    source_mask: Bool[Array, "*b S"],
    *,
    reduction: str = "sum",
) -> Float[Array, ""]:
    """Doubly stochastic attention, `sum_s (1 - sum_t alpha_ts)^2` (Xu 2015, eq. 14): each location once in all.

    The mean over the examples, so that lambda means the same in batches of any size. (The authors' code takes the
    mean over locations and the sum over examples; a much used port takes the mean over both.)

    Args:
        weights: the alignment, [..., T, S].
        target_mask: True = a real target position, [..., T]; others look nowhere.
        source_mask: True = a real location, [..., S]; others are not counted.
        reduction: over the real locations of an example, "sum" (the equation) or "mean".

    Returns:
        the mean over the examples with a real target position and a real location; 0 if there are none.

    Raises:
        ValueError: the reduction is neither "sum" nor "mean".
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"doubly_stochastic_penalty: reduction is sum or mean; got {reduction!r}")
    weights, counted = _real(weights, target_mask, source_mask)
    missing = jnp.sum(jnp.square(1 - jnp.sum(weights, axis=-2)), axis=-1, where=source_mask)
    locations = jnp.sum(source_mask, axis=-1)
    shares = missing if reduction == "sum" else missing / jnp.maximum(locations, 1)
    return _mean(shares, jnp.any(counted, axis=-1) & (locations > 0))


def _wide(weights: Array) -> jax.Array:
    weights = jnp.asarray(weights)
    return weights.astype(jnp.promote_types(weights.dtype, jnp.float32))


def _real(weights: Array, targets: Array | None, source: Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The weights, zero where either mask says padding (which may be NaN), and the target positions counted."""
    wide = _wide(weights)
    counted = jnp.ones(wide.shape[:-1], bool) if targets is None else jnp.asarray(targets)
    real = counted[..., None] if source is None else counted[..., None] & source[..., None, :]
    return jnp.where(real, wide, 0), counted


def _log(weights: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(weights, FLOOR))


def _mean(losses: jax.Array, counted: jax.Array) -> jax.Array:
    return jnp.sum(losses, where=counted) / jnp.maximum(jnp.sum(counted), 1)

"""Losses of token sequences, divided by the number of real tokens, never by the padded size."""

import jax
import jax.numpy as jnp

from attention_zoo.notation import Array, Bool, Float, Int, checked


@checked
def cross_entropy(
    logits: Float[Array, "*b T N"],
    targets: Int[Array, "*b T"],
    mask: Bool[Array, "*b T"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy of the real tokens, `-sum_t log p(y_t) / sum_t 1`, in nats.

    With label smoothing e the target gives 1 - e to the token and e / N to every entry of the vocabulary, the
    token among them (Szegedy 2016, section 7). Computed in float32 at least.

    Args:
        logits: unnormalised log-probabilities, [..., T, N]; finite, also in padding.
        targets: token ids, [..., T]; what stands in padding does not matter.
        mask: True = a real token, [..., T].
        label_smoothing: e, in [0, 1).

    Returns:
        the mean over all real tokens; zero if there are none.

    Raises:
        ValueError: label_smoothing is outside [0, 1).

    >>> cross_entropy(jnp.zeros((1, 2, 4)), jnp.array([[1, 0]]), jnp.array([[True, False]]))
    Array(1.3862944, dtype=float32)
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing lies in [0, 1); got {label_smoothing}")
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # log p = logit - log-sum-exp, without a second [..., T, N] array of log-probabilities.
    token = jnp.take_along_axis(wide, jnp.where(mask, targets, 0)[..., None], axis=-1)[..., 0]
    smoothed = token if label_smoothing == 0 else (1 - label_smoothing) * token + label_smoothing * wide.mean(-1)
    losses = jax.nn.logsumexp(wide, axis=-1) - smoothed
    return jnp.sum(losses, where=mask) / jnp.maximum(mask.sum(), 1)

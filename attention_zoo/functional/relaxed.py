"""Align at random, with a gradient: samples of a location relaxed into weights that can be differentiated."""

import jax
import jax.numpy as jnp

from attention_zoo.functional.sparse import tempered
from attention_zoo.notation import Array, Bool, Float, checked


@checked
def gumbel_softmax(
    scores: Float[Array, "*b T S"],
    mask: Bool[Array, "*#b #T S"] | None,
    key: jax.Array,
    *,
    temperature: Float[Array, ""] | float | int = 1.0,
) -> Float[Array, "*b T S"]:
    """A relaxed sample of one location a row, `softmax((e + g) / theta)` with Gumbel noise g (Jang 2017, eq. 2).

    The largest weight falls on s with probability softmax(e)_s, at any temperature; as theta -> 0 the row becomes
    one-hot, an exact sample (the Concrete distribution, Maddison 2017). The gradient by the scores of a function f of
    the row is a biased estimate of that of `E[f(sample)]`, for linear f too; a low temperature lessens the bias and
    adds noise.

    Args:
        scores, mask: as in `alignment.softmax`.
        key: one random key; the noise is drawn per element of `scores`, so other shapes (padding) see other noise.
        temperature: theta; 0.1 to 1 is usual.

    Returns:
        weights [..., T, S] that sum to one over S, to zero in rows with nothing to attend to.

    Raises:
        ValueError: the temperature is not above zero.
    """
    return tempered(perturbed(scores, key), mask, temperature=temperature).astype(jnp.asarray(scores).dtype)


@checked
def straight_through(
    scores: Float[Array, "*b T S"],
    mask: Bool[Array, "*#b #T S"] | None = None,
    key: jax.Array | None = None,
    *,
    temperature: Float[Array, ""] | float | int = 1.0,
) -> Float[Array, "*b T S"]:
    """Looks at one location, and is differentiated as if it looked at all: one-hot values with a soft gradient.

    Forward: exactly 1 at the largest `e + g`, 0 elsewhere. Backward: the gradient of `gumbel_softmax` with the same
    noise g (straight-through Gumbel-softmax, Jang 2017, section 2.2): a biased estimate of that of `E[f(sample)]`, for
    linear f too: on average it is then that of f(mean relaxed weights), in place of f(softmax(e)). Without a key
    g is 0: no sample but the largest score, with the gradient of `softmax(e / theta)`. Of equal scores the lower
    position is taken.

    Arguments and results are otherwise those of `gumbel_softmax`.

    Raises:
        ValueError: the temperature is not above zero.
    """
    noisy = perturbed(scores, key)
    soft = tempered(noisy, mask, temperature=temperature)
    # soft - soft is exactly zero, so the ones and zeros stay what they are.
    return (largest(noisy, mask) + (soft - jax.lax.stop_gradient(soft))).astype(jnp.asarray(scores).dtype)


@checked
def log_prob_and_entropy(
    scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None, weights: Float[Array, "*b T S"]
) -> tuple[Float[Array, "*b T"], Float[Array, "*b T"]]:
    """What a score-function estimator asks of a sample: `log p_s` and `H = -sum_k p_k log p_k` of `p = softmax(e)`.

    As in Xu 2015, section 4.1. p is what `straight_through` samples from, at any temperature. Both have the gradients
    of their formulas; what the weights are a function of gets none, so that a straight-through gradient stays out.

    Args:
        scores, mask: as in `alignment.softmax`; a score of -inf hides its position.
        weights: the sample s, one-hot rows, [..., T, S].

    Returns:
        log-probability and entropy, in nats, [..., T], in float32 at least; zeros in rows with nothing to attend to.

    >>> log_prob_and_entropy(jnp.zeros((1, 4)), None, jnp.eye(4)[:1])
    (Array([-1.3862944], dtype=float32), Array([1.3862944], dtype=float32))
    """
    wide = _wide(scores)
    allowed = (wide > -jnp.inf) if mask is None else jnp.broadcast_to(mask, wide.shape) & (wide > -jnp.inf)
    lowest = jnp.finfo(wide.dtype).min
    filled = jnp.where(allowed, wide, lowest)
    highest = jax.lax.stop_gradient(jnp.max(filled, axis=-1, keepdims=True, initial=lowest))
    shifted = jnp.where(allowed, filled - highest, 0)
    total = jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True, where=allowed)
    log_probs = jnp.where(allowed, shifted - jnp.log(jnp.where(total == 0, 1, total)), 0)
    chosen = jax.lax.stop_gradient(weights) > 0
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1, where=allowed)
    return jnp.sum(log_probs, axis=-1, where=chosen), entropy


def largest(scores: Array, mask: Array | None) -> jax.Array:
    """Where the largest allowed score of each row is, the first of equals: bool [..., T, S], one True a row.

    A row that allows nothing, or holds nothing but -inf, has none.
    """
    filled = scores if mask is None else jnp.where(jnp.broadcast_to(mask, scores.shape), scores, -jnp.inf)
    return jax.nn.one_hot(jnp.argmax(filled, axis=-1), filled.shape[-1], dtype=bool) & (filled > -jnp.inf)


def perturbed(scores: Array, key: jax.Array | None) -> jax.Array:
    """The scores in float32 at least, with Gumbel noise where there is a key."""
    wide = _wide(scores)
    return wide if key is None else wide + jax.random.gumbel(key, wide.shape, wide.dtype)


def _wide(scores: Array) -> jax.Array:
    scores = jnp.asarray(scores)
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))

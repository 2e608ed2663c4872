"""A location as a latent variable that is summed out: exact likelihoods and bounds, without samples or variance."""

import jax
import jax.numpy as jnp

from attention_zoo.notation import Array, Bool, Float, checked


@checked
def log_softmax(scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None = None) -> Float[Array, "*b T S"]:
    """`log alpha_ts`, in float32 at least: -inf where masked; `-log S` in rows with nothing to attend to.

    Such rows are even, so that a mixture over contexts of zeros is what one context of zeros gives.
    """
    wide = _wide(scores)
    allowed = (wide > -jnp.inf) if mask is None else jnp.broadcast_to(mask, wide.shape) & (wide > -jnp.inf)
    empty = ~jnp.any(allowed, -1, keepdims=True)
    # Where nothing is allowed the softmax is that of zeros, and no gradient reaches the scores.
    safe = jnp.where(allowed, wide, 0)
    return jax.nn.log_softmax(safe, -1, where=allowed | empty)


@checked
def marginal(
    log_weights: Float[Array, "*b T S"], log_likelihoods: Float[Array, "*b T S"], best: int | None = None
) -> Float[Array, "*b T"]:
    """The exact marginal likelihood of a latent location, `log sum_s alpha_ts p(y_t | s)` (Deng 2018, eq. 1).

    Its gradient is exact: no samples, no variance. It is at least the bound `sum_s alpha_ts log p(y_t | s)`. What is
    impossible everywhere is -inf, with a gradient of zero.

    Args:
        log_weights: `log alpha_ts`, see `log_softmax`; -inf hides a location, whose likelihood may be anything.
        log_likelihoods: `log p(y_t | s)`, [..., T, S].
        best: the sum is over so many of the most probable locations, with their weights made to sum to one, which is
            cheaper at inference: too high where y is likelier there than at the others, each on average by weight, too
            low where it is less likely, and exact for `best >= S`. None takes all.

    Raises:
        ValueError: best is below 1.

    >>> marginal(jnp.log(jnp.array([[0.25, 0.75]])), jnp.log(jnp.array([[1.0, 0.2]]))).round(4)
    Array([-0.9163], dtype=float32)
    """
    if best is not None:
        log_weights, places = k_best(log_weights, best)
        log_likelihoods = jnp.take_along_axis(log_likelihoods, places, -1)
    hidden = log_weights == -jnp.inf
    joint = jnp.where(hidden, -jnp.inf, _wide(log_weights) + jnp.where(hidden, 0, _wide(log_likelihoods)))
    impossible = jnp.all(joint == -jnp.inf, -1)
    # Replaced before the sum too: the gradient of a logarithm of 0 is NaN, whatever takes its place afterwards.
    total = jax.nn.logsumexp(jnp.where(impossible[..., None], 0, joint), axis=-1)
    return jnp.where(impossible, -jnp.inf, total)


@checked
def mixture(
    log_weights: Float[Array, "*b T S"], logits: Float[Array, "*b T S N"], best: int | None = None
) -> Float[Array, "*b T N"]:
    """The predictive distribution of a latent location, `log sum_s alpha_ts softmax(logits_ts)_y`, of every word y.

    Args:
        log_weights, best: as in `marginal`. logits: of the words at each location, [..., T, S, N].

    Returns:
        log-probabilities [..., T, N], in float32 at least.
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    by_word = jnp.moveaxis(jax.nn.log_softmax(wide, -1), -1, 0)  # [N, ..., T, S]
    return jnp.moveaxis(jax.vmap(lambda likelihoods: marginal(log_weights, likelihoods, best))(by_word), 0, -1)


@checked
def k_best(log_weights: Float[Array, "*b T S"], count: int) -> tuple[Float[Array, "*b T k"], jax.Array]:
    """The most probable locations [..., T, k], first the best, and the logarithms of weights that sum to one anew.

    Raises:
        ValueError: the count is below 1.
    """
    if count < 1:
        raise ValueError(f"k_best keeps at least 1 location; got {count}")
    kept, places = jax.lax.top_k(_wide(log_weights), min(count, log_weights.shape[-1]))
    return jax.nn.log_softmax(kept, -1), places


@checked
def kl_divergence(log_q: Float[Array, "*b T S"], log_p: Float[Array, "*b T S"]) -> Float[Array, "*b T"]:
    """`KL(q || p) = sum_s q_s (log q_s - log p_s)`, in nats, over the locations that q allows."""
    log_q, log_p = _wide(log_q), _wide(log_p)
    allowed = log_q > -jnp.inf
    ratio = jnp.where(allowed, log_q, 0) - jnp.where(allowed, log_p, 0)
    return jnp.sum(jnp.exp(jnp.where(allowed, log_q, 0)) * ratio, axis=-1, where=allowed)


@checked
def variational_bound(
    log_q: Float[Array, "*b T S"], log_weights: Float[Array, "*b T S"], log_likelihoods: Float[Array, "*b T S"]
) -> Float[Array, "*b T"]:
    """The evidence lower bound, `E_q[log p(y_t | s)] - KL(q_t || alpha_t)`, enumerated (Deng 2018, eq. 3).

    At most the marginal likelihood, and equal to it where q is the posterior. Its gradient is exact.

    Args:
        log_q: of the inference network, which has seen y, [..., T, S].
        log_weights, log_likelihoods: as in `marginal`.
    """
    allowed = log_q > -jnp.inf
    q = jnp.exp(_wide(log_q))
    expected = jnp.sum(q * jnp.where(allowed, _wide(log_likelihoods), 0), axis=-1, where=allowed)
    return expected - kl_divergence(log_q, log_weights)


def _wide(values: Array) -> jax.Array:
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))

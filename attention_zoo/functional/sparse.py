"""Align sparsely: weights exactly zero where scores are low; and a softmax as peaked as one asks for."""

from functools import partial

import jax
import jax.numpy as jnp

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.arrays import varying
from attention_zoo.notation import Array, Bool, Float, checked


@checked
def sparsemax(scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None = None) -> Float[Array, "*b T S"]:
    """Sparsemax, `max(e - tau, 0)`: the simplex's point nearest to the scores (Martins and Astudillo 2016, prop. 1).

    Its Jacobian, `diag(s) - s s^T / sum s` with s = 1 on the support and 0 off it, is formed exactly, without a sort or
    a solver being differentiated. Computed in float32 at least. Masked scores may be anything, NaN and infinity
    included; a row whose mask allows nothing has zero weights and zero gradient.

    Args:
        scores: relevance of source position s to query t, [..., T, S].
        mask: True = may attend; broadcasts against `scores`.

    Returns:
        weights [..., T, S]: a row sums to one and is exactly zero off its support.

    >>> sparsemax(jnp.array([[1.0, 0.5, -1.0]]))
    Array([[0.75, 0.25, 0.  ]], dtype=float32)
    """
    return _above_threshold(_shifted(scores, mask), 1).astype(jnp.asarray(scores).dtype)


@checked
def entmax15(scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None = None) -> Float[Array, "*b T S"]:
    """Entmax with alpha = 1.5, `max(e / 2 - tau, 0)^2`: between softmax and sparsemax (Peters 2019, section 3).

    Its Jacobian is `diag(s) - s s^T / sum s` with `s = sqrt(p)`. All else is as in `sparsemax`.

    >>> entmax15(jnp.array([[0.0, 0.0, -1.0, 0.0, 0.0]]))
    Array([[0.25, 0.25, 0.  , 0.25, 0.25]], dtype=float32)
    """
    above = _above_threshold(_shifted(scores, mask) / 2, 2)
    return (above * above).astype(jnp.asarray(scores).dtype)


@checked
def top_k(
    scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None = None, *, k: int
) -> Float[Array, "*b T S"]:
    """Softmax over the k largest allowed scores of each row, and exactly zero elsewhere.

    Of equal scores the lower position comes first, so never more than k are kept; with k >= S it is `softmax`.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"top_k: k is at least 1; got {k}")
    shifted = _shifted(scores, mask)
    chosen = jax.lax.top_k(jax.lax.stop_gradient(shifted), min(k, shifted.shape[-1]))[1]
    kept = jnp.put_along_axis(jnp.zeros(shifted.shape, bool), chosen, True, axis=-1, inplace=False)
    return softmax(scores, kept & (shifted > -jnp.inf))


@checked
def tempered(
    scores: Float[Array, "*b T S"],
    mask: Bool[Array, "*#b #T S"] | None = None,
    *,
    temperature: Float[Array, ""] | float | int,
) -> Float[Array, "*b T S"]:
    """Softmax with a temperature, `alpha_ts = exp(e_ts / theta) / sum_k exp(e_tk / theta)`.

    Between the largest score alone (theta -> 0; equal ones share) and all allowed alike (theta -> infinity).

    Args:
        scores, mask: as in `alignment.softmax`.
        temperature: theta, above zero; it may be learned. Below 1e-12 it counts as that, and has no gradient.

    Raises:
        ValueError: the temperature is not above zero (while it is traced, nothing can be said).
    """
    return softmax(cooled(scores, mask, temperature=temperature)).astype(jnp.asarray(scores).dtype)


@checked
def cooled(
    scores: Float[Array, "*b T S"],
    mask: Bool[Array, "*#b #T S"] | None = None,
    *,
    temperature: Float[Array, ""] | float | int,
) -> Float[Array, "*b T S"]:
    """The logits of `tempered`, `(e_ts - max_k e_tk) / theta`, in float32 at least; -inf where the mask hides.

    Args:
        scores, mask, temperature: as in `tempered`.

    Raises:
        ValueError: as `tempered` does.

    >>> cooled(jnp.array([[3.0, 2.0]]), temperature=0.5)
    Array([[ 0., -2.]], dtype=float32)
    """
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise ValueError(f"temperature is above zero; got {temperature}")
    shifted = _shifted(scores, mask)
    allowed = shifted > -jnp.inf
    # Shifted first: a low temperature then sends low scores to -inf, but the largest stays 0 and nothing becomes NaN.
    # The gradient divides by theta^2, which has to be a number too.
    theta = jnp.maximum(jnp.asarray(temperature, shifted.dtype), 1e-12)
    return jnp.where(allowed, jnp.where(allowed, shifted, 0) / theta, -jnp.inf)


def _shifted(scores: Array, mask: Array | None) -> jax.Array:
    """Scores in float32 at least, less the largest allowed one of their row; -inf where the mask hides."""
    wide = jnp.asarray(scores).astype(jnp.promote_types(jnp.asarray(scores).dtype, jnp.float32))
    lowest = jnp.finfo(wide.dtype).min
    allowed = wide != -jnp.inf if mask is None else jnp.broadcast_to(mask, wide.shape) & (wide != -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(wide, axis=-1, keepdims=True, initial=lowest, where=allowed))
    return jnp.where(allowed, wide - largest, -jnp.inf)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _above_threshold(shifted: jax.Array, power: int) -> jax.Array:
    """`max(z - tau, 0)`, with the tau of each row for which `sum_s max(z_s - tau, 0)^power = 1`; 0 in empty rows.

    Newton's method, not a sort: the sum is convex and falls with tau, so a start at or below the root (max z - 1 = -1)
    climbs and never passes it, and for power 1 the step is exact once the support is right. On a CPU
    that is faster than the sorts of Peters's algorithm 2 and of `optax.projections.projection_simplex`, which it
    equals: a handful of sums over S.
    """

    def newton(tau: jax.Array) -> jax.Array:
        above = jnp.maximum(shifted - tau, 0)
        slope = jnp.sum(_slope(above, power), axis=-1, keepdims=True)
        excess = jnp.sum(above**power, axis=-1, keepdims=True) - 1
        return tau + excess / jnp.where(slope == 0, 1, power * slope)

    def climb(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        tau, _ = state
        # Rounding may send the last step back; without the maximum two neighbours could take turns for ever.
        higher = jnp.maximum(tau, newton(tau))
        return higher, jnp.any(higher > tau)

    start = jnp.full_like(shifted, -1, shape=(*shifted.shape[:-1], 1))
    tau, _ = jax.lax.while_loop(lambda state: state[1], climb, varying(start, jnp.array(True)))
    # A large sum's rounding may have put the last climb beyond the root, by much where many scores are equal.
    return jnp.maximum(shifted - newton(tau), 0)


@_above_threshold.defjvp
def _above_threshold_jvp(power: int, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """`d tau = sum_s s_s dz_s / sum_s s_s`, by the implicit function theorem, with s the slope."""
    above, (tangent,) = _above_threshold(*primals, power), tangents
    slope = _slope(above, power)
    total = jnp.sum(slope, axis=-1, keepdims=True)
    d_tau = jnp.sum(slope * tangent, axis=-1, keepdims=True) / jnp.where(total == 0, 1, total)
    return above, jnp.where(above > 0, tangent - d_tau, 0)


def _slope(above: jax.Array, power: int) -> jax.Array:
    """`max(z - tau, 0)^(power - 1)`, and 0 off the support for power 1 too."""
    return above if power == 2 else (above > 0).astype(above.dtype)

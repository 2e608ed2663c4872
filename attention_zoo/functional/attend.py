"""Read: the context is the weighted sum of the values; and score -> align -> read in one call."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from attention_zoo.functional.alignment import Alignment, softmax
from attention_zoo.functional.dot_product import IMPLEMENTATIONS, dot_product_attention
from attention_zoo.functional.products import join_queries, product
from attention_zoo.functional.scores import scaled_dot
from attention_zoo.notation import Array, Bool, Float, checked


@checked
def read(weights: Float[Array, "*#b T S"], values: Float[Array, "*#b S V"]) -> Float[Array, "*b T V"]:
    """Context vectors, `c_t = sum_s alpha_ts v_s` (Bahdanau 2014, eq. 5).

    Values must be finite, also where every weight is zero: 0 * NaN is NaN.

    >>> read(jnp.array([[0.25, 0.75]]), jnp.array([[4.0], [8.0]]))
    Array([[7.]], dtype=float32)
    """
    return product(partial(jnp.einsum, "...ts,...sv->...tv"), weights, values, join=join_queries)


@checked
def attend(
    queries: Float[Array, "*#b T Q"],
    keys: Float[Array, "*#b S K"],
    values: Float[Array, "*#b S V"],
    mask: Bool[Array, "*#b #T S"] | None = None,
    *,
    score: Callable[[Array, Array], Array] = scaled_dot,
    align: Callable[[Array, Array | None], Array] = softmax,
    implementation: str = "plain",
) -> tuple[Float[Array, "*b T V"], Alignment | None]:
    """Attention, `c_t = sum_s align(score(q_t, k_s)) v_s`: any score with any alignment.

    The default is scaled dot-product attention, `softmax(Q K^T / sqrt(D)) V` (Vaswani 2017, eq. 1).

    Args:
        queries: [..., T, Q].
        keys: [..., S, K]; what widths may differ is the score's affair.
        values: [..., S, V].
        mask: True = may attend; broadcasts against [..., T, S].
        score: `(queries, keys) -> scores [..., T, S]`, such as `scores.dot` or a closure over weights.
        align: `(scores, mask) -> weights [..., T, S]`, such as `alignment.softmax`.
        implementation: "plain" builds the [..., T, S] matrix. The others never do, and are for the default score and
            alignment: see `dot_product.dot_product_attention`. (Additive attention has
            `additive_attention.additive_attention`.)

    Returns:
        context [..., T, V] and the alignment; None for the alignment where it was not built.

    Raises:
        ValueError: the implementation is not one of `IMPLEMENTATIONS`, or cannot do this score and alignment.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attend: implementation is one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}")
    if implementation != "plain":
        if score is not scaled_dot or align is not softmax:
            raise ValueError(f"attend: implementation {implementation!r} is for scaled_dot with softmax alone")
        return _fused(queries, keys, values, mask, implementation), None
    weights = align(score(queries, keys), mask)
    return read(weights, values), Alignment(weights)


def _fused(queries: Array, keys: Array, values: Array, mask: Array | None, implementation: str) -> jax.Array:
    """Attention as one head, whose leading axes are all written out."""
    leading = jnp.broadcast_shapes(*(array.shape[:-2] for array in (queries, keys, values)))
    one, keys, values = (
        jnp.broadcast_to(array, leading + array.shape[-2:])[..., None, :, :] for array in (queries, keys, values)
    )
    mask = None if mask is None else mask[..., None, :, :]
    return dot_product_attention(one, keys, values, mask, implementation=implementation)[..., 0, :, :]

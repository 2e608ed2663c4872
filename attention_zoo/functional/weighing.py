"""Attention within one tile of scores: what the products, the bias and the masks make of it, and what it reads.

XLA:CPU takes a product, its softmax and the next product in one go, in its caches, and `read` is written so that it
can: no score is chosen by `where` (masks are added, as 0 and -inf), no reshape stands between the products, the maximum
starts from the lowest number instead of being compared with it, and no other result is asked for.
"""

from collections.abc import Callable
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention_zoo.functional.tiles import Call, Tile, bias_at, everywhere, over, part, positions, rules, score
from attention_zoo.notation import Array


class Seen(NamedTuple):
    """Which queries see anything, [B, G, R, T, 1] each; which keys anybody sees, [B, G, S, 1]: all have to agree."""

    queries: list[Array]
    keys: list[Array]


def whole(call: Call) -> jax.Array:
    """Context [B, G, R, T, V], all queries at once. JAX differentiates it, and keeps the weights of all for that."""
    call, tile = cleared(call, seen(call)), Tile(0, 0, call.queries.shape[3], call.keys.shape[2])
    return read(call._replace(settings=call.settings._replace(rows=tile.rows)), tile, wide=True)


def seen(call: Call) -> Seen:
    """What is known of them without looking at every pair of numbers or at several rules together.

    Rules of bounds that are known to hold for all of them are left out.
    """
    laid, settings = call.laid, call.settings
    masks = [mask for mask in (laid.mask, laid.real) if mask is not None]
    queries = [jnp.any(mask, axis=4, keepdims=True) for mask in masks]
    keys = [jnp.any(mask, axis=(2, 3))[..., None] for mask in masks]
    if laid.query_segments is not None and laid.key_segments is not None:
        queries, keys = [*queries, laid.query_segments != 0], [*keys, laid.key_segments[:, :, 0, 0, :, None] != 0]
    standing, places = everywhere(call)  # distances are compared, as a bound may be too large to be added to
    last_key, (always_left, always_right) = call.keys.shape[2] - 1, _always(call)
    if settings.left is not None and not always_left:
        queries.append((standing - last_key <= settings.left)[None, None, None, :, None])
        keys += [(places - standing[0] >= -settings.left)[None, None, :, None]] if standing.size else []
    if settings.right is not None and not always_right:
        queries.append((standing >= -settings.right)[None, None, None, :, None])
        keys += [(places - standing[-1] <= settings.right)[None, None, :, None]] if standing.size else []
    return Seen(queries, keys)


def _always(call: Call) -> tuple[bool, bool]:
    """Whether the left bound, and the right one, leaves every query a key and every key a query, for all that is known.

    So it is where as many queries as keys begin together.
    """
    left, right, first = call.settings.left, call.settings.right, call.settings.offset
    queries, keys = call.queries.shape[3], call.keys.shape[2]
    if first is None or not isinstance(queries, int) or not isinstance(keys, int):
        return False, False
    ahead = first + queries - keys  # how far the last query stands ahead of the last key
    return left is not None and max(first, ahead) <= left, right is not None and min(first, ahead) >= -right


def cleared(call: Call, seen: Seen) -> Call:
    """Zeros where nothing sees or is seen: a NaN plus -inf would not be hidden."""
    clear = partial(reduce, lambda kept, rule: jnp.where(rule, kept, 0))
    keys, values = clear(seen.keys, call.keys), clear(seen.keys, call.values)
    return call._replace(queries=clear(seen.queries, call.queries), keys=keys, values=values)


def read(call: Call, tile: Tile, wide: bool = False) -> jax.Array:
    """Context [B, G, R, t, V] of a tile; `wide`: JAX may differentiate it, and its weights stay in float32 at least."""
    compute, bias = scores_of(call, tile)
    keys, values = (merge(call, columns_of(array, tile)) for array in (call.keys, call.values))
    scores = compute(products_of(merge(call, rows_of(call.queries, tile)) * scales(call)[0], keys), bias)
    if wide:
        context = attended(scores, values) if not call.settings.dropout else _thinned(call, tile, scores, values)
    else:
        weights, total = exponentials(scores)
        (weights,) = dropped(call, tile, weights)
        if jax.default_backend() != "cpu":  # which multiplies in float32 anyway: there rounding gains nothing
            weights = weights.astype(values.dtype)
        # The sum divides the context, not the weights: V numbers a row, not S.
        context = matmul("...ts,...sv->...tv", weights, values) / total
    return context.astype(values.dtype).reshape(*call.queries.shape[:3], tile.rows, context.shape[-1])


@jax.custom_jvp
def attended(scores: Array, values: Array) -> jax.Array:
    """`softmax(scores) values`. Its gradient keeps the weights, and neither what they are made of nor the context."""
    weights, total = exponentials(scores)
    return matmul("...ts,...sv->...tv", weights, values) / total


@attended.defjvp
def _attended_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[jax.Array, jax.Array]:
    work = lambda scores, values: matmul("...ts,...sv->...tv", normalised(scores), values)  # noqa: E731
    context, change = jax.jvp(work, primals, tangents)
    return context, change


def _thinned(call: Call, tile: Tile, scores: Array, values: Array) -> jax.Array:
    """The same with some weights dropped."""
    (weights,) = dropped(call, tile, normalised(scores))
    return matmul("...ts,...sv->...tv", weights, values)


@jax.custom_jvp
def normalised(scores: Array) -> jax.Array:
    """The softmax, and zeros in rows of nothing but -inf."""
    weights, total = exponentials(scores)
    return weights / total


@normalised.defjvp
def _normalised_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[jax.Array, jax.Array]:
    weights, (change,) = normalised(*primals), tangents
    return weights, weights * (change - jnp.sum(weights * change, axis=-1, keepdims=True))


def exponentials(scores: Array) -> tuple[jax.Array, jax.Array]:
    """exp(scores - largest of the row), and the sum of each row, which is not 0 where all scores are hidden.

    Not to be differentiated: its callers have gradients of their own.
    """
    # Never -inf, also in a row of nothing else: its weights are exp(-inf) = 0, and so are those of all hidden scores.
    lowest = jnp.finfo(scores.dtype).min
    largest = jax.lax.reduce(scores, lowest, jax.lax.max, (scores.ndim - 1,))[..., None]
    if scores.shape[-1] == 1:  # XLA takes a reduction of one number for a reshape, and forgets where it started
        largest = jnp.maximum(scores, lowest)
    weights = jnp.exp(scores - largest)
    # One addition melts into the products; the largest itself is a 1, next to which it is lost.
    return weights, jnp.sum(weights, axis=-1, keepdims=True) + jnp.finfo(scores.dtype).tiny ** 0.5


def scores_of(call: Call, tile: Tile) -> tuple[Callable[..., jax.Array], tuple[Any, Any]]:
    """The function (products, bias) -> scores of a tile, and the bias. Products are those of `products_of`."""
    places = positions(call, tile)
    laid = jax.tree.map(partial(over, tile=tile), call.laid)
    hidden = [_lie(call, jnp.where(rule, 0, -jnp.inf)) for rule in rules(call.settings, places, laid)]

    def compute(products: Array, bias: Any) -> jax.Array:
        laid = bias_at(call, places, *bias)
        settings = call.settings._replace(scale=scales(call)[1])
        # Wide before it is spread out: its gradient is summed over what it was spread to.
        scores = score(settings, products, None if laid is None else _lie(call, laid.astype(products.dtype)))
        for added in hidden:
            scores = scores + added.astype(scores.dtype)
        return scores

    return compute, (laid.bias, call.loose.arrays)


def scales(call: Call) -> tuple[float, float]:
    """What to multiply queries by, and products: the first are fewer, but half precision would round them."""
    half = call.queries.dtype.itemsize < 4
    return (1.0, call.settings.scale) if half else (call.settings.scale, 1.0)


def _lie(call: Call, array: Array) -> Array:
    """What broadcasts against [B, G, R, t, s], so that it does against the scores of `products_of`."""
    shape, shared = array.shape, call.queries.shape[2]
    if shape[2:4] != (1, 1):
        shape = (*shape[:2], shared, call.settings.rows, shape[4])
    return merge(call, jnp.broadcast_to(array, shape))


def products_of(left: Array, right: Array) -> jax.Array:
    """[B, G, r, D] with [B, G, s, D]: every row with every column, [B, G, r, s]."""
    return matmul("...rd,...sd->...rs", left, right)


def matmul(axes: str, left: Array, right: Array) -> jax.Array:
    """`jnp.einsum`, in float32 at least."""
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.promote_types(left.dtype, jnp.float32))


def merge(call: Call, array: Array) -> Array:
    """[B, G, R, t, W] as [B, G, R t, W], and [B, G, s, W] as it is, in both without an axis of one example or one head.

    XLA:CPU takes a product, its softmax and the next product in one go where no reshape parts them, and would reshape
    to leave out such an axis.
    """
    lead = [size for size, whole in zip(array.shape[:2], call.keys.shape[:2], strict=True) if whole != 1]
    return array.reshape(*lead, prod(array.shape[2:-1]), array.shape[-1])


def dropped(call: Call, tile: Tile, *arrays: Array) -> tuple[Array, ...]:
    """The arrays with the same entries dropped, forward and backward."""
    if not call.settings.dropout:
        return arrays
    assert call.loose.key is not None  # checked with the arguments
    share = 1 - call.settings.dropout
    kept = jax.random.bernoulli(jax.random.fold_in(call.loose.key, tile.row), share, arrays[0].shape)
    return tuple(jnp.where(kept, array / share, 0) for array in arrays)


def rows_of(array: Array, tile: Tile) -> Array:
    """A tile's part of what has a row for each query, [B, G, R, T, ...]."""
    return part(array, tile.row, tile.rows, 3)


def columns_of(array: Array, tile: Tile) -> Array:
    """A tile's part of the keys or values, [B, G, S, ...]."""
    return part(array, tile.column, tile.columns, 2)

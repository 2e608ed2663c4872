"""Scaled dot-product attention a chunk of queries at a time: temporaries linear in T, never a [T, S] matrix.

The backward pass computes the weights of a chunk again, `P = exp(S - max) / sum`, and `dS = P (dP - delta)` with
`delta = sum dO O` (Dao 2022, FlashAttention, algorithm 4). Arrays have the axes of `tiles`.

XLA:CPU takes a product, its softmax and the next product in one go, in its caches, and `_chunk` is written so that it
can: nothing is chosen by `where` (masks are added, as 0 and -inf), no reshape stands between the products, the maximum
starts from the lowest number instead of being compared with it, and no other result is asked for.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.blocks import FORWARD, blocks, few, loops
from attention_zoo.functional.tiles import (
    Call,
    Laid,
    Loose,
    Settings,
    Tile,
    bias_at,
    offset,
    over,
    part,
    positions,
    rules,
    score,
)
from attention_zoo.notation import Array

Corner = tuple[Array, Array]
_CHUNK, _BOUNDED = 512, 256  # queries at a time, also where each sees its past or a window and others are left out


def attention(call: Call, chunk: int | None = None) -> jax.Array:
    """Context [B, G, R, T, V], `chunk` queries at a time."""
    chunk = chunk or (_CHUNK if call.settings.left is call.settings.right is None else _BOUNDED)
    if call.queries.dtype == jnp.float16:  # its exponents are too few for gradients that are divided by sums
        wide = {name: getattr(call, name).astype(jnp.float32) for name in ("queries", "keys", "values")}
        return attention(call._replace(**wide), chunk).astype(jnp.float16)
    size = call.queries.shape[3]
    count = -(-size // chunk)
    rows = -(-size // count)  # chunks of equal size: the least padding
    pad = partial(_pad, missing=count * rows - size)
    laid = jax.tree.map(lambda array: array if array.shape[3] == 1 else pad(array), call.laid)
    settings = call.settings._replace(rows=rows)
    run = jax.custom_vjp(lambda *arguments: _forward(settings, *arguments)[0])
    run.defvjp(partial(_forward, settings), partial(_backward, settings))
    return run(pad(call.queries), call.keys, call.values, laid, call.loose, _seen(call.laid))[:, :, :, :size]


def _pad(array: Array, missing: int) -> Array:
    """More rows of zeros: their results are cut off, so that nothing reaches them and they reach nothing."""
    return array if missing == 0 else jnp.pad(array, [(0, 0)] * 3 + [(0, missing), (0, 0)])


def _seen(laid: Laid) -> list[jax.Array]:
    """Which keys somebody may see, [B, G, S, 1] each: the others are made zeros, as a sum with -inf hides no NaN."""
    seen = [jnp.any(mask, axis=(2, 3))[..., None] for mask in (laid.mask, laid.real) if mask is not None]
    return seen if laid.key_segments is None else [*seen, laid.key_segments[:, :, 0, 0, :, None] != 0]


def _cut(call: Call, seen: list[Array], number: Array, size: tuple[int, int]) -> tuple[Call, Corner]:
    """The call of one block, and where it lies: its first example and head of keys."""
    start, heads = number * size[0] * size[1], call.keys.shape[1]
    corner = (start // heads, start % heads)

    def cut(array: Array) -> Array:
        for axis in range(2):
            array = array if array.shape[axis] == 1 else part(array, corner[axis], size[axis], axis)
        return array

    key = None if call.loose.key is None else jax.random.fold_in(call.loose.key, number)
    queries, keys, values, laid, seen = jax.tree.map(cut, (call.queries, call.keys, call.values, call.laid, seen))
    keys, values = (reduce(lambda kept, rule: jnp.where(rule, kept, 0), seen, array) for array in (keys, values))
    return Call(call.settings, queries, keys, values, laid, call.loose._replace(key=key)), corner


def _forward(settings: Settings, *arguments: Any) -> Any:
    call, seen = Call(settings, *arguments[:-1]), arguments[-1]
    numbers, size = blocks(call, few() if settings.dropout else FORWARD)

    def block(context: Array, number: Array) -> Any:
        here, corner = _cut(call, seen, number, size)

        def step(context: Array, number: Array, columns: int) -> Any:
            tile = _tile(here, number, columns)
            return _put(context, _chunk(here, tile), (*corner, 0, tile.row, 0)), None

        for first, end, columns in loops(here):
            context, _ = jax.lax.scan(partial(step, columns=columns), context, jnp.arange(first, end))
        return context, None

    empty = jnp.zeros((*call.queries.shape[:-1], call.values.shape[-1]), call.values.dtype)
    context, _ = jax.lax.scan(block, empty, numbers)
    return context, (arguments, context)


def _tile(call: Call, number: Array, columns: int) -> Tile:
    # Tied to an array, the number is not known before it: a scan or checkpoint around this would otherwise compute the
    # masks of all the chunks ahead and keep them, which is a [T, S] matrix.
    number, _ = jax.lax.optimization_barrier((number, call.queries[0, 0, 0, 0, :1]))
    row, size = number * call.settings.rows, call.keys.shape[2]
    if call.settings.left is None or columns == size:
        return Tile(row, 0, call.settings.rows, columns)
    column = jnp.clip(row + offset(call) - call.settings.left, 0, size - columns)
    return Tile(row, column, call.settings.rows, columns)


def _chunk(call: Call, tile: Tile) -> jax.Array:
    """Context [B, G, R, t, V] of one chunk."""
    compute, bias = _scores(call, tile)
    keys, values = (_merge(call, _columns(array, tile)) for array in (call.keys, call.values))
    products = _products(_merge(call, _rows(call.queries, tile)) * _scales(call)[0], keys)
    weights, total = _exponentials(compute(products, bias))
    (weights,) = _dropped(call, tile, weights)
    if jax.default_backend() != "cpu":  # a CPU multiplies in float32 anyway: there rounding the weights gains nothing
        weights = weights.astype(values.dtype)
    # The sum divides the context, not the weights: V numbers a row, not S.
    context = _matmul("...ts,...sv->...tv", weights, values) / total
    return context.astype(values.dtype).reshape(*call.queries.shape[:3], tile.rows, -1)


def _exponentials(scores: Array) -> tuple[jax.Array, jax.Array]:
    """exp(scores - largest of the row), and the sum of each row: 0s and 1 where all scores are hidden."""
    # Never -inf, also in a row of nothing else: its weights are exp(-inf) = 0, and so are those of all hidden scores.
    lowest = jnp.finfo(scores.dtype).min
    weights = jnp.exp(scores - jax.lax.reduce(scores, lowest, jax.lax.max, (scores.ndim - 1,))[..., None])
    return weights, jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1)  # the largest itself is a 1


def _scores(call: Call, tile: Tile) -> tuple[Callable[..., jax.Array], tuple[Any, Any]]:
    """The function (products, bias) -> scores of a tile, and the bias. Products and scores are those of `_products`."""
    places = positions(call, tile)
    laid = jax.tree.map(partial(over, tile=tile), call.laid)
    hidden = [_lie(call, jnp.where(rule, 0, -jnp.inf)) for rule in rules(call.settings, places, laid)]

    def compute(products: Array, bias: Any) -> jax.Array:
        laid = bias_at(call, places, *bias)
        settings = call.settings._replace(scale=_scales(call)[1])
        scores = score(settings, products, None if laid is None else _lie(call, laid))
        for added in hidden:
            scores = scores + added.astype(scores.dtype)
        return scores

    return compute, (laid.bias, call.loose.arrays)


def _scales(call: Call) -> tuple[float, float]:
    """What to multiply queries by, and products: the first are fewer, but half precision would round them."""
    half = call.queries.dtype.itemsize < 4
    return (1.0, call.settings.scale) if half else (call.settings.scale, 1.0)


def _lie(call: Call, array: Array) -> Array:
    """What broadcasts against [B, G, R, t, s], so that it does against the scores of `_products`."""
    shape, shared = array.shape, call.queries.shape[2]
    if shape[2:4] != (1, 1):
        shape = (*shape[:2], shared, call.settings.rows, shape[4])
    return _merge(call, jnp.broadcast_to(array, shape))


def _products(left: Array, right: Array) -> jax.Array:
    """[B, G, r, D] with [B, G, s, D]: every row with every column, [B, G, r, s]."""
    return _matmul("...rd,...sd->...rs", left, right)


def _matmul(axes: str, left: Array, right: Array) -> jax.Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.promote_types(left.dtype, jnp.float32))


def _merge(call: Call, array: Array) -> Array:
    """[B, G, R, t, W] as [B, G, R t, W], and [B, G, s, W] as it is, in both without an axis of one example or one head.

    XLA:CPU takes a product, its softmax and the next product in one go where no reshape parts them, and would reshape
    to leave out such an axis.
    """
    lead = [size for size, whole in zip(array.shape[:2], call.keys.shape[:2], strict=True) if whole > 1]
    return array.reshape(*lead, -1, array.shape[-1])


def _dropped(call: Call, tile: Tile, *arrays: Array) -> tuple[Array, ...]:
    """The arrays with the same entries dropped, forward and backward."""
    if not call.settings.dropout:
        return arrays
    assert call.loose.key is not None  # checked with the arguments
    share = 1 - call.settings.dropout
    kept = jax.random.bernoulli(jax.random.fold_in(call.loose.key, tile.row), share, arrays[0].shape)
    return tuple(jnp.where(kept, array / share, 0) for array in arrays)


def _backward(settings: Settings, kept: Any, gradient: Array) -> Any:
    (*arguments, seen), context = kept
    call = Call(settings, *arguments)
    numbers, size = blocks(call, few())

    def block(found: Any, number: Array) -> Any:
        here, corner = _cut(call, seen, number, size)
        queries, keys, values, rest = found
        turned = tuple(jnp.zeros(_turned(array).shape, _wide(array)) for array in (here.keys, here.values))

        def step(carry: Any, number: Array, columns: int) -> Any:
            tile, (queries, sums) = _tile(here, number, columns), carry
            place, rows = (*corner, 0, tile.row, 0), (*size, context.shape[2], tile.rows, context.shape[4])
            given = [_get(array, place, rows) for array in (gradient, context)]
            added, sums = _chunk_backward(here, tile, corner, given, sums)
            return (_put(queries, added, place), sums), None

        carry = (queries, (*turned, *rest))
        for first, end, columns in loops(here):
            carry, _ = jax.lax.scan(partial(step, columns=columns), carry, jnp.arange(first, end))
        queries, (d_keys, d_values, *rest) = carry
        keys, values = (_put(*pair, (*corner, 0, 0)) for pair in ((keys, _turned(d_keys)), (values, _turned(d_values))))
        return (queries, keys, values, tuple(rest)), None

    rest = (call.laid.bias, call.loose.arrays)
    found = (
        *(jnp.zeros_like(array) for array in (call.queries, call.keys, call.values)),
        jax.tree.map(lambda array: jnp.zeros(array.shape, _wide(array)), rest),
    )
    (*gradients, sums), _ = jax.lax.scan(block, found, numbers)
    bias, arrays = jax.tree.map(lambda total, array: total.astype(array.dtype), sums, rest)
    return *gradients, Laid(bias=bias), Loose(arrays=arrays), None


def _chunk_backward(
    call: Call, tile: Tile, corner: Corner, given: Sequence[Array], carry: tuple[Any, ...]
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Gradient of a chunk's queries, [B, G, R, t, D]; adds those of keys and values (turned), and bias, to the carry.

    given: the gradient of the chunk's context, and the context.
    """
    merge = partial(_merge, call)
    queries, (gradient, context) = merge(_rows(call.queries, tile)) * _scales(call)[0], map(merge, given)
    keys, values = (merge(_columns(array, tile)) for array in (call.keys, call.values))
    compute, bias = _scores(call, tile)
    scores, pull_back = jax.vjp(compute, _products(queries, keys), bias)
    weights, total = jax.lax.optimization_barrier(_exponentials(scores))
    # Dividing this by the sum spares dividing every weight.
    wide = gradient.astype(total.dtype) / total
    delta = jnp.sum(wide * context.astype(total.dtype), axis=-1, keepdims=True)
    gradient = wide.astype(values.dtype)
    read, d_weights = _dropped(call, tile, weights, _products(gradient, values))
    d_products, (d_bias, d_arrays) = pull_back(weights * (d_weights - delta))
    d_products = jax.lax.optimization_barrier(d_products.astype(keys.dtype))
    # Transposed, so that it is the narrow factor that is turned: XLA:CPU is slow where it has to turn [t, s].
    turned = jax.lax.optimization_barrier((_turned(queries), _turned(gradient)))
    d_keys, d_values = (
        _matmul("...dt,...ts->...ds", narrow, factor).reshape(*call.keys.shape[:2], -1, tile.columns)
        for narrow, factor in zip(turned, (d_products, read.astype(keys.dtype)), strict=True)
    )
    places = ((0, 0, 0, tile.column),) * 2 + ((*corner, 0, tile.row, tile.column), ())
    carry = tuple(jax.tree.map(partial(_add, place), total, added) for place, total, added in zip(
        places, carry, (d_keys, d_values, d_bias, d_arrays), strict=True))  # fmt: skip
    d_queries = _matmul("...ts,...sd->...td", d_products, keys) * _scales(call)[0]
    return d_queries.reshape(*call.queries.shape[:3], tile.rows, -1), carry


def _turned(array: Array) -> Array:
    return jnp.swapaxes(array, -1, -2)


def _add(corner: tuple[Any, ...], total: Array, added: Array) -> Array:
    """Adds a part whose first entry lies at `corner`; at 0 of an axis that it has as long as the whole."""
    if added.shape == total.shape:
        return total + added.astype(total.dtype)
    sizes = zip(corner, total.shape, added.shape, strict=True)
    corner = tuple(0 if size == whole else start for start, whole, size in sizes)
    return _put(total, _get(total, corner, added.shape) + added.astype(total.dtype), corner)


def _get(array: Array, corner: Any, shape: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_slice(array, corner, shape)


def _put(array: Array, part: Array, corner: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice(array, part.astype(array.dtype), corner)


def _wide(array: Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)


def _rows(array: Array, tile: Tile) -> Array:
    return part(array, tile.row, tile.rows, 3)


def _columns(array: Array, tile: Tile) -> Array:
    return part(array, tile.column, tile.columns, 2)

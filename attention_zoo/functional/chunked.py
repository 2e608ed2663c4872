"""Scaled dot-product attention a chunk of queries at a time: temporaries linear in T, never a [T, S] matrix.

The backward pass computes the weights of a chunk again, `P = exp(S - max) / sum`, and `dS = P (dP - delta)` with
`delta = sum dO O` (Dao 2022, FlashAttention, algorithm 4). Arrays have the axes of `tiles`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.arrays import blank, laid_out, stays_apart, varying
from attention_zoo.functional.blocks import FORWARD, at_once, blocks, few, loops
from attention_zoo.functional.tiles import (
    Call,
    Laid,
    Loose,
    Settings,
    Tile,
    offset,
    part,
)
from attention_zoo.functional.weighing import (
    Seen,
    cleared,
    columns_of,
    dropped,
    exponentials,
    matmul,
    merge,
    products_of,
    read,
    rows_of,
    scales,
    scores_of,
    seen,
)
from attention_zoo.notation import Array

Corner = tuple[Array, Array]


def attention(call: Call, chunk: int | None = None) -> jax.Array:
    """Context [B, G, R, T, V], at most `chunk` queries at a time."""
    chunk = chunk or at_once(call)
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
    known = seen(call)
    known = known._replace(queries=[rule if rule.shape[3] == 1 else pad(rule) for rule in known.queries])
    # What is loose stays as it was when the bias function was traced.
    *arrays, known = varying(pad(call.queries), call.keys, call.values, laid, known)
    return run(*arrays, call.loose, known)[:, :, :, :size]


def _pad(array: Array, missing: int) -> Array:
    """More rows of zeros: their results are cut off, so that nothing reaches them and they reach nothing."""
    return array if missing == 0 else jnp.pad(array, [(0, 0)] * 3 + [(0, missing), (0, 0)])


def _cut(call: Call, known: Seen, number: Array, size: tuple[int, int]) -> tuple[Call, Corner]:
    """The call of one block, and where it lies: its first example and head of keys."""
    start, heads = number * size[0] * size[1], call.keys.shape[1]
    corner = (start // heads, start % heads)

    def cut(array: Array) -> Array:
        for axis in range(2):
            array = array if array.shape[axis] == 1 else part(array, corner[axis], size[axis], axis)
        return array

    key = None if call.loose.key is None else jax.random.fold_in(call.loose.key, number)
    queries, keys, values, laid, known = jax.tree.map(cut, (call.queries, call.keys, call.values, call.laid, known))
    return cleared(Call(call.settings, queries, keys, values, laid, call.loose._replace(key=key)), known), corner


def _forward(settings: Settings, *arguments: Any) -> Any:
    call, known = Call(settings, *arguments[:-1]), arguments[-1]
    if stays_apart():  # or it copies them whole, as the gradient below; without barriers that last it does so anyway
        call = call._replace(queries=laid_out(call.queries))
    numbers, size = blocks(call, few() if settings.dropout else FORWARD)

    def block(context: Array, number: Array) -> Any:
        here, corner = _cut(call, known, number, size)

        def step(context: Array, number: Array, columns: int) -> Any:
            tile = _tile(here, number, columns)
            return _put(context, read(here, tile), (*corner, 0, tile.row, 0)), None

        for first, end, columns in loops(here):
            context, _ = jax.lax.scan(partial(step, columns=columns), context, jnp.arange(first, end))
        return context, None

    shape = (*call.queries.shape[:-1], call.values.shape[-1])
    empty = jnp.zeros_like(call.values, call.values.dtype, shape=shape)
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


def _backward(settings: Settings, kept: Any, gradient: Array) -> Any:
    (*arguments, known), context = kept
    call = Call(settings, *arguments)
    gradient = laid_out(gradient)  # or XLA:CPU copies it whole to give the axis of R = 1 another place
    numbers, size = blocks(call, few())

    def block(found: Any, number: Array) -> Any:
        here, corner = _cut(call, known, number, size)
        queries, keys, values, rest = found
        turned = tuple(jnp.zeros_like(_turned(array), _wide(array)) for array in (here.keys, here.values))

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
        # Turned before they are written: XLA:CPU is slow at both in one.
        d_keys, d_values = (laid_out(_turned(total)) for total in (d_keys, d_values))
        keys, values = (_put(*pair, (*corner, 0, 0)) for pair in ((keys, d_keys), (values, d_values)))
        return (queries, keys, values, tuple(rest)), None

    rest = (call.laid.bias, call.loose.arrays)
    found = (
        *blank((call.queries, call.keys, call.values), call.queries),
        jax.tree.map(lambda array: jnp.zeros_like(array, _wide(array)), rest),
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
    flat = partial(merge, call)
    queries, (gradient, context) = flat(rows_of(call.queries, tile)) * scales(call)[0], map(flat, given)
    keys, values = (flat(columns_of(array, tile)) for array in (call.keys, call.values))
    compute, bias = scores_of(call, tile)
    scores, pull_back = jax.vjp(compute, products_of(queries, keys), bias)
    weights, total = jax.lax.optimization_barrier(exponentials(scores))
    # Dividing this by the sum spares dividing every weight.
    wide = gradient.astype(total.dtype) / total
    delta = jnp.sum(wide * context.astype(total.dtype), axis=-1, keepdims=True)
    gradient = wide.astype(values.dtype)
    left, d_weights = dropped(call, tile, weights, products_of(gradient, values))
    d_products, (d_bias, d_arrays) = pull_back(weights * (d_weights - delta))
    d_products = jax.lax.optimization_barrier(d_products.astype(keys.dtype))
    # Transposed, so that it is the narrow factor that is turned: XLA:CPU is slow where it has to turn [t, s].
    turned = jax.lax.optimization_barrier((_turned(queries), _turned(gradient)))
    d_keys, d_values = (
        matmul("...dt,...ts->...ds", narrow, factor).reshape(*call.keys.shape[:2], -1, tile.columns)
        for narrow, factor in zip(turned, (d_products, left.astype(keys.dtype)), strict=True)
    )
    places = ((0, 0, 0, tile.column),) * 2 + ((*corner, 0, tile.row, tile.column), ())
    carry = tuple(jax.tree.map(partial(_add, place), total, added) for place, total, added in zip(
        places, carry, (d_keys, d_values, d_bias, d_arrays), strict=True))  # fmt: skip
    d_queries = matmul("...ts,...sd->...td", d_products, keys) * scales(call)[0]
    return d_queries.reshape(*call.queries.shape[:3], tile.rows, -1), carry


def _wide(array: Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)


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

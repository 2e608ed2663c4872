"""Scaled dot-product attention a chunk of queries at a time: temporaries linear in T, never a [T, S] matrix.

The forward pass keeps, of each row, the largest score and the sum of exponentials; the backward pass computes the
weights of a chunk again from them, `P = exp(S - max) / sum`, and `dS = P (dP - delta)` with `delta = sum dO O`
(Dao 2022, FlashAttention, algorithm 4). Arrays have the axes of `tiles`.
"""

import os
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.functional.tiles import (
    Call,
    Laid,
    Loose,
    Settings,
    Tile,
    allowed,
    offset,
    over,
    part,
    positions,
    score,
)
from attention_zoo.notation import Array

CHUNK = 256
_LOOPS = 8  # causal: each loop leaves out the keys that none of its chunks may see; 8 loops do 9/16 of the work
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")  # of a core's second level, as Linux tells it: "2048K"


def attention(call: Call, chunk: int = CHUNK) -> jax.Array:
    """Context [B, G, R, T, V], `chunk` queries at a time."""
    if call.queries.dtype == jnp.float16:  # its exponents are too few for gradients that are divided by sums
        wide = {name: getattr(call, name).astype(jnp.float32) for name in ("queries", "keys", "values")}
        return attention(call._replace(**wide), chunk).astype(jnp.float16)
    size = call.queries.shape[3]
    count = -(-size // chunk)
    rows = -(-size // count)  # chunks of equal size: the least padding
    pad = partial(_pad, missing=count * rows - size)
    laid = jax.tree.map(lambda array: array if array.shape[3] == 1 else pad(array), call.laid)
    call = call._replace(
        settings=call.settings._replace(rows=rows, groups=call.keys.shape[1]), queries=pad(call.queries), laid=laid
    )
    context = _in_blocks(call, *_block(call))
    return context.reshape(*call.queries.shape[:-1], call.values.shape[-1])[..., :size, :]


def _pad(array: Array, missing: int) -> Array:
    """More rows of zeros: their results are cut off, so that nothing reaches them and they reach nothing."""
    return array if missing == 0 else jnp.pad(array, [(0, 0)] * 3 + [(0, missing), (0, 0)])


def _block(call: Call) -> tuple[int, int]:
    """How many examples and heads of keys to take at a time: on a CPU what fits its caches, elsewhere all of them."""
    examples, heads, size, _ = call.keys.shape
    cores = os.cpu_count() or 1
    fitting = cores * max(1, _share() // (call.queries.shape[2] * call.settings.rows * size))
    if jax.default_backend() != "cpu":
        fitting = examples * heads
    if call.laid.bias is not None or call.settings.bias is not None:
        # The loop over blocks sums the gradient of a bias that examples share; it has all the heads.
        return _largest_divisor(examples, fitting // heads), heads
    return _largest_divisor(examples, fitting // heads), _largest_divisor(heads, fitting)


@cache
def _share() -> int:
    """Scores a core works on at a time: in float32 half of its second-level cache, or of 512 KB where nobody tells."""
    try:
        size = _CACHE.read_text(encoding="utf-8").strip()
    except OSError:
        size = ""
    return 2**10 * int(size[:-1]) // 8 if re.fullmatch(r"[1-9]\d*K", size) else 2**16


def _largest_divisor(number: int, limit: int) -> int:
    return max(divisor for divisor in range(1, number + 1) if number % divisor == 0 and divisor <= max(limit, 1))


def _in_blocks(call: Call, examples: int, heads: int) -> jax.Array:
    """Context of one block of examples and heads after the other, [blocks, examples, heads, R, T, V]."""
    run = jax.custom_vjp(lambda *arguments: _forward(call.settings, *arguments)[0])
    run.defvjp(partial(_forward, call.settings), partial(_backward, call.settings))
    apart = [array.reshape(-1, examples, heads, *array.shape[2:]) for array in (call.queries, call.keys, call.values)]
    whole, loose = call.laid, call.loose
    biases = None
    if whole.bias is not None and whole.bias.shape[0] != 1:
        biases = whole.bias.reshape(-1, examples, *whole.bias.shape[1:])

    def block(inputs: Any) -> jax.Array:
        number, parts, bias = inputs
        laid = whole if bias is None else whole._replace(bias=bias)
        key = None if loose.key is None else jax.random.fold_in(loose.key, number)
        return run(*parts, laid, loose._replace(key=key), number)

    return jax.lax.map(block, (jnp.arange(apart[0].shape[0]), apart, biases))


def _within(settings: Settings, arguments: tuple[Any, ...]) -> Call:
    """The call of one block. Its masks are cut out here and not outside, where a copy for each block would be kept."""
    queries, keys, values, laid, loose, number = arguments
    size = keys.shape[:2]
    start = number * size[0] * size[1]

    def cut(array: Array) -> Array:
        for axis, corner in ((0, start // settings.groups), (1, start % settings.groups)):
            array = array if array.shape[axis] == 1 else part(array, corner, size[axis], axis)
        return array

    laid = jax.tree.map(cut, laid._replace(bias=None))._replace(bias=laid.bias)
    return Call(settings, queries, keys, values, laid, loose)


def _forward(settings: Settings, *arguments: Any) -> Any:
    call = _within(settings, arguments)
    chunks = []
    for first, end, columns in _loops(call):

        def step(_: None, number: Array, columns: int = columns) -> Any:
            return None, _chunk(call, _tile(call, number, columns))

        chunks.append(jax.lax.scan(step, None, jnp.arange(first, end))[1])
    context, largest, total = (_join(parts) for parts in zip(*chunks, strict=True))
    return context, (arguments, context, largest, total)


def _loops(call: Call) -> list[tuple[int, int, int]]:
    """(first chunk, end, columns) of the loops over chunks; the chunks of one loop need equally many columns."""
    settings, size = call.settings, call.keys.shape[2]
    count = call.queries.shape[3] // settings.rows
    if settings.left is not None and settings.right is not None:
        return [(0, count, min(size, settings.rows + settings.left + settings.right))]
    if settings.right is None or settings.offset is None:
        return [(0, count, size)]
    edges = sorted({round(edge) for edge in np.linspace(0, count, _LOOPS + 1)})
    seen = [min(size, max(1, end * settings.rows + settings.offset + settings.right)) for end in edges[1:]]
    return list(zip(edges[:-1], edges[1:], seen, strict=True))


def _tile(call: Call, number: Array, columns: int) -> Tile:
    # Tied to an array, the number is not known before it: a scan or checkpoint around this would otherwise compute the
    # masks of all the chunks ahead and keep them, which is a [T, S] matrix.
    number, _ = jax.lax.optimization_barrier((number, call.queries[0, 0, 0, 0, :1]))
    row, size = number * call.settings.rows, call.keys.shape[2]
    if call.settings.left is None or columns == size:
        return Tile(row, 0, call.settings.rows, columns)
    column = jnp.clip(row + offset(call) - call.settings.left, 0, size - columns)
    return Tile(row, column, call.settings.rows, columns)


def _chunk(call: Call, tile: Tile) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Context [B, G, R, t, V] of one chunk; of each row the largest score and the sum of exponentials."""
    compute, bias = _scores(call, tile)
    scores = compute(_products(_rows(call.queries, tile), _columns(call.keys, tile)), bias)
    # Never -inf, also in a row of nothing else: its weights are exp(-inf) = 0, and so are those of all hidden scores.
    largest = jnp.max(scores, axis=-1, initial=jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - largest[..., None])
    total = jnp.sum(weights, axis=-1)
    total = jnp.where(total == 0, 1, total)
    (weights,) = _dropped(call, tile, weights)
    values = _columns(call.values, tile)
    if jax.default_backend() != "cpu":  # a CPU multiplies in float32 anyway: there rounding the weights gains nothing
        weights = weights.astype(values.dtype)
    context = _matmul(_merge(weights), values).reshape(*weights.shape[:4], values.shape[3])
    # The sum divides the context, not the weights: V numbers a row, not S.
    return (context / total[..., None]).astype(values.dtype), largest, total


def _scores(call: Call, tile: Tile) -> tuple[Callable[..., jax.Array], tuple[Any, Any]]:
    """The function (products, bias) -> scores of a tile, and the bias."""
    places = positions(call, tile)
    laid = jax.tree.map(partial(over, tile=tile), call.laid)
    shown = allowed(call.settings, places, laid)
    return partial(score, call, places, shown), (laid.bias, call.loose.arrays)


def _products(left: Array, right: Array) -> jax.Array:
    """[B, G, R, t, D] with [B, G, s, D]: every row with every column, [B, G, R, t, s]."""
    return _matmul(_merge(left), jnp.swapaxes(right, 2, 3)).reshape(*left.shape[:4], right.shape[2])


def _matmul(left: Array, right: Array) -> jax.Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.promote_types(left.dtype, jnp.float32))


def _merge(array: Array) -> Array:
    """[B, G, R, t, W] as [B, G, R t, W]: all the queries of a key head, as the rows of one matrix."""
    return array.reshape(*array.shape[:2], -1, array.shape[4])


def _dropped(call: Call, tile: Tile, *arrays: Array) -> tuple[Array, ...]:
    """The arrays with the same entries dropped, forward and backward."""
    if not call.settings.dropout:
        return arrays
    assert call.loose.key is not None  # checked with the arguments
    share = 1 - call.settings.dropout
    kept = jax.random.bernoulli(jax.random.fold_in(call.loose.key, tile.row), share, arrays[0].shape)
    return tuple(jnp.where(kept, array / share, 0) for array in arrays)


def _backward(settings: Settings, kept: Any, gradient: Array) -> Any:
    arguments, context, largest, total = kept
    call = _within(settings, arguments)
    # Dividing these by the sum spares dividing every weight.
    gradient = gradient.astype(total.dtype) / total[..., None]
    delta = jnp.sum(gradient * context.astype(total.dtype), axis=-1)
    rows = (call.queries, gradient.astype(call.values.dtype), largest, delta)
    summed = (_turned(call.keys), _turned(call.values), call.laid.bias, call.loose.arrays)
    carry = jax.tree.map(lambda array: jnp.zeros(array.shape, jnp.promote_types(array.dtype, total.dtype)), summed)
    chunks = []
    for first, end, columns in _loops(call):

        def step(carry: Any, number: Array, columns: int = columns) -> Any:
            return _chunk_backward(call, _tile(call, number, columns), carry, rows)

        carry, d_queries = jax.lax.scan(step, carry, jnp.arange(first, end))
        chunks.append(d_queries)
    d_keys, d_values, d_bias, d_arrays = jax.tree.map(lambda total, array: total.astype(array.dtype), carry, summed)
    return _join(chunks), _turned(d_keys), _turned(d_values), Laid(bias=d_bias), Loose(arrays=d_arrays), None


def _chunk_backward(call: Call, tile: Tile, carry: Any, rows: tuple[Array, ...]) -> tuple[Any, jax.Array]:
    """Adds a chunk's gradients of keys, values and bias to the carry; gives that of its queries, [B, G, R, t, D]."""
    queries, gradient, largest, delta = (_rows(array, tile) for array in rows)
    keys = _columns(call.keys, tile)
    compute, bias = _scores(call, tile)
    scores, pull_back = jax.vjp(compute, _products(queries, keys), bias)
    weights = jnp.exp(scores - largest[..., None])
    read, d_weights = _dropped(call, tile, weights, _products(gradient, _columns(call.values, tile)))
    d_products, (d_bias, d_arrays) = pull_back(weights * (d_weights - delta[..., None]))
    d_products = _merge(d_products.astype(keys.dtype))
    # Transposed, so that it is the narrow factor that is turned: XLA:CPU is slow where it has to turn [t, s].
    d_keys = _matmul(jax.lax.optimization_barrier(_turned(_merge(queries))), d_products)
    d_values = _matmul(jax.lax.optimization_barrier(_turned(_merge(gradient))), _merge(read.astype(keys.dtype)))
    corners = ((0, 0, 0, tile.column), (0, 0, 0, tile.column), _corner(call.laid.bias, tile), None)
    carry = tuple(jax.tree.map(partial(_add, corner), total, added) for corner, total, added in zip(
        corners, carry, (d_keys, d_values, d_bias, d_arrays), strict=True))  # fmt: skip
    return carry, _matmul(d_products, keys).reshape(queries.shape).astype(queries.dtype)


def _turned(array: Array) -> Array:
    return jnp.swapaxes(array, 2, 3)


def _corner(bias: Array | None, tile: Tile) -> tuple[Any, ...] | None:
    if bias is None:
        return None
    return (0, 0, 0, tile.row if bias.shape[3] != 1 else 0, tile.column if bias.shape[4] != 1 else 0)


def _add(corner: tuple[Any, ...] | None, total: Array, added: Array) -> Array:
    """Adds a part whose first entry lies at `corner`; None = it is no part."""
    added = added.astype(total.dtype)
    if corner is None or added.shape == total.shape:
        return total + added
    here = jax.lax.dynamic_slice(total, corner, added.shape)
    return jax.lax.dynamic_update_slice(total, here + added, corner)


def _rows(array: Array, tile: Tile) -> Array:
    return part(array, tile.row, tile.rows, 3)


def _columns(array: Array, tile: Tile) -> Array:
    return part(array, tile.column, tile.columns, 2)


def _join(chunks: Any) -> jax.Array:
    """Results [n, B, G, R, t, ...] of the loops, one after the other: [B, G, R, T, ...]."""
    joined = jnp.moveaxis(jnp.concatenate(chunks), 0, 3)
    return joined.reshape(*joined.shape[:3], -1, *joined.shape[5:])

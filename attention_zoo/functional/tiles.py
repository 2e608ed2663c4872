"""A tile of attention scores: the arguments that lie over it, which of its scores count, and what they are.

Arrays have five axes, [B, G, R, T, S]: R of the H = G R query heads share the keys of one of G heads.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention_zoo.notation import Array

Places = tuple[Array, Array]


class Settings(NamedTuple):
    """What is known while tracing. A query at position p sees keys p - left <= s <= p + right; None = no bound.

    `bias` is the bias function: (arrays, constants, query positions, key positions) -> [H or 1, t, s]. `rows` are the
    queries of a tile, which `chunked` and `weighing` set.
    """

    scale: float
    soft_cap: float | None
    left: int | None
    right: int | None
    offset: int | None
    dropout: float = 0.0
    bias: Callable[[Any, Any, Array, Array], Array] | None = None
    rows: int = 0


class Laid(NamedTuple):
    """What lies over the scores, broadcasting against [B, G, R, T, S]; None where there is none. `real`: by lengths."""

    mask: Array | None = None
    real: Array | None = None
    query_segments: Array | None = None
    key_segments: Array | None = None
    bias: Array | None = None


class Loose(NamedTuple):
    """What has no place among the scores: a traced offset, a bias function's arrays (with a gradient) and constants."""

    offset: Array | None = None
    arrays: list[Array] | None = None
    constants: list[Array] | None = None
    key: Array | None = None


class Call(NamedTuple):
    """The arguments in the five axes of this file, checked. `lengths` [B] of the keys are in `laid.real` too."""

    settings: Settings
    queries: Array
    keys: Array
    values: Array
    laid: Laid
    loose: Loose
    lengths: Array | None = None


class Tile(NamedTuple):
    """Where a chunk lies: its first row and column, which may be traced, and its size."""

    row: Any
    column: Any
    rows: int
    columns: int


def score(settings: Settings, products: Array, bias: Array | None) -> jax.Array:
    """Scores of the products."""
    scores = products * settings.scale
    if settings.soft_cap:
        scores = settings.soft_cap * jnp.tanh(scores / settings.soft_cap)
    return scores if bias is None else scores + bias.astype(scores.dtype)


def bias_at(call: Call, places: Places, laid: Array | None, arrays: list[Array] | None) -> Array | None:
    """The bias at these places: what is laid over them, or what the bias function makes of its arrays there."""
    if call.settings.bias is None:
        return laid
    bias = call.settings.bias(arrays, call.loose.constants, *places)
    heads = call.queries.shape[1:3] if bias.shape[0] != 1 else (1, 1)
    return bias.reshape(1, *heads, *bias.shape[1:])


def allowed(settings: Settings, places: Places, laid: Laid) -> Array | None:
    """Which scores count, broadcasting against [B, G, R, t, s]; None where all do."""
    found = rules(settings, places, laid)
    return reduce(jnp.logical_and, found) if found else None


def rules(settings: Settings, places: Places, laid: Laid) -> list[Array]:
    """What each argument says of which scores count: each broadcasts against [B, G, R, t, s], and all have to agree."""
    found = [rule for rule in (laid.mask, laid.real) if rule is not None]
    if laid.query_segments is not None and laid.key_segments is not None:
        found.append((laid.query_segments == laid.key_segments) & (laid.key_segments != 0))
    if settings.left is not None or settings.right is not None:
        distance = (places[1][None, :] - places[0][:, None])[None, None, None]
        near = [distance >= -settings.left] if settings.left is not None else []
        near += [distance <= settings.right] if settings.right is not None else []
        found.append(reduce(jnp.logical_and, near))
    return found


def hide(shown: Array | None, scores: Array, fill: Any) -> Array:
    """The scores that count, and `fill` for the others."""
    return scores if shown is None else jnp.where(shown, scores, fill)


def positions(call: Call, tile: Tile) -> Places:
    """Where the queries and the keys of a tile stand, [t] and [s]."""
    rows = tile.row + jnp.arange(tile.rows) + offset(call)
    return rows.astype(jnp.int32), (tile.column + jnp.arange(tile.columns)).astype(jnp.int32)


def everywhere(call: Call) -> Places:
    """Where all queries and keys stand."""
    return positions(call, Tile(0, 0, call.queries.shape[3], call.keys.shape[2]))


def offset(call: Call) -> Any:
    """Where the first query stands."""
    return call.loose.offset if call.settings.offset is None else call.settings.offset


def over(array: Array, tile: Tile) -> Array:
    """The part of what is laid over all scores that lies over a tile."""
    rows = part(array, tile.row, tile.rows, 3) if array.shape[3] != 1 else array
    return part(rows, tile.column, tile.columns, 4) if array.shape[4] != 1 else rows


def part(array: Array, start: Any, size: int, axis: int) -> Array:
    """`size` entries of an axis from `start`; the array itself where that is all of it."""
    return array if array.shape[axis] == size else jax.lax.dynamic_slice_in_dim(array, start, size, axis)


def merge_heads(array: Array) -> Array:
    """[B, G, R, ...] as [B, H, ...]."""
    return array.reshape(array.shape[0], array.shape[1] * array.shape[2], *array.shape[3:])

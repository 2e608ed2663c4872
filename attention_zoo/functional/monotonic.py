"""Monotonic alignment: a walk along the source that only goes forward, in expectation, decided, or online.

At each step t the walk starts where it stopped before and looks at one source position after another. At position s it
stops with probability `p_ts = sigmoid(e_ts)`; the position it stops at is what the step attends to. A walk that passes
the last position has run off the end: this step and all later ones attend to nothing. (The paper's expectation, eq. 9,
knows no way back, so the decisions know none either; a step that tried again would also break the linear time.)

Masked positions do not exist: the walk passes them without a choice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from attention_zoo.functional.arrays import varying
from attention_zoo.notation import Array, Bool, Float, Int, Shaped, checked

_Score: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
_Recurrence: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


@checked
def first(mask: Bool[Array, "*b S"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*b S"]:
    """The alignment before the first step: one on the first position that exists, zeros where there is none.

    >>> first(jnp.array([False, True, True]))
    Array([0., 1., 0.], dtype=float32)
    """
    return (jnp.asarray(mask) & (jnp.cumsum(mask, axis=-1) == 1)).astype(dtype)


@checked
def with_noise(
    scores: Float[Array, "*b T S"], key: jax.Array, scale: float | int | Float[Array, ""] = 1.0
) -> Float[Array, "*b T S"]:
    """Pre-sigmoid noise, `e_ts + scale N(0, 1)`, in training alone: against it only p near 0 or 1 are reliable.

    It makes the expectation come close to the decisions taken later (Raffel 2017, section 2.5, with scale 1).
    """
    scores = jnp.asarray(scores)
    noise = jax.random.normal(key, scores.shape, jnp.promote_types(scores.dtype, jnp.float32))
    return (scores + jnp.asarray(scale, noise.dtype) * noise).astype(scores.dtype)


@checked
def monotonic(
    scores: Float[Array, "*b T S"],
    mask: Bool[Array, "*#b #T S"] | None,
    previous: Float[Array, "*b S"],
    *,
    method: str = "parallel",
) -> tuple[Float[Array, "*b T S"], Float[Array, "*b S"]]:
    """Expected monotonic alignment, `alpha_ts = p_ts q_ts` (Raffel 2017, eq. 13 and 14), for training.

    `q_ts = (1 - p_t,s-1) q_t,s-1 + alpha_t-1,s` is the probability that the walk comes to s. It is exact: 1 - p is
    computed as sigmoid(-e) = exp(-softplus(e)), and a sum of products of such factors, in which nothing is subtracted
    or divided, keeps its relative precision without logarithms, down to where the weights themselves are zero. (The
    paper's parallel form divides by products that vanish.) Finite in value and gradient, also where p is 0 or 1.

    Args:
        scores: e, [..., T, S]; masked ones may be anything.
        mask: True = the position exists; broadcasts against `scores`. A step for which none does ends the walk.
        previous: the alignment of the step before, [..., S]; `first(mask)` at the start.
        method: "parallel" goes along S in log2(S) rounds, "recursive" position by position; equal up to rounding.

    Returns:
        weights [..., T, S], computed in float32 at least, in the dtype of `scores`. A row sums to at most one: what is
        missing has run off the end. And the last step's, [..., S], in the dtype of `previous`: the next `previous`.

    Raises:
        ValueError: the method is not one of `METHODS`.

    >>> monotonic(jnp.zeros((2, 3)), None, jnp.array([1.0, 0.0, 0.0]))[0]
    Array([[0.5   , 0.25  , 0.125 ],
           [0.25  , 0.25  , 0.1875]], dtype=float32)
    """
    if method not in METHODS:
        raise ValueError(f"monotonic: method is one of {', '.join(METHODS)}; got {method!r}")
    scores, previous, allowed = jnp.asarray(scores), jnp.asarray(previous), _allowed(scores, mask)
    filled = jnp.where(allowed, scores, 0).astype(jnp.promote_types(scores.dtype, jnp.float32))
    stop = jnp.where(allowed, jax.nn.sigmoid(filled), 0)
    # Not 1 - stop, which is zero or rounded where stop is close to one.
    go_on = jnp.where(allowed, jax.nn.sigmoid(-filled), 1)

    def step(before: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        stop, go_on = row  # [..., S]
        weights = stop * METHODS[method](go_on, before)
        return weights, weights

    rows = (jnp.moveaxis(stop, -2, 0), jnp.moveaxis(go_on, -2, 0))
    last, weights = lax.scan(step, *varying(previous.astype(filled.dtype), rows))
    return jnp.moveaxis(weights, 0, -2).astype(scores.dtype), last.astype(previous.dtype)


def _recursive(go_on: jax.Array, before: jax.Array) -> jax.Array:
    """`q_s = go_on_s-1 q_s-1 + before_s` over the last axis, one position after the other."""

    def walk(arriving: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        go_on, before = at  # [...]
        reached = arriving + before
        return go_on * reached, reached

    along = (jnp.moveaxis(go_on, -1, 0), jnp.moveaxis(before, -1, 0))
    return jnp.moveaxis(lax.scan(walk, jnp.zeros_like(before, before.dtype, shape=before.shape[:-1]), along)[1], 0, -1)


@jax.custom_jvp
def _parallel(go_on: jax.Array, before: jax.Array) -> jax.Array:
    """The same, all positions at once: `q_s = factor_s q_(s - n) + reached_s` put into itself gives it for 2 n."""
    factor, reached, distance = shifted(go_on, 1), before, 1
    while distance < before.shape[-1]:
        reached = reached + factor * shifted(reached, distance)
        factor = factor * shifted(factor, distance)
        distance *= 2
    return reached


@_parallel.defjvp
def _parallel_tangent(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """`dq_s = go_on_s-1 dq_s-1 + (d go_on_s-1 q_s-1 + d before_s)`: it needs q alone, not what each round came to."""
    (go_on, before), (d_go_on, d_before) = primals, tangents
    reached = _parallel(go_on, before)
    return reached, _parallel(go_on, d_before + shifted(d_go_on * reached, 1))


@checked
def shifted(along: Shaped[Array, "*b S"], distance: int) -> Shaped[Array, "*b S"]:
    """What stands at s - distance, at s, over the last axis; zeros (False) where that is outside.

    >>> shifted(jnp.array([1, 2, 3]), 1), shifted(jnp.array([1, 2, 3]), -2)
    (Array([0, 1, 2], dtype=int32), Array([3, 0, 0], dtype=int32))
    """
    along = jnp.asarray(along)
    kept = [(0, 0, 0)] * (along.ndim - 1)
    return lax.pad(along, jnp.zeros((), along.dtype), [*kept, (distance, -distance, 0)])


METHODS: dict[str, _Recurrence] = {"parallel": _parallel, "recursive": _recursive}


@checked
def hard(
    scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None, previous: Float[Array, "*b S"]
) -> tuple[Float[Array, "*b T S"], Float[Array, "*b S"]]:
    """Hard monotonic alignment, for decoding: each step stops at the first position with p > 1/2, that is e > 0.

    The search starts at the position of the step before (Raffel 2017, Algorithm 1, with `p > 1/2` for the coin). Where
    it finds none, the row is zeros and so are all later ones. It has no gradient.

    Args:
        scores: e, [..., T, S]; masked ones may be anything.
        mask: True = the position exists; broadcasts against `scores`.
        previous: one at the position of the step before, zeros once off the end, [..., S]; `first(mask)` at the start.

    Returns:
        weights [..., T, S], rows of zeros with at most a single one, in the dtype of `scores`; and the last step's,
        [..., S], in the dtype of `previous`: the next `previous`.

    >>> hard(jnp.array([[-1.0, 2.0, 3.0], [9.0, -1.0, 1.0], [1.0, 1.0, -1.0]]), None, jnp.array([1.0, 0.0, 0.0]))[0]
    Array([[0., 1., 0.],
           [0., 0., 1.],
           [0., 0., 0.]], dtype=float32)
    """
    scores, previous = jnp.asarray(scores), jnp.asarray(previous)
    size = scores.shape[-1]
    index = lax.broadcasted_iota(jnp.int32, previous.shape, previous.ndim - 1)

    def leftmost(marked: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(marked, index, size), axis=-1, initial=size)  # `size` is off the end

    def step(position: jax.Array, stops: jax.Array) -> tuple[jax.Array, jax.Array]:
        position = leftmost(stops & (index >= position[..., None]))
        return position, position

    stops = (scores > 0) & _allowed(scores, mask)
    last, positions = lax.scan(step, *varying(leftmost(previous > 0), jnp.moveaxis(stops, -2, 0)))
    weights = jax.nn.one_hot(jnp.moveaxis(positions, 0, -1), size, dtype=scores.dtype)
    return weights, jax.nn.one_hot(last, size, dtype=previous.dtype)


def _allowed(scores: Array, mask: Array | None) -> jax.Array:
    return jnp.ones(scores.shape, bool) if mask is None else jnp.broadcast_to(mask, scores.shape)


class _Place(NamedTuple):
    """Where the walk is: position int32 [], and the key [K] that was read on arriving there."""

    position: jax.Array
    key: jax.Array


@checked
def online(
    score: _Score,
    queries: Float[Array, "T Q"],
    keys: Float[Array, "S K"],
    values: Float[Array, "S V"],
    length: int | Int[Array, ""],
    start: int | Int[Array, ""] = 0,
) -> tuple[Int[Array, "T"], Float[Array, "T V"]]:
    """Hard monotonic attention in linear time (Raffel 2017, Algorithm 1): what `hard` gives, of one example.

    One loop of at most S + T turns, each of which scores one query with one key and then goes on to the next query or
    to the next key. A source position is read at most twice, once as a key and once as a value, however many steps
    stop there. Under `vmap` the examples take turns together, and rows are read needed or not. No gradient.

    Args:
        score: `(query [1, Q], key [1, K]) -> [1, 1]`, such as `scores.dot` or a closure over weights.
        queries: [T, Q].
        keys, values: [S, K] and [S, V]; what lies beyond `length` is not read.
        length: the number of real positions, at most S.
        start: the position of the step before; `length` once off the end.

    Returns:
        the position that each step stops at, int32 [T], `length` where it stops at none; and contexts [T, V], the
        values there, zeros where there is none.
    """
    queries, keys, values = varying(*map(jnp.asarray, (queries, keys, values)))
    steps, length = queries.shape[0], jnp.asarray(length, jnp.int32)

    def turn(state: tuple[jax.Array, _Place, jax.Array]) -> tuple[jax.Array, _Place, jax.Array]:
        t, place, positions = state
        stopped, place = _look(score, queries[t], keys, length, place)
        return t + stopped, place, positions.at[t].set(jnp.where(stopped, place.position, length))

    def unfinished(state: tuple[jax.Array, _Place, jax.Array]) -> jax.Array:
        return (state[0] < steps) & (state[1].position < length)

    def read(held: tuple[jax.Array, jax.Array], position: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        before, value = held
        exists = position < length
        value = _row(values, position, exists & (position != before), value)
        return (position, value), jnp.where(exists, value, 0)

    state = varying(jnp.int32(0), _enter(keys, length, start), jnp.full(steps, length, jnp.int32))
    positions = lax.while_loop(unfinished, turn, state)[2]
    nothing = jnp.zeros_like(values, values.dtype, shape=values.shape[1:])
    held, positions = varying((jnp.int32(-1), nothing), positions)
    return positions, lax.scan(read, held, positions)[1]


@checked
def online_step(
    score: _Score,
    query: Float[Array, "Q"],
    keys: Float[Array, "S K"],
    length: int | Int[Array, ""],
    position: int | Int[Array, ""],
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """One step of `online`, for a decoder whose next query waits for this context.

    It scores the query with one key after another, from `position` to where it stops: over a whole output at most
    S + T keys. (The key at `position` is read again; `online` holds it.)

    Args:
        score, keys, length: as in `online`.
        query: [Q].
        position: where the step before stopped; 0 at the start.

    Returns:
        the next `position`, int32: where it stops, or `length`; and whether there is anything to attend to.
    """
    query, keys = varying(jnp.asarray(query), jnp.asarray(keys))
    length = jnp.asarray(length, jnp.int32)

    def unfinished(state: tuple[jax.Array, _Place]) -> jax.Array:
        return ~state[0] & (state[1].position < length)

    stopped, place = lax.while_loop(
        unfinished,
        lambda state: _look(score, query, keys, length, state[1]),
        varying(jnp.bool_(False), _enter(keys, length, position)),
    )
    return place.position, stopped


def _look(score: _Score, query: Any, keys: Any, length: jax.Array, place: _Place) -> tuple[jax.Array, _Place]:
    """One choice: whether the query stops here; if not, the next place."""
    stopped = score(query[None], place.key[None])[0, 0] > 0
    position = place.position + ~stopped
    return stopped, _Place(position, _row(keys, position, ~stopped & (position < length), place.key))


def _enter(keys: jax.Array, length: jax.Array, position: int | Array) -> _Place:
    keys, place, _ = varying(keys, jnp.asarray(position, jnp.int32), length)
    return _Place(place, _row(keys, place, place < length, jnp.zeros_like(keys, keys.dtype, shape=keys.shape[1:])))


def _row(memory: jax.Array, position: jax.Array, needed: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Reads one row of the memory, if it is needed."""
    if not memory.shape[0]:
        return otherwise
    return lax.cond(needed, lambda: lax.dynamic_index_in_dim(memory, position, keepdims=False), lambda: otherwise)

"""Functions of single rows, such as a feed-forward layer, computed for the real rows alone.

The real rows are put together, and a loop goes over as many parts of them as there are. So a function is compiled for
two sizes, however many rows are real (`rows.real_rows_matmul` compiles many sizes, each of all real rows), and what is
made of a part is still in the cache where it is read.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from attention_zoo.functional.arrays import (
    as_array,
    blank,
    combine,
    differentiable,
    like,
    one_cpu,
    partition,
    stacked,
    thinned,
    varying,
    written,
    zeros_after,
)
from attention_zoo.functional.programs import Program, trace
from attention_zoo.functional.rows import for_the_fullest, real_first
from attention_zoo.notation import Array, Bool, checked

# Rows at a time: parts of the first size as long as they are full, then of the second. Products of fewer are slower.
SIZES = (512, 64)
# From so many rows, and so many multiplications for each, leaving some out pays: parts of the second size are slow.
LEAST = (2048, 2**17)
Function = Callable[[Any, Any], jax.Array]


class _Layout(NamedTuple):
    """places: where the rows that are put together stand among all, [m]; the first `number` are real. spots: where all
    stand among these, [n]. real: [n]. end: of the parts, `number`; under `jax.vmap` that of the fullest example."""

    places: jax.Array
    spots: jax.Array
    number: jax.Array
    real: jax.Array
    end: jax.Array


def pays(number: int, size: int) -> bool:
    """Whether `of_real_rows` pays: for so many rows (jax.export may know a name only), so many multiplications each."""
    return one_cpu() and isinstance(number, int) and number >= LEAST[0] and size >= LEAST[1]


@checked
def of_real_rows(function: Function, constants: Any, rows: Any, real: Bool[Array, " n"]) -> jax.Array:
    """`function(constants, rows)` for the rows that are real, and zeros for others, [n, ...].

    No forward mode; under `jax.jit` one reverse pass, and no second over that (`jax.hessian` is forward over reverse,
    and works). Under `jax.vmap` all examples take as many parts as the fullest.

    Args:
        function: pure, of floating-point results, each of its own row alone but for what is drawn at random. It is
            called for fewer rows than n, with zeros for some.
        constants: a pytree of weights, and whatever else is the same for all rows.
        rows: a pytree of arrays [n, ...].
        real: True = this row's result is read, [n].
    """
    if not real.size:
        return function(constants, rows)
    constants, rows, real = varying(*jax.tree.map(as_array, (constants, rows, real)))
    leaves, structure = jax.tree.flatten(constants)
    of_leaves = lambda leaves, rows: function(jax.tree.unflatten(structure, leaves), rows)  # noqa: E731
    run = jax.custom_vjp(partial(_plain, of_leaves))
    run.defvjp(partial(_forward, of_leaves), lambda pull_back, gradient: pull_back(gradient))
    return run(leaves, rows, _lay_out(real))


def _lay_out(real: Array) -> _Layout:
    places, spots, number = real_first(real, -(-len(real) // SIZES[-1]) * SIZES[-1])
    return _Layout(places, spots, number, real, for_the_fullest(number))


def _together(tree: Any, layout: _Layout) -> Any:
    """The real rows [m, ...], and zeros behind them."""
    return jax.tree.map(partial(_taken, layout.places, jnp.arange(len(layout.places)) < layout.number), tree)


def _back(tree: Any, layout: _Layout) -> Any:
    """The rows in their places, [n, ...], and zeros in others."""
    return jax.tree.map(partial(_taken, layout.spots, layout.real), tree)


def _taken(places: Array, wanted: Array, rows: Array) -> jax.Array:
    wanted = wanted.reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(wanted, jnp.take(rows, places, axis=0, mode="clip"), jnp.zeros((), rows.dtype))


class _Pass(NamedTuple):
    """Parts of one size. most: how many there may be. start: the first row. number: of parts that have real rows."""

    size: int
    most: int
    start: jax.Array
    number: jax.Array

    def loop(self, body: Callable[[Array, Array, Any], Any], carry: Any) -> Any:
        """`body(n, row, carry) -> carry` for each part, the n-th of this pass, that begins with this row."""
        return jax.lax.fori_loop(0, self.number, lambda n, carry: body(n, self.start + n * self.size, carry), carry)


def _passes(layout: _Layout) -> list[_Pass]:
    room, end, (large, small) = len(layout.places), layout.end, SIZES
    full = _Pass(large, room // large, jnp.zeros((), jnp.int32), end // large)
    start = full.number * large
    rest = _Pass(small, -(-min(room, large - 1) // small), start, -((start - end) // small))
    return [full, rest] if full.most else [rest]


def _plain(function: Function, constants: Any, rows: Any, layout: _Layout) -> jax.Array:
    rows = _together(rows, layout)
    results = blank(jax.eval_shape(function, constants, rows), rows)
    for parts in _passes(layout):

        def body(n: Array, row: Array, results: Array, size: int = parts.size) -> Any:
            return _written(results, row, function(constants, _part(rows, row, size)))

        results = parts.loop(body, results)
    return _back(results, layout)


class _Way(NamedTuple):
    """Of a pass. back: the structure of what goes back, shapes: of its leaves. reads: whether a constant is read, of
    each."""

    back: Any
    shapes: list[tuple[int, ...]]
    reads: list[bool]


class _Known(NamedTuple):
    """What a part's way back reads, leaf by leaf: what is fixed for all parts, constants or made of these alone; a part
    of the rows, or of what was kept of each; or what else the function made of it, collected part by part. None in
    place of each other's."""

    fixed: list[jax.Array | None]
    rows: list[jax.Array | None]
    collected: list[jax.Array | None]

    def of(self, n: Array, row: Array, size: int) -> list[jax.Array]:
        """The n-th part's leaves, each in the shape of whichever has its numbers."""
        collected = jax.tree.map(lambda leaf: leaf[n], self.collected)
        return combine(self.fixed, combine(_part(self.rows, row, size), collected))


def _forward(function: Function, constants: Any, rows: Any, layout: _Layout) -> tuple[jax.Array, Any]:
    rows = _together(rows, layout)
    results = blank(jax.eval_shape(function, constants, rows), rows)
    ways, found = [], []
    kept: list[jax.Array] | None = None
    for parts in _passes(layout):
        back: list[Any] = []
        program = trace(partial(_pulled, function, back), constants, _part(rows, 0, parts.size))
        results, kept, tell = _collected(program, parts, constants, rows, results, kept)
        ways.append(_Way(back[0], [leaf.shape for leaf in program.results[1]], program.reads[0]))
        found.append(tell)
    pull_back = partial(_backward, ways)
    # What is kept of each row is read as the last pass left it.
    known = [tell(kept or []) for tell in found]
    return _back(results, layout), Partial(pull_back, constants, partition(rows)[0], layout, known)


def _pulled(function: Function, back: list[Any], constants: Any, rows: Any) -> tuple[jax.Array, list[jax.Array]]:
    """Results, and the leaves of what goes back, whose structure is appended."""
    (some, others), (x, rest) = partition(constants), partition(rows)
    results, pull = jax.vjp(lambda some, x: function(combine(some, others), combine(x, rest)), some, x)
    leaves, structure = jax.tree.flatten(pull)
    back.append(structure)
    return results, leaves


def _collected(
    program: Program, parts: _Pass, constants: Any, rows: Any, results: Array, kept: list[jax.Array] | None
) -> tuple[Array, list[jax.Array], Callable[[list[jax.Array]], _Known]]:
    """The results with those of a pass's parts; and what their way back reads, given what all passes keep of each row.

    kept: arrays [m, ...] for what has as many rows as a part, None for the first pass, which makes them; given back
        with this pass's rows written. Parts have no row in common, so that no two need the same place, whatever they
        keep there.
    """
    (_, names), (_, needs), (_, likes) = program.got, program.needs, program.results
    given, read = (
        dict(zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in zip(program.given, (constants, rows), strict=True)
    )
    varies = [not needed.isdisjoint(read) for needed in needs]
    places = {name: n for n, name in enumerate(names) if varies[n] and name not in read}  # each array once
    lead = {name: likes[place] for name, place in places.items() if likes[place].shape[:1] == (parts.size,)}
    room = len(jax.tree.leaves(rows)[0])
    wanted = [like(leaf, (room, *leaf.shape[1:])) for leaf in lead.values()] if kept is None else []
    held = _places(lead, kept or wanted)
    others = [place for name, place in places.items() if name not in held]

    def body(n: Array, row: Array, carry: Any) -> Any:
        results, kept, arrays = carry
        new, leaves = program.run(constants, _part(rows, row, parts.size))
        for name, number in held.items():
            kept[number] = _written(kept[number], row, leaves[places[name]])
        return _written(results, row, new), kept, written(arrays, n, [leaves[place] for place in others])

    new, empty = blank((wanted, stacked(parts.most, [likes[place] for place in others])), rows)
    results, kept, arrays = parts.loop(body, (results, kept or new, empty))
    collected = dict(zip((name for name in places if name not in held), arrays, strict=True))
    made: list[Any] = [None] * len(names)
    if any(not (moves or name in given) for name, moves in zip(names, varies, strict=True)):
        alone = lambda *a: thinned(program.run(*a)[1], [not moves for moves in varies])  # noqa: E731
        made = jax.jit(alone)(constants, _part(rows, 0, parts.size))  # XLA leaves out all else that this computes
    fixed = [None if moves else given.get(name, leaf) for name, moves, leaf in zip(names, varies, made, strict=True)]

    def known(kept: list[jax.Array]) -> _Known:
        of_rows = {**read, **{name: kept[number] for name, number in held.items()}}
        return _Known(fixed, list(map(of_rows.get, names)), list(map(collected.get, names)))

    return results, kept, known


def _places(likes: dict[int, Any], arrays: Sequence[Any]) -> dict[int, int]:
    """By name, which array has rows of its shape and dtype; another for each, and none for what no array is left."""
    places: dict[int, int] = {}
    for name, row in likes.items():
        alike = (n for n, array in enumerate(arrays) if (array.shape[1:], array.dtype) == (row.shape[1:], row.dtype))
        if (place := next((n for n in alike if n not in places.values()), None)) is not None:
            places[name] = place
    return places


def _backward(
    ways: list[_Way], constants: list[Array], rows: Any, layout: _Layout, known: list[_Known], by: Array
) -> tuple[list[Array | None], Any, None]:
    gradient, d_rows = _together(by, layout), blank(rows, by)
    summed = [differentiable(leaf) and any(way.reads[n] for way in ways) for n, leaf in enumerate(constants)]
    sums = [
        zeros_after(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32), by) if read else None
        for leaf, read in zip(constants, summed, strict=True)
    ]
    for parts, way, found in zip(_passes(layout), ways, known, strict=True):

        def body(n: Array, row: Array, carry: Any, parts: _Pass = parts, way: _Way = way, found: _Known = found) -> Any:
            sums, d_rows = carry
            leaves = zip(found.of(n, row, parts.size), way.shapes, strict=True)
            pull = jax.tree.unflatten(way.back, [leaf.reshape(shape) for leaf, shape in leaves])
            shares, added = pull(_part(gradient, row, parts.size))
            sums = [None if total is None else total + share for total, share in zip(sums, shares, strict=True)]
            return sums, _written(d_rows, row, added)

        sums, d_rows = parts.loop(body, (sums, d_rows))
    d_constants = [
        None if total is None else total.astype(leaf.dtype) for total, leaf in zip(sums, constants, strict=True)
    ]
    return d_constants, _back(d_rows, layout), None


def _part(tree: Any, start: Any, size: int) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), tree)


def _written(arrays: Any, start: Array, values: Any) -> Any:
    return jax.tree.map(
        lambda array, value: jax.lax.dynamic_update_slice_in_dim(array, value, start, 0), arrays, values
    )

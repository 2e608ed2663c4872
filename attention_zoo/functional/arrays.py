"""Arrays for loops to write, and trees taken apart by what has a gradient."""

import os
from collections.abc import Callable, Collection, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from attention_zoo.notation import Array


def blank(tree: Any, source: Any) -> Any:
    """Arrays of the tree's shapes and dtypes for a loop to write, which has to write all of them.

    Of a number of the source, to which every array adds its place in the tree, instead of zeros: so none is made before
    the source is, nor one for several, which XLA would copy for each.
    """
    numbers = next((leaf for leaf in jax.tree.leaves(source) if differentiable(leaf) and 0 not in leaf.shape), None)
    number = varying(0, source)[0] if numbers is None else later(numbers, source)[(0,) * numbers.ndim].real
    leaves, structure = jax.tree.flatten(tree)
    full = [jnp.full(leaf.shape, number + place, leaf.dtype) for place, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, full)


def collect(
    step: Callable[[Any, list[jax.Array]], tuple[Any, tuple[Any, Any]]],
    carry: Any,
    length: int,
    read: Sequence[jax.Array],
    given: Any,
    over: Sequence[Collection[int]],
    *,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    """A scan that writes results over what it has read.

    Args:
        step: from the carry and the n-th of what is read to the carry, the n-th results to be written, and others,
            which are collected as `lax.scan` does it.
        carry: before the first step.
        length: how many steps.
        read: stacked arrays.
        given: what the results to be written look like, stacked.
        over: for each of them, the numbers of the arrays that nobody reads after the loop and that it depends on; it
            is written over the first of these of its shape and dtype. (XLA copies an array whole, in every step, if
            it is written by what need not wait until it is read.)
        reverse: from the last to the first.

    Returns:
        the carry, the results that were written, and the others.
    """
    wanted, structure = jax.tree.flatten(given)
    guests: dict[int, int] = {}
    for number, (result, places) in enumerate(zip(wanted, over, strict=True)):
        free = (place for place in places if place not in guests and _alike(read[place], result))
        if (place := next(free, None)) is not None:
            guests[place] = number
    hosts = {number: place for place, number in guests.items()}
    new = iter(blank([result for number, result in enumerate(wanted) if number not in hosts], (read, carry)))
    arrays = [read[hosts[number]] if number in hosts else next(new) for number in range(len(wanted))]
    others = [leaf for place, leaf in enumerate(read) if place not in guests]

    def body(loop: Any, inputs: Any) -> Any:
        (carry, arrays), (n, others) = loop, inputs
        rest = iter(others)
        now = [arrays[guests[place]][n] if place in guests else next(rest) for place in range(len(read))]
        carry, (results, rest) = step(carry, now)
        return (carry, written(arrays, n, jax.tree.leaves(results))), rest

    (carry, arrays), rest = jax.lax.scan(body, (carry, arrays), (jnp.arange(length), others), reverse=reverse)
    return carry, jax.tree.unflatten(structure, arrays), rest


def _alike(one: Any, other: Any) -> bool:
    return bool((one.shape, one.dtype) == (other.shape, other.dtype))


def apart(leaf: Array) -> jax.Array:
    """A leaf as an array of its own: what XLA:CPU cuts gates from, it would compute or read again for every cut."""
    return jax.lax.optimization_barrier(leaf) if jax.default_backend() == "cpu" else leaf


def laid_out(array: Array) -> jax.Array:
    """An array `apart`, on one CPU as one axis, so that a transpose is written in one pass, in the order of its axes.

    As several axes XLA of jax 0.11 copies it twice, and once for each of those who read it.
    """
    return apart(array.ravel()).reshape(array.shape) if one_cpu() else apart(array)


def later(tree: Any, source: Any) -> Any:
    """The tree, on a CPU not before the source: what depends on nothing else XLA would make first of all, and keep."""
    if jax.default_backend() != "cpu":
        return tree
    return jax.lax.optimization_barrier((tree, partition(source)[0]))[0]


def zeros_after(shape: tuple[int, ...], dtype: Any, source: Any) -> jax.Array:
    """Zeros that are made `later` than the source, for one loop or sum to write.

    On one CPU they are made of its numbers, each with its bits shifted out: zeros that XLA knows as such it makes first
    of all, one array for all who want some, and copies that for each.
    """
    leaves = filter(differentiable, jax.tree.leaves(source)) if one_cpu() else ()
    numbers = [leaf[(0,) * leaf.ndim].real for leaf in leaves if isinstance(leaf.size, int) and leaf.size]
    if not numbers:
        return jnp.full(shape, later(varying(jnp.zeros((), dtype), partition(source)[0])[0], source))
    return jnp.full(shape, apart(reduce(jnp.add, [_shifted_out(number).astype(dtype) for number in numbers])))


def _shifted_out(number: jax.Array) -> jax.Array:
    """Zero, of any number."""
    bits = jax.lax.bitcast_convert_type(number, f"uint{jnp.finfo(number.dtype).bits}")
    return (bits & 1) >> 1


def stays_apart() -> bool:
    """Whether what is `apart` is so until XLA gives arrays their places: on a CPU, from jax 0.11 on.

    Where it is not, XLA computes an array anew for each of its readers, also after the one that writes it has
    overwritten what it is computed from: so it copies that first, whole and in every step.
    """
    return jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 11)


def cores() -> int:
    """Those of the CPU, where the system tells it those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_cpu() -> bool:
    """Whether a CPU is JAX's only device, so that rows may be gathered from wherever they stand."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def like(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """What looks like the leaf but for its shape."""
    if not _axes(leaf):
        return jax.ShapeDtypeStruct(shape, leaf.dtype)
    known = _type(leaf)
    anywhere = NamedSharding(known.sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=anywhere, manual_axis_type=known.manual_axis_type)


def varying(*trees: Any) -> Any:
    """The trees; inside `jax.shard_map` every array differs along each mesh axis along which any of them does.

    Shapes count, and stay as they are. So what a loop carries is of one type from its zeros on, and the gradient by
    what all devices share is summed over them where they begin to differ.
    """
    axes = frozenset[Any]().union(*map(_axes, jax.tree.leaves(trees)))
    if not axes:
        return trees

    def cast(leaf: Any) -> Any:
        new = tuple(sorted(axes - _axes(leaf), key=str))
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.lax.pcast(leaf, new, to="varying")

    return jax.tree.map(cast, trees)


def _axes(leaf: Any) -> frozenset[Any]:
    """The axes of the mesh of a `jax.shard_map` around this, along which an array, or one of such a shape, differs."""
    manual = _type(leaf).manual_axis_type
    return frozenset() if manual is None else manual.varying


def _type(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)


def stacked(length: int, tree: Any) -> Any:
    """The shapes of a tree's leaves, stacked."""
    return jax.tree.map(lambda leaf: like(leaf, (length, *leaf.shape)), tree)


def written(arrays: Any, n: jax.Array, values: Any) -> Any:
    """The arrays with the values as their n-th."""
    write = partial(jax.lax.dynamic_update_index_in_dim, index=n, axis=0)
    return jax.tree.map(write, arrays, values)


def partition(tree: Any) -> tuple[Any, Any]:
    """A tree's leaves that have gradients, and the others; None in place of each other's."""
    one = jax.tree.map(lambda leaf: leaf if differentiable(leaf) else None, tree)
    return one, jax.tree.map(lambda leaf: None if differentiable(leaf) else leaf, tree)


def thinned(tree: Any, kept: Any) -> Any:
    """A tree, with None in place of the leaves that are not kept."""
    return jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, kept)


def combine(one: Any, other: Any) -> Any:
    """What `partition` took apart."""
    return jax.tree.map(lambda a, b: b if a is None else a, one, other, is_leaf=_absent)


def _absent(leaf: Any) -> bool:
    return leaf is None


def differentiable(leaf: Any) -> bool:
    """Whether it is of real or complex numbers."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def weak(leaf: jax.Array) -> bool:
    """Whether it was a number of Python, which takes another's dtype."""
    return bool(getattr(leaf, "weak_type", False))


def as_array(leaf: Any) -> jax.Array:
    """The leaf, if it is an array of JAX; else one of it. Random keys stay what they are."""
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def unstacked(leaf: Array) -> jax.ShapeDtypeStruct:
    """What one of its rows looks like."""
    return like(leaf, leaf.shape[1:])

"""Arrays for loops to write, and trees taken apart by what has a gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.notation import Array


def blank(tree: Any, source: Any) -> Any:
    """Arrays of the tree's shapes and dtypes for a loop to write, which has to write all of them.

    Of some number of the source each, instead of zeros: so none is made before the source is, nor shared with another
    loop, for which XLA would copy it.
    """
    numbers = next((leaf for leaf in jax.tree.leaves(source) if differentiable(leaf) and leaf.size), None)
    leaves, structure = jax.tree.flatten(tree)
    full = []
    for n, leaf in enumerate(leaves):
        number = 0 if numbers is None else numbers[np.unravel_index(n % numbers.size, numbers.shape)].real
        full.append(jnp.full(leaf.shape, number, leaf.dtype))
    return jax.tree.unflatten(structure, full)


def stacked(length: int, tree: Any) -> Any:
    """The shapes of a tree's leaves, stacked."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape), leaf.dtype), tree)


def written(arrays: Any, n: jax.Array, values: Any) -> Any:
    """The arrays with the values as their n-th."""
    write = partial(jax.lax.dynamic_update_index_in_dim, index=n, axis=0)
    return jax.tree.map(write, arrays, values)


def partition(tree: Any) -> tuple[Any, Any]:
    """A tree's leaves that have gradients, and the others; None in place of each other's."""
    one = jax.tree.map(lambda leaf: leaf if differentiable(leaf) else None, tree)
    return one, jax.tree.map(lambda leaf: None if differentiable(leaf) else leaf, tree)


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
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)

"""Matrix products of the rows that are read: where a CPU is JAX's only device, large ones leave out the others."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from attention_zoo.functional.arrays import apart, laid_out, one_cpu, varying
from attention_zoo.notation import Array, Bool, Float, checked

LEAST = 2**25  # multiplications, for which gathering rows is worth its time
WIDE = 2**20  # numbers in a kernel that is better read once, as it lies
MANY = 1024  # rows that are worth being laid out in another order
# How many rows a product may take: so many sixteenths of all, in multiples of 8. Every size is compiled.
SIXTEENTHS = (4, 8, 10, 11, 12, 13, 14, 15, 16)
MULTIPLE = 8

_Product: TypeAlias = Callable[[Array, Array], jax.Array]  # of rows and a kernel


class _Packing(NamedTuple):
    """places: the rows' numbers [n], real ones first. spots: where each row is among these, [n]. choice: the first of
    `_sizes` that holds all real rows and one more, or all rows."""

    places: jax.Array
    spots: jax.Array
    choice: jax.Array


@checked
def real_rows_matmul(rows: Float[Array, "n I"], kernel: Float[Array, "I O"], real: Bool[Array, " n"]) -> jax.Array:
    """`x W` for the rows that are real, [n, O].

    The results of others mean nothing, and are not to be read: no gradient may come back from them. With one
    CPU as JAX's only device, large products (`LEAST`) take the real rows together, wherever they stand, and of the
    others as many as make a number of rows that is compiled; under `jax.vmap` all examples take as many as the fullest.
    Those are reverse mode only, as with any `jax.custom_vjp`.

    Args:
        rows: x, [n, I].
        kernel: W, [I, O].
        real: True = this row's result is read, [n].
    """
    return _packed(*varying(rows, kernel, real)) if large(rows.shape[0], kernel.size) else rows @ kernel


def matmul(rows: Array, kernel: Array, real: Array) -> jax.Array:
    """`real_rows_matmul` without a gradient of its own: for a loop that knows what that is."""
    return _of_real_rows(jnp.matmul, rows, kernel, real)


def transposed_matmul(gradient: Array, kernel: Array, real: Array | None = None) -> jax.Array:
    """`dy W^T`, the gradient of a step's `x W` by x, [n, I]; where rows are not `real`, [n], their dy is zero.

    Of W^T as an array of its own, which a CPU multiplies faster by than by W from its other side. XLA forms it once,
    before the loop. On one CPU a large W (`WIDE`) is instead the left side of a product that is then turned,
    `(W dy^T)^T`: of the right side of 64 rows XLA makes a copy in another order, each time.
    """
    if one_cpu() and kernel.size >= WIDE:
        return _of_real_rows(_turned, gradient, kernel, real)
    return _of_real_rows(jnp.matmul, gradient, laid_out(kernel.T), real)


def _turned(gradient: Array, kernel: Array) -> jax.Array:
    return apart(kernel @ gradient.T).T  # else XLA exchanges the sides again


def _of_real_rows(product: _Product, rows: Array, kernel: Array, real: Array | None) -> jax.Array:
    if real is None or not large(rows.shape[0], kernel.size):
        return product(rows, kernel)
    return _row_by_row(product, rows, kernel, real)


def large(number: int, size: int) -> bool:
    """Whether products of so many rows (a number, or a name in jax.export) and such a kernel are large on a CPU."""
    return one_cpu() and isinstance(number, int) and number * size >= LEAST


@jax.custom_vjp
def _packed(rows: Array, kernel: Array, real: Array) -> jax.Array:
    return _row_by_row(jnp.matmul, rows, kernel, real)


def _forward(rows: Array, kernel: Array, real: Array) -> tuple[jax.Array, Any]:
    return _row_by_row(jnp.matmul, rows, kernel, real), (rows, kernel, real)


def _backward(kept: Any, gradient: Array) -> tuple[Array, Array, None]:
    rows, kernel, real = kept
    by_rows, by_kernel = _by_both(rows, kernel, gradient, real)
    return by_rows.astype(rows.dtype), by_kernel.astype(kernel.dtype), None


_packed.defvjp(_forward, _backward)


@partial(jax.jit, static_argnums=0)  # traced once for all products of a size, as is the other
def _row_by_row(product: _Product, rows: Array, kernel: Array, real: Array) -> jax.Array:
    """A product of the real rows; what stands in others means nothing."""
    packing = _pack(real)

    def of_first(size: int) -> jax.Array:
        return _back(product(_take(rows, packing.places[:size]), kernel), packing)

    return _switch(packing, of_first, lambda: product(rows, kernel))


@jax.jit
def _by_both(rows: Array, kernel: Array, gradient: Array, real: Array) -> tuple[jax.Array, jax.Array]:
    """`dy W^T` and `x^T dy`, by rows and by kernel; dy is zero in rows that are not real.

    In one switch: what an optimizer makes of the second, it can then write over W, which the first has read.
    """
    packing = _pack(real)

    def of_first(size: int) -> tuple[jax.Array, jax.Array]:
        x, dy = (_take(array, packing.places[:size]) for array in (rows, gradient))
        return _back(dy @ kernel.T, packing), _by_kernel(x, dy)

    return _switch(packing, of_first, lambda: (gradient @ kernel.T, _by_kernel(rows, gradient)))


def _by_kernel(rows: Array, gradient: Array) -> jax.Array:
    """`x^T dy`, the gradient of `x W` by W; see `widens`."""
    return (laid_out(rows.T) if widens(rows, gradient.shape[1]) else rows.T) @ gradient


def widens(rows: Array, width: int) -> bool:
    """Whether a product makes many rows much wider, on one CPU.

    Its gradient by the kernel is then better formed from x^T as an array of its own: XLA:CPU has slower products for a
    side whose rows are summed over.
    """
    number, size = rows.shape
    return width >= 2 * size and large(number, size * width) and number >= MANY


def _switch(packing: _Packing, of_first: Callable[[int], Any], of_all: Callable[[], Any]) -> Any:
    sizes = _sizes(len(packing.places))
    return jax.lax.switch(packing.choice, [*(partial(of_first, size) for size in sizes[:-1]), of_all])


def _take(rows: Array, places: Array) -> jax.Array:
    return jnp.take(rows, places, axis=0, mode="clip")


def _back(rows: Array, packing: _Packing) -> jax.Array:
    """The first rows in their places; in all others the last: of fewer than all it is not real, its gradient zero."""
    return jnp.take(rows, packing.spots, axis=0, mode="clip")


def _sizes(number: int) -> list[int]:
    return sorted({min(number, -(-number * share // (16 * MULTIPLE)) * MULTIPLE) for share in SIXTEENTHS})


def _pack(real: Array) -> _Packing:
    places, spots, count = real_first(real, len(real))
    choice = sum(jnp.int32(count >= size) for size in _sizes(len(real))[:-1])
    return _Packing(places, spots, for_the_fullest(jnp.asarray(choice)))


def real_first(real: Array, room: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows in an order that begins with the real ones: their numbers, filled up with zeros, [room]; where each row is
    among these, [n]; how many are real."""
    at, count = jnp.arange(len(real), dtype=jnp.int32), jnp.sum(real, dtype=jnp.int32)
    before = jnp.cumsum(real, dtype=jnp.int32) - real  # real ones
    spots = jnp.where(real, before, count + at - before)
    return jnp.zeros(room, jnp.int32).at[spots].set(at, unique_indices=True), spots, count


@custom_vmap
def for_the_fullest(choice: Array) -> Array:
    """The choice; under `vmap` the largest, for all examples: for choices of their own they would compute all sizes."""
    return choice


@for_the_fullest.def_vmap
def _of_all(size: int, mapped: Any, choice: Array) -> tuple[Array, bool]:
    return for_the_fullest(jnp.max(choice, initial=0)), False

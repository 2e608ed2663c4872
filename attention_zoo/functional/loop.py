"""A `lax.scan` that forms the gradients of its weights after the loop, in one product each.

The gradient of a scan adds to the gradient of every weight in every step: for a recurrent layer that is a thin
product and a read and write of the whole matrix, T times. But a step's share of `y_t = op(x_t, W)` needs only x_t
and dy_t, so those are collected, and one `op` over all steps gives the sum.

For its gradient the scan keeps what each step began with and what its products gave, and computes the rest of a step
once more. Gradients are written where that was read. JAX's own scan collects results in arrays of zeros, which
XLA shares among loops and copies for each, long before it needs them (docs/DESIGN.md, what prototypes measured).
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jax.tree_util import Partial

from attention_zoo.functional.arrays import (
    as_array,
    blank,
    combine,
    differentiable,
    partition,
    stacked,
    unstacked,
    weak,
    written,
)
from attention_zoo.notation import Array

Operation = Callable[[jax.Array, jax.Array], jax.Array]
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class _Use(NamedTuple):
    """A product in a step, and of which constant."""

    operation: Operation
    join: Callable[[jax.Array], jax.Array]
    leaf: int


class _Tape(NamedTuple):
    """While one step is traced: its constants by identity and for products alone, what was used so far, and what the
    products gave when they were computed, where they are not to be computed again."""

    leaves: dict[int, int]
    constants: list[jax.Array]
    uses: list[_Use]
    inputs: list[jax.Array]
    outputs: list[jax.Array]
    recalled: Sequence[jax.Array] | None


_tape: ContextVar[_Tape | None] = ContextVar("tape", default=None)


def product(operation: Operation, inputs: Array, constant: Array, *, join: Callable[[Array], Array]) -> jax.Array:
    """`operation(inputs, constant)`, linear in both; inside `scan` its gradient by the constant waits for the end.

    Args:
        operation: such as a matrix product.
        inputs: x_t.
        constant: W; where it is not one of the scan's own constants, this is the plain operation.
        join: turns the stacked steps [T, ...] of x, and of y, into one x and one y of the same operation.

    Not inside a transformation that the step itself starts (`vmap`, `checkpoint`, `cond`) around a constant of the
    scan: what is collected there would leak out of it, and JAX raises UnexpectedTracerError.
    """
    tape = _tape.get()
    if tape is None or id(constant) not in tape.leaves:
        return operation(inputs, constant)
    leaf = tape.leaves[id(constant)]
    if tape.recalled is None:
        outputs = operation(inputs, tape.constants[leaf])
    else:
        outputs = _recalled(operation, inputs, tape.constants[leaf], tape.recalled[len(tape.outputs)])
    tape.uses.append(_Use(operation, join, leaf))
    tape.inputs.append(inputs)
    tape.outputs.append(outputs)
    return outputs


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recalled(operation: Operation, inputs: jax.Array, constant: jax.Array, outputs: jax.Array) -> jax.Array:
    """`operation(inputs, constant)`, which is known; its gradient by the constant waits."""
    return outputs


def _recalled_backward(operation: Operation, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> Any:
    inputs, constant = kept
    if not differentiable(inputs):
        return None, None, gradient
    (by_inputs,) = jax.linear_transpose(lambda inputs: operation(inputs, constant), inputs)(gradient)
    return by_inputs, None, gradient


_recalled.defvjp(lambda _, inputs, constant, outputs: (outputs, (inputs, constant)), _recalled_backward)


def project(inputs: Array, kernel: Array, bias: Array | None = None) -> jax.Array:
    """`x W + b` over the last axis of [..., I], with all leading axes flattened into one.

    On some CPUs a product that contracts several axes leaves XLA's fast path, and that is what the gradient of W
    does to inputs [B, T, I] (docs/DESIGN.md, what prototypes measured).
    """
    flat = product(jnp.matmul, inputs.reshape(-1, inputs.shape[-1]), kernel, join=_as_rows)
    return (flat if bias is None else flat + bias[None]).reshape(*inputs.shape[:-1], kernel.shape[-1])


def join_queries(steps: Array) -> Array:
    """Steps stacked in front, [N, ..., T, W], as more queries: [..., N T, W]. For products with keys or values."""
    return jnp.moveaxis(steps, 0, -3).reshape(*steps.shape[1:-2], -1, steps.shape[-1])


def _as_rows(steps: Array) -> Array:
    return steps.reshape(-1, steps.shape[-1])


def scan(step: Step, constants: Any, carry: Any, xs: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan` of `step(constants, carry, x) -> (carry, y)`, equal in value and gradient.

    Gradients of constants used through `product` are formed after the loop; other uses are differentiated as
    always. Its gradient computes each step once more, but for the products. Reverse mode only (`jax.grad`,
    `jax.vjp`), as with any `jax.custom_vjp`; in `jax.shard_map` with `check_vma=False`.

    Args:
        step: a pure function that closes over no traced array.
        constants: what every step reads: a pytree of weights and of the sequence's own arrays.
        carry, xs, reverse: as in `jax.lax.scan`.
    """
    constants, carry, xs = jax.tree.map(as_array, (constants, carry, xs))
    if any(map(weak, jax.tree.leaves(carry))):  # numbers of Python take the dtype that a step gives them
        after, _ = jax.eval_shape(_one(step), constants, carry, jax.tree.map(unstacked, xs))
        carry = jax.tree.map(lambda leaf, new: leaf.astype(new.dtype) if weak(leaf) else leaf, carry, after)
    run = jax.custom_vjp(partial(_plain, step, reverse))
    run.defvjp(partial(_forward, step, reverse), lambda pull_back, gradients: pull_back(gradients))
    return run(constants, carry, xs)


def _plain(step: Step, reverse: bool, constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    return jax.lax.scan(partial(_one(step), constants), carry, xs, reverse=reverse)


def _one(step: Step) -> Step:
    """The step outside of a tape, which may be that of a loop around this one."""

    def run(constants: Any, carry: Any, x: Any) -> tuple[Any, Any]:
        token = _tape.set(None)
        try:
            return step(constants, carry, x)
        finally:
            _tape.reset(token)

    return run


def _forward(step: Step, reverse: bool, constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    length = len(jax.tree.leaves(xs)[0])
    if not length:
        return jax.vjp(partial(_plain, step, reverse), constants, carry, xs)
    uses: list[_Use] = []
    tape = jax.make_jaxpr(partial(_taped, step, uses), return_shape=True)
    traced, given = tape(constants, constants, carry, jax.tree.map(unstacked, xs))
    run, structure = jaxpr_as_fun(traced), jax.tree.structure(given)

    def body(loop: Any, inputs: Any) -> Any:
        (carry, arrays), (n, x) = loop, inputs
        after, y, outputs = jax.tree.unflatten(structure, run(*jax.tree.leaves((constants, constants, carry, x))))
        now, rest = partition((carry, y, outputs))
        return (after, written(arrays, n, now)), rest

    empty = blank(stacked(length, partition((carry, *given[1:]))[0]), (xs, carry))
    (carry, arrays), rest = jax.lax.scan(body, (carry, empty), (jnp.arange(length), xs), reverse=reverse)
    befores, ys, outputs = combine(arrays, rest)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    read = _read(traced, len(jax.tree.leaves(constants)))
    pull_back = partial(_backward, step, reverse, tuple(uses), read, precision)
    return (carry, ys), Partial(pull_back, constants, xs, befores, outputs)


def _taped(step: Step, uses: list[_Use], direct: Any, constants: Any, carry: Any, x: Any) -> Any:
    carry, y, tape = _run(step, direct, constants, carry, x)
    uses.extend(tape.uses)
    return carry, y, tape.outputs


def _run(
    step: Step, direct: Any, constants: Any, carry: Any, x: Any, recalled: Sequence[jax.Array] | None = None
) -> tuple[Any, Any, _Tape]:
    """One step with a tape on: its products read `constants`, and all else of it reads `direct`, which is the same."""
    leaves = {id(leaf): n for n, leaf in enumerate(jax.tree.leaves(direct))}
    tape = _Tape(leaves, jax.tree.leaves(constants), [], [], [], recalled)
    token = _tape.set(tape)
    try:
        carry, y = jax.tree.map(as_array, step(direct, carry, x))
    finally:
        _tape.reset(token)
    return carry, y, tape


def _backward(
    step: Step, reverse: bool, uses: tuple[_Use, ...], read: tuple[bool, ...], precision: Any, *kept: Any
) -> tuple[Any, Any, Any]:
    with jax.default_matmul_precision(precision):  # as going forward
        return _gradients(step, reverse, uses, read, *kept)


def _gradients(
    step: Step,
    reverse: bool,
    uses: tuple[_Use, ...],
    read: tuple[bool, ...],
    constants: Any,
    xs: Any,
    befores: Any,
    outputs: list[jax.Array],
    gradients: Any,
) -> tuple[Any, Any, Any]:
    (d_carry, _), (d_ys, _) = map(partition, gradients)
    (some, others), (x_arrays, x_rest) = partition(constants), partition(xs)
    length = len(jax.tree.leaves(xs)[0])
    sliced = jax.tree.map(unstacked, (befores, xs, outputs))
    traced, given = jax.make_jaxpr(partial(_recall, step), return_shape=True)(constants, constants, *sliced)
    run, structure = jaxpr_as_fun(traced), jax.tree.structure(given)
    inputs = blank(stacked(length, given[2]), outputs)
    leaves = jax.tree.leaves(constants)
    summed = [used for used, leaf in zip(read, leaves, strict=True) if differentiable(leaf)]

    def body(loop: Any, sliced: Any) -> Any:
        (d_carry, sums, arrays), (n, before, rest, d_y) = loop, sliced
        carry, carry_rest = partition(before)
        x, outputs = (jax.tree.map(lambda array: array[n], tree) for tree in arrays[:2])

        def again(some: Any, carry: Any, x: Any, outputs: list[jax.Array]) -> Any:
            told = combine(some, others), constants, combine(carry, carry_rest), combine(x, rest), outputs
            after, y, inputs = jax.tree.unflatten(structure, run(*jax.tree.leaves(told)))
            return (partition(after)[0], partition(y)[0]), inputs

        _, pull_back, inputs = jax.vjp(again, some, carry, x, outputs, has_aux=True)
        d_some, d_carry, d_x, d_outputs = pull_back((d_carry, d_y))
        sums = jax.tree.map(jnp.add, sums, only_read(d_some))
        return (d_carry, sums, written(arrays, n, (d_x, d_outputs, inputs))), None

    def only_read(tree: Any) -> list[jax.Array]:
        return [leaf for leaf, used in zip(jax.tree.leaves(tree), summed, strict=True) if used]

    start = d_carry, [jnp.zeros_like(leaf) for leaf in only_read(some)], (x_arrays, outputs, inputs)
    steps = jnp.arange(length), befores, x_rest, d_ys
    (d_carry, sums, (d_xs, d_outputs, inputs)), _ = jax.lax.scan(body, start, steps, reverse=not reverse)
    found = iter(sums)
    d_leaves: list[Any] = [
        next(found) if used and differentiable(leaf) else None for used, leaf in zip(read, leaves, strict=True)
    ]
    for use, x, d_y in zip(uses, inputs, d_outputs, strict=True):
        _, by_constant = jax.vjp(partial(use.operation, use.join(x)), leaves[use.leaf])
        (share,) = by_constant(use.join(d_y))
        d_leaves[use.leaf] = share if d_leaves[use.leaf] is None else d_leaves[use.leaf] + share
    return jax.tree.unflatten(jax.tree.structure(constants), d_leaves), d_carry, d_xs


def _recall(step: Step, direct: Any, constants: Any, carry: Any, x: Any, outputs: list[jax.Array]) -> Any:
    """One step again, its products known: its results, and what the products read."""
    carry, y, tape = _run(step, direct, constants, carry, x, outputs)
    assert len(tape.outputs) == len(outputs)  # a step is pure
    return carry, y, tape.inputs


def _read(traced: Any, number: int) -> tuple[bool, ...]:
    """Which of a program's first arguments it reads."""
    read = {id(variable) for equation in traced.eqns for variable in equation.invars}
    read |= {id(variable) for variable in traced.jaxpr.outvars}
    return tuple(id(variable) in read for variable in traced.jaxpr.invars[:number])

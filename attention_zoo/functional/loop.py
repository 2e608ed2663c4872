"""A `lax.scan` that forms the gradients of its weights after the loop, in one product each.

The gradient of a scan adds to the gradient of every weight in every step: for a recurrent layer that is a thin
product and a read and write of the whole matrix, T times. But a step's share of `y_t = op(x_t, W)` needs only x_t
and dy_t, so those are collected, and one `op` over all steps gives the sum.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from attention_zoo.notation import Array

Operation = Callable[[jax.Array, jax.Array], jax.Array]
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class _Use(NamedTuple):
    operation: Operation
    join: Callable[[jax.Array], jax.Array]
    leaf: int


class _Tape(NamedTuple):
    """While one step is traced: its constants by identity, what was used so far, and what to add to each product."""

    leaves: dict[int, int]
    uses: list[_Use]
    inputs: list[jax.Array]
    outputs: list[jax.Array]
    probes: list[jax.Array] | None


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
    outputs = operation(inputs, jax.lax.stop_gradient(constant))
    tape.uses.append(_Use(operation, join, tape.leaves[id(constant)]))
    tape.inputs.append(inputs)
    tape.outputs.append(outputs)
    return outputs if tape.probes is None else _probed(outputs, tape.probes[len(tape.inputs) - 1])


@jax.custom_vjp
def _probed(outputs: jax.Array, probe: jax.Array) -> jax.Array:
    """`outputs + probe` for a probe of zeros, which is there for its gradient alone and is never read."""
    return outputs


_probed.defvjp(lambda outputs, probe: (outputs, None), lambda _, gradient: (gradient, gradient))


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
    always. Reverse mode only (`jax.grad`, `jax.vjp`), as with any `jax.custom_vjp`.

    Args:
        step: a pure function that closes over no traced array.
        constants: what every step reads: a pytree of weights and of the sequence's own arrays.
        carry, xs, reverse: as in `jax.lax.scan`.
    """
    run = jax.custom_vjp(partial(_plain, step, reverse))
    run.defvjp(partial(_forward, step, reverse), lambda pull_back, gradients: pull_back(gradients))
    return run(constants, carry, xs)


def _plain(step: Step, reverse: bool, constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    return jax.lax.scan(partial(step, constants), carry, xs, reverse=reverse)


def _forward(step: Step, reverse: bool, constants: Any, carry: Any, xs: Any) -> tuple[Any, Partial]:
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    uses: list[_Use] = []
    products = jax.eval_shape(partial(_taped, step, uses), constants, carry, one, None)[1][2]
    length = jax.tree.leaves(xs)[0].shape[0]
    probes = [jnp.zeros((length, *output.shape), output.dtype) for output in products]

    def run(constants: Any, carry: Any, xs: Any, probes: list[jax.Array]) -> Any:
        def body(carry: Any, inputs: Any) -> Any:
            carry, (y, products, _) = _taped(step, [], constants, carry, *inputs)
            return carry, (y, products)

        carry, (ys, inputs) = jax.lax.scan(body, carry, (xs, probes), reverse=reverse)
        return (carry, ys), inputs

    outputs, pull_back, inputs = jax.vjp(run, constants, carry, xs, probes, has_aux=True)
    used = [jax.tree.leaves(constants)[use.leaf] for use in uses]
    return outputs, Partial(partial(_backward, tuple(uses)), pull_back, inputs, used)


def _taped(step: Step, uses: list[_Use], constants: Any, carry: Any, x: Any, probes: list[jax.Array] | None) -> Any:
    """One step with a tape on: its results, and the inputs and outputs of its products."""
    # Constants that are no tracers yet become tracers now, not in the step, where they would lose their identity.
    constants = jax.tree.map(jnp.asarray, constants)
    tape = _Tape({id(leaf): n for n, leaf in enumerate(jax.tree.leaves(constants))}, uses, [], [], probes)
    token = _tape.set(tape)
    try:
        carry, y = step(constants, carry, x)
    finally:
        _tape.reset(token)
    return carry, (y, tape.inputs, tape.outputs)


def _backward(uses: tuple[_Use, ...], pull_back: Any, inputs: list[Any], used: list[Any], gradients: Any) -> Any:
    d_constants, d_carry, d_xs, d_probes = pull_back(gradients)
    leaves, structure = jax.tree.flatten(d_constants)
    for use, x, constant, d_y in zip(uses, inputs, used, d_probes, strict=True):
        _, by_constant = jax.vjp(partial(use.operation, use.join(x)), constant)
        leaves[use.leaf] += by_constant(use.join(d_y))[0]
    return jax.tree.unflatten(structure, leaves), d_carry, d_xs

"""Products whose gradients by their constants wait: inside `loop.scan` they are formed after the loop, all at once.

A step's share of the gradient of `y_t = op(x_t, W)` needs only x_t and dy_t. While a step is traced a tape notes its
products; outside of a scan they are the plain operations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention_zoo.functional.arrays import apart, differentiable, laid_out, varying
from attention_zoo.functional.rows import large, matmul, real_rows_matmul, transposed_matmul, widens
from attention_zoo.notation import Array

Operation = Callable[..., jax.Array]


class Activation(NamedTuple):
    """A function of each number in its place, of the same dtype, and its derivative by its result."""

    function: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]


class Use(NamedTuple):
    """A product in a step, and of which constant."""

    operation: Operation
    join: Callable[[jax.Array], jax.Array]
    leaf: int


class Tape(NamedTuple):
    """While one step is traced: its constants by identity and for products alone, what was used so far, and what the
    products gave when they were computed, where they are not to be computed again."""

    leaves: dict[int, int]
    constants: list[jax.Array]
    uses: list[Use]
    inputs: list[tuple[jax.Array, ...]]
    outputs: list[jax.Array]
    recalled: Sequence[jax.Array] | None


_tape: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def taping(tape: Tape | None) -> Iterator[Tape | None]:
    """Notes products on this tape; with None on no tape, as outside of a scan."""
    token = _tape.set(tape)
    try:
        yield tape
    finally:
        _tape.reset(token)


def recalling() -> bool:
    """Whether a step of `scan` is computed once more for its gradient, which is taken at once and in reverse."""
    tape = _tape.get()
    return tape is not None and tape.recalled is not None


def product(
    operation: Operation,
    inputs: Array,
    constant: Array,
    *others: Array,
    join: Callable[[Array], Array],
    plus: Array | None = None,
    then: Activation | None = None,
    inside: Operation | None = None,
    back: Operation | None = None,
) -> jax.Array:
    """`operation(inputs, constant, *others)`, linear in two; inside `scan` its gradient by the constant waits.

    Args:
        operation: such as a matrix product.
        inputs: x_t.
        constant: W; where it is not one of the scan's own constants, this is the plain operation.
        others: what else it takes, without a gradient.
        join: turns the stacked steps [T, ...] of x, of y and of the others into one each, of the same operation.
        plus: is added to y. `scan` then keeps the sum alone.
        then: is taken of y or of the sum. `scan` then keeps what that gives alone.
        inside: what computes it in `scan`, which differentiates it by itself: the operation, without a gradient of its
            own where it has one.
        back: of dy, W and the others gives dx, as the operation's transpose does by default.

    Raises:
        ValueError: `plus` has not the shape and the dtype of y.

    Not inside a transformation that the step itself starts (`vmap`, `checkpoint`, `cond`) around a constant of the
    scan: what is collected there would leak out of it, and JAX raises UnexpectedTracerError.
    """
    tape = _tape.get()
    if tape is None or id(constant) not in tape.leaves:
        return _end(operation(inputs, constant, *others), plus, then)
    leaf = tape.leaves[id(constant)]
    if tape.recalled is None:
        outputs = _end((inside or operation)(inputs, tape.constants[leaf], *others), plus, then)
    else:
        known = tape.recalled[len(tape.outputs)]
        back = back or partial(_transposed, operation, jax.typeof(inputs))
        outputs = _recalled(back, then, *varying(inputs, tape.constants[leaf], others, plus, known))
    tape.uses.append(Use(operation, join, leaf))
    tape.inputs.append((inputs, *others))
    tape.outputs.append(outputs)
    return outputs


def _end(outputs: jax.Array, plus: Array | None, then: Activation | None) -> jax.Array:
    """Of what an operation gave: with what is added to it, and what is taken of that."""
    if plus is not None:
        if (plus.shape, plus.dtype) != (outputs.shape, outputs.dtype):
            raise ValueError(
                f"what is added to a product has its shape and dtype, {outputs.dtype}{list(outputs.shape)}; "
                f"got {plus.dtype}{list(plus.shape)}"
            )
        outputs = outputs + plus
    if then is not None:
        outputs = then.function(outputs)
    return outputs if plus is None and then is None else apart(outputs)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recalled(
    back: Operation, then: Activation | None, inputs: Array, constant: Array, others: Any, plus: Array | None,
    outputs: Array,
) -> Array:  # fmt: skip
    """A product with what comes after it, which is known; its gradient by the constant waits."""
    return outputs


def _recalled_forward(
    back: Operation, then: Activation | None, inputs: Array, constant: Array, others: Any, plus: Array | None,
    outputs: Array,
) -> tuple[Array, Any]:  # fmt: skip
    summed = plus is not None
    kept = inputs, constant, others, () if summed else None, None if then is None else outputs
    return outputs if plus is None and then is None else apart(outputs), kept


def _recalled_backward(back: Operation, then: Activation | None, kept: Any, gradient: jax.Array) -> Any:
    inputs, constant, others, summed, outputs = kept
    if then is not None:
        gradient = gradient * then.slope(outputs)
    by_plus = None if summed is None else gradient
    if not differentiable(inputs):
        return None, None, None, by_plus, gradient
    return back(gradient, constant, *others).astype(inputs.dtype), None, None, by_plus, gradient


_recalled.defvjp(_recalled_forward, _recalled_backward)


def _transposed(operation: Operation, inputs: Any, gradient: Array, constant: Array, *others: Array) -> jax.Array:
    of_inputs = lambda inputs: operation(inputs, constant, *others)  # noqa: E731
    (by_inputs,) = jax.linear_transpose(of_inputs, inputs)(gradient)
    return by_inputs


def project(
    inputs: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    plus: Array | None = None,
    then: Activation | None = None,
    real: Array | None = None,
) -> jax.Array:
    """`x W + b` over the last axis of [..., I], with all leading axes flattened into one; and `plus`, [..., O].

    Of `x W + plus`, without a bias, `then` may be taken (see `product`). Where not all rows are `real`, [...], the
    results of others are not to be read (`rows.real_rows_matmul`).

    On some CPUs a product that contracts several axes leaves XLA's fast path, and that is what the gradient of W
    does to inputs [B, T, I] (docs/DESIGN.md, what prototypes measured).

    Raises:
        ValueError: `plus` has not the shape and the dtype of the result, or there are a bias and `then`.
    """
    if bias is not None and then is not None:
        raise ValueError("what is taken of a product is taken without a bias: add that to `plus`")
    rows = inputs.reshape(-1, inputs.shape[-1])
    if plus is not None and plus.shape[:-1] == inputs.shape[:-1]:
        plus = plus.reshape(-1, plus.shape[-1])
    options: Any = {"join": _as_rows, "plus": plus, "then": then, "back": transposed_matmul}
    if real is None:
        flat = product(_matmul, rows, kernel, inside=jnp.matmul, **options)
    else:
        flat = product(real_rows_matmul, rows, kernel, real.reshape(-1), inside=matmul, **options)
    return (flat if bias is None else flat + bias[None]).reshape(*inputs.shape[:-1], kernel.shape[-1])


def _matmul(rows: Array, kernel: Array) -> jax.Array:
    """`x W`; of a large W on one CPU, that makes rows much narrower or wider, with a faster gradient of W."""
    size, width = kernel.shape
    if rows.dtype == kernel.dtype and widens(rows, width):
        return _widening(rows, kernel)
    if rows.dtype == kernel.dtype and size >= 2 * width and large(rows.shape[0], kernel.size):
        return _narrowing(rows, kernel)
    return rows @ kernel


@jax.custom_jvp
def _narrowing(rows: Array, kernel: Array) -> jax.Array:
    return rows @ kernel


@_narrowing.defjvp
def _narrowing_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[jax.Array, jax.Array]:
    """By W the product is one with W^T, an array of its own, so that going back gives `dy^T x` and turns that.

    XLA:CPU computes this faster than `x^T dy`.
    """
    (rows, kernel), (d_rows, d_kernel) = primals, tangents
    by_kernel = jax.lax.dot_general(rows, jax.lax.optimization_barrier(d_kernel.T), (((1,), (1,)), ((), ())))
    return _narrowing(rows, kernel), d_rows @ kernel + by_kernel


@jax.custom_jvp
def _widening(rows: Array, kernel: Array) -> jax.Array:
    return rows @ kernel


@_widening.defjvp
def _widening_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[jax.Array, jax.Array]:
    """By W the product is one of x^T, an array of its own, so that going back gives that times dy (`rows.widens`)."""
    (rows, kernel), (d_rows, d_kernel) = primals, tangents
    by_kernel = jax.lax.dot_general(laid_out(rows.T), d_kernel, (((0,), (0,)), ((), ())))
    return _widening(rows, kernel), d_rows @ kernel + by_kernel


def join_queries(steps: Array) -> Array:
    """Steps stacked in front, [N, ..., T, W], as more queries: [..., N T, W]. For products with keys or values."""
    queries = steps.shape[0] * steps.shape[-2]
    return jnp.moveaxis(steps, 0, -3).reshape(*steps.shape[1:-2], queries, steps.shape[-1])


def _as_rows(steps: Array) -> Array:
    return steps.reshape(-1, *steps.shape[2:])

"""LSTM and GRU over time, with lengths: a finished sequence keeps its state and gives zeros.

The input projections of all steps are one matrix product before the scan, on inputs flattened to two axes;
the gradient of the recurrent weights is one matrix product after it, instead of a sum carried through every
step. (docs/DESIGN.md has what prototypes measured; the gain differs from one CPU to another.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from attention_zoo.functional.arrays import apart, stays_apart
from attention_zoo.functional.gates import LSTM
from attention_zoo.functional.loop import scan
from attention_zoo.functional.masks import alive
from attention_zoo.functional.products import project
from attention_zoo.notation import Array, Float, Int, checked


class RecurrentWeights(NamedTuple):
    """What a recurrent layer learns, G = 4D for an LSTM (gates i, f, g, o), 3D for a GRU (gates r, z, n).

    input: [I, G]; recurrent: [D, G]; bias: [G]; recurrent_bias: [G] or None, which a GRU that resets after its
    recurrent product keeps apart, because its reset gate scales it.
    """

    input: jax.Array
    recurrent: jax.Array
    bias: jax.Array
    recurrent_bias: jax.Array | None = None


class LSTMState(NamedTuple):
    """State of an LSTM: hidden h [..., D], which is also its output, and memory c [..., D]."""

    hidden: jax.Array
    memory: jax.Array


class GRUState(NamedTuple):
    """State of a GRU: hidden h [..., D], which is also its output."""

    hidden: jax.Array


State: TypeAlias = LSTMState | GRUState
Cell: TypeAlias = Callable[[jax.Array, jax.Array, Any], Any]
Kernel: TypeAlias = Array | tuple[Array, Array]  # two: of `gru_reset_before_cell`


@checked
def lstm_cell(inputs: Float[Array, "*b G"], recurrent: Float[Array, "*b G"], state: LSTMState) -> LSTMState:
    """One LSTM step, `c = s(f) c' + s(i) tanh(g)`, `h = s(o) tanh(c)` (Hochreiter 1997; Gers 2000's forget gate).

    Args:
        inputs: `W x + b`, gates in the order i, f, g, o, [..., 4D].
        recurrent: `U h'`, [..., 4D].
        state: h' and c'.
    """
    return _lstm(LSTM.function(inputs + recurrent), state)


def _lstm(gates: Array, state: Any) -> LSTMState:
    """The state after the gates i, f, g, o, which `gates.LSTM` made, [..., 4D]."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    memory = f * state.memory + i * g
    return LSTMState(o * jnp.tanh(memory), memory)


@checked
def gru_cell(inputs: Float[Array, "*b G"], recurrent: Float[Array, "*b G"], state: GRUState) -> GRUState:
    """One GRU step, `h = (1 - z) n + z h'` with `n = tanh(W_n x + b_n + r (U_n h' + c_n))` (Cho 2014).

    The reset gate acts after the recurrent product, as in cuDNN, PyTorch and Keras (`reset_after`); Cho's
    first version, `gru_reset_before_cell`, applies it before.

    Args:
        inputs: `W x + b`, gates in the order r, z, n, [..., 3D].
        recurrent: `U h' + c`, [..., 3D].
        state: h'.
    """
    input_r, input_z, input_n = jnp.split(inputs, 3, axis=-1)
    hidden_r, hidden_z, hidden_n = jnp.split(recurrent, 3, axis=-1)
    update = jax.nn.sigmoid(input_z + hidden_z)
    candidate = jnp.tanh(input_n + jax.nn.sigmoid(input_r + hidden_r) * hidden_n)
    return GRUState((1 - update) * candidate + update * state.hidden)


@checked
def gru_reset_before_cell(inputs: Float[Array, "*b G"], recurrent: Float[Array, "*b G"], state: GRUState) -> GRUState:
    """One GRU step as first written, `h = (1 - z) n + z h'` with `n = tanh(W_n x + U_n (r h'))` (Cho 2014, eq. 5 - 8).

    In Bahdanau 2014, A.1.1, z and 1 - z have each other's places, which changes the sign of what z learns.

    Args:
        inputs: `W x + b`, gates in the order r, z, n, [..., 3D].
        recurrent: what `recurrent_product` makes, [..., 3D].
        state: h'.
    """
    _, input_z, input_n = jnp.split(inputs, 3, axis=-1)
    _, hidden_z, hidden_n = jnp.split(recurrent, 3, axis=-1)
    update = jax.nn.sigmoid(input_z + hidden_z)
    return GRUState((1 - update) * jnp.tanh(input_n + hidden_n) + update * state.hidden)


def recurrent_product(
    inputs: Array, hidden: Array, kernel: Kernel, bias: Array | None, real: Array | None = None
) -> jax.Array:
    """What a cell reads of the last hidden state, `U h' + c`, [..., G].

    For `gru_reset_before_cell` the last third is `U_n (r h') + c_n`: its kernel is two, both gates' [D, 2D] and U_n
    [D, D], and the reset gate r also needs the inputs. The bias is taken in the kernel's dtype; where its own is wider,
    a loop sums its gradient in that.

    Args:
        inputs: `W x + b`, [..., G].
        hidden: h', [..., D].
        kernel: U, [D, G], or the two.
        bias: c, [G].
        real: rows whose results are read, [...]; all by default.
    """
    bias = None if bias is None else bias.astype(jax.tree.leaves(kernel)[0].dtype)
    if not isinstance(kernel, tuple):
        return project(hidden, kernel, bias, real=real)
    both, candidate = (None, None) if bias is None else (bias[: 2 * hidden.shape[-1]], bias[2 * hidden.shape[-1] :])
    gates = project(hidden, kernel[0], both, real=real)
    reset = jax.nn.sigmoid(jnp.split(inputs, 3, axis=-1)[0] + jnp.split(gates, 2, axis=-1)[0])
    return jnp.concatenate([gates, project(reset * hidden, kernel[1], candidate, real=real)], axis=-1)


def advance(
    cell: Cell, projected: Array, state: State, kernel: Kernel, bias: Array | None, *, real: Array | None = None
) -> State:
    """The state after one step: `cell(x, h' U + c, s')`, see `recurrent_product`.

    An LSTM knows the sum of both, or its gates: that is all that a loop then keeps (`products.product`).

    Args:
        cell: `lstm_cell`, `gru_cell` or `gru_reset_before_cell`.
        projected: `W x + b`, [..., G].
        state: s', whose hidden state is h' [..., D].
        kernel, bias: U and c, which an LSTM takes in the dtype of the projected input.
        real: rows whose state is read, [...]; all by default.
    """
    _check_rows(projected, *state)
    if cell is not lstm_cell or isinstance(kernel, tuple) or projected.dtype != jnp.result_type(state.hidden, kernel):
        return cell(apart(projected), recurrent_product(projected, state.hidden, kernel, bias, real), state)
    if bias is not None:
        projected = projected + jnp.broadcast_to(bias.astype(projected.dtype), projected.shape)
    # Of 16 bits they are too coarse for slopes; and where nothing stays apart, a CPU would copy all kept, step by step.
    if stays_apart() and projected.dtype.itemsize > 2:
        return _lstm(project(state.hidden, kernel, plus=projected, then=LSTM, real=real), state)
    return _lstm(LSTM.function(project(state.hidden, kernel, plus=projected, real=real)), state)


@checked
def lstm(
    inputs: Float[Array, "*b S I"],
    weights: RecurrentWeights,
    state: LSTMState | None = None,
    lengths: Int[Array, "*b"] | None = None,
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "*b S D"], LSTMState]:
    """An LSTM layer over whole sequences, by `lstm_cell`.

    Args:
        inputs: [..., S, I]; finite, also in padding.
        weights: gates in the order i, f, g, o.
        state: where to start; zeros by default.
        lengths: real steps of each sequence, [...]; all S by default.
        reverse: read from the last real step to the first.

    Returns:
        hidden states [..., S, D], zeros in padding, and the state after the last step read.
    """
    start = LSTMState(*[zeros(inputs, weights)] * 2) if state is None else state
    outputs, final = _layer(lstm_cell, inputs, weights, start, lengths, reverse)
    return outputs, LSTMState(*final)


@checked
def gru(
    inputs: Float[Array, "*b S I"],
    weights: RecurrentWeights,
    state: GRUState | None = None,
    lengths: Int[Array, "*b"] | None = None,
    *,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[Float[Array, "*b S D"], GRUState]:
    """A GRU layer over whole sequences, by `gru_cell` or, with `reset_after=False`, `gru_reset_before_cell`.

    Arguments and results are as in `lstm`.
    """
    start = GRUState(zeros(inputs, weights)) if state is None else state
    cell = gru_cell if reset_after else gru_reset_before_cell
    outputs, final = _layer(cell, inputs, weights, start, lengths, reverse)
    return outputs, GRUState(*final)


def zeros(inputs: Float[Array, "*b S I"], weights: RecurrentWeights) -> Float[Array, "*b D"]:
    """The hidden state before the first step, in the dtype of the inputs."""
    return jnp.zeros((*inputs.shape[:-2], weights.recurrent.shape[0]), jnp.result_type(inputs))


@checked
def recur(
    cell: Cell,
    projected: Float[Array, "S *b G"],
    recurrent: Float[Array, "D G"],
    recurrent_bias: Float[Array, " G"] | None,
    state: State,
    lengths: Int[Array, "*b"] | None = None,
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "S *b D"], State]:
    """The recurrence alone, time first: `s_t = cell(x_t, h_{t-1} U + c, s_{t-1})` over projected inputs x.

    (For `gru_reset_before_cell` see `recurrent_product`.)

    Args:
        cell: `lstm_cell`, `gru_cell` or `gru_reset_before_cell`.
        projected: inputs after their projection, `W x + b`, [S, ..., G].
        recurrent: U, [D, G].
        recurrent_bias: c, [G]; None for none.
        state: where to start.
        lengths: real steps of each sequence, [...]; all S by default.
        reverse: read from the last real step to the first.

    Returns:
        hidden states [S, ..., D], zeros in padding, and the state after the last step read.
    """
    _check_step(4 if isinstance(state, LSTMState) else 3, projected, recurrent, recurrent_bias, *state)
    real = alive(lengths, projected.shape[0])
    kernel: Any = recurrent
    if cell is gru_reset_before_cell:
        kernel = recurrent[:, : 2 * len(recurrent)], recurrent[:, 2 * len(recurrent) :]
    weights = kernel, recurrent_bias
    final, outputs = scan(partial(_step, cell), weights, state, (projected, real), reverse=reverse)
    return outputs, final


def _step(cell: Cell, weights: Any, before: State, inputs: tuple[Array, Array | None]) -> tuple[State, Array]:
    projected, real = inputs
    kernel, bias = weights
    after = advance(cell, projected, before, kernel, bias, real=real)
    if real is None:
        return after, after.hidden
    after = jax.tree.map(partial(jnp.where, real[..., None]), after, before)
    return after, jnp.where(real[..., None], after.hidden, 0)


def _layer(
    cell: Cell, inputs: Array, weights: RecurrentWeights, state: State, lengths: Array | None, reverse: bool
) -> tuple[Array, State]:
    _check_weights(inputs, *weights)
    biases: tuple[Array | None, Array | None] = weights.bias, weights.recurrent_bias
    if weights.recurrent_bias is None and cell is not gru_cell:
        biases = None, weights.bias  # only their sum counts, and in the loop it costs no pass over memory
    real = alive(lengths, inputs.shape[-2])
    projected = project(jnp.moveaxis(inputs, -2, 0), weights.input, biases[0], real=real)
    outputs, final = recur(cell, projected, weights.recurrent, biases[1], state, lengths, reverse=reverse)
    return jnp.moveaxis(outputs, 0, -2), final


@checked
def _check_weights(
    inputs: Float[Array, "*b S I"],
    input: Float[Array, "I G"],
    recurrent: Float[Array, "D G"],
    bias: Float[Array, " G"],
    recurrent_bias: Float[Array, " G"] | None,
) -> None:
    """The shapes inside a NamedTuple, which its annotation does not check."""


@checked
def _check_rows(
    projected: Float[Array, "*b G"], hidden: Float[Array, "*b D"], memory: Float[Array, "*b D"] | None = None
) -> None:
    """The rows of a step and of its state."""


@checked
def _check_step(
    gates: int,
    projected: Float[Array, "S *b G"],
    recurrent: Float[Array, "D {gates}*D"],
    recurrent_bias: Float[Array, " {gates}*D"] | None,
    hidden: Float[Array, "*b D"],
    memory: Float[Array, "*b D"] | None = None,
) -> None:
    """The shapes inside a state, and how many gates the weights of its cell have."""

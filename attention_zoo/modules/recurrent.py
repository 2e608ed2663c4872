"""Recurrent layers as modules, and stacked uni- and bidirectional encoders."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.masks import alive
from attention_zoo.functional.recurrent import (
    Cell,
    GRUState,
    LSTMState,
    State,
    advance,
    gru_cell,
    gru_reset_before_cell,
    lstm_cell,
    recur,
)
from attention_zoo.modules.dense import Dense
from attention_zoo.notation import Array, Float, Int, checked

CELLS: dict[str, tuple[Cell, type[State], int]] = {
    "lstm": (lstm_cell, LSTMState, 4),
    "gru": (gru_cell, GRUState, 3),
    "gru_reset_before": (gru_reset_before_cell, GRUState, 3),
}


class RecurrentLayer(nn.Module):
    """One LSTM or GRU layer; its three methods are the layer in parts, for decoders.

    units: D. cell: "lstm", "gru" or "gru_reset_before", Cho's first version. reverse: read from the last real step to
    the first. An LSTM's forget gate starts with bias 1 (Jozefowicz 2015).
    """

    units: int
    cell: str = "lstm"
    reverse: bool = False
    dtype: Dtype | None = None

    def setup(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell is one of {', '.join(CELLS)}; got {self.cell!r}")
        gates = CELLS[self.cell][2] * self.units
        # One bias is added in the loop, where that costs no pass over memory; a GRU that resets after keeps two.
        self.input = Dense(gates, use_bias=self.cell == "gru", dtype=self.dtype)
        apart = self.units if self.cell == "gru_reset_before" else 0
        self.recurrent = self.param("recurrent", nn.initializers.orthogonal(), (self.units, gates - apart))
        if apart:
            self.candidate = self.param("candidate", nn.initializers.orthogonal(), (self.units, self.units))
        bias_init = _forget_one if self.cell == "lstm" else nn.initializers.zeros
        self.recurrent_bias = self.param("recurrent_bias", bias_init, (gates,))

    def project(self, inputs: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """`W x`, and with "gru" `W x + b`, for any number of steps, [..., G]; real: those that are read, [...]."""
        return self.input(inputs, real)

    def step(self, projected: jax.Array, state: State, real: jax.Array | None = None) -> State:
        """One step from a projected input [..., G]; the state is in its dtype too. real: rows that are read, [...]."""
        return advance(CELLS[self.cell][0], projected, state, *self._recurrent(projected.dtype), real=real)

    @checked
    def run(
        self, projected: Float[Array, "S *b G"], state: State, lengths: Int[Array, "*b"] | None = None
    ) -> tuple[Float[jax.Array, "S *b D"], State]:
        """All steps from projected inputs, time first: outputs [S, ..., D] and the last state."""
        kernel, bias = self._recurrent(projected.dtype)
        kernel = jnp.concatenate(kernel, axis=1) if isinstance(kernel, tuple) else kernel
        state = jax.tree.map(lambda leaf: leaf.astype(projected.dtype), state)
        return recur(CELLS[self.cell][0], projected, kernel, bias, state, lengths, reverse=self.reverse)

    @checked
    def __call__(
        self, inputs: Float[Array, "S *b I"], lengths: Int[Array, "*b"] | None = None
    ) -> tuple[Float[jax.Array, "S *b D"], State]:
        """Inputs [S, ..., I], time first, from a state of zeros: outputs [S, ..., D] and the last state."""
        projected = self.project(inputs, alive(lengths, len(inputs)))
        return self.run(projected, self.zeros(projected.shape[1:-1], projected.dtype), lengths)

    def zeros(self, batch: tuple[int, ...], dtype: Dtype = jnp.float32) -> State:
        """The state of zeros for leading axes `batch`."""
        kind = CELLS[self.cell][1]
        return kind(*[jnp.zeros((*batch, self.units), dtype)] * len(kind._fields))

    def _recurrent(self, dtype: Dtype) -> tuple[Any, jax.Array]:
        kernel: Any = self.recurrent.astype(dtype)
        if self.cell == "gru_reset_before":
            kernel = kernel, self.candidate.astype(dtype)
        return kernel, self.recurrent_bias  # in float32, in which loops sum its gradient step by step


class RecurrentEncoder(nn.Module):
    """A stack of recurrent layers over the source, uni- or bidirectional (Schuster 1997; Bahdanau 2014, 3.2).

    units: D, of each direction. layers: how many. dropout: on the inputs of every layer but the first.
    residual: add a layer's input, as it was before dropout, to its output where the widths agree.
    """

    units: int
    layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = True
    dropout: float = 0.0
    residual: bool = False
    dtype: Dtype | None = None

    def setup(self) -> None:
        make = partial(RecurrentLayer, self.units, self.cell, dtype=self.dtype)
        self.forward_layers = [make() for _ in range(self.layers)]
        self.backward_layers = [make(reverse=True) for _ in range(self.layers)] if self.bidirectional else []
        self.drop = nn.Dropout(self.dropout)

    @checked
    def __call__(
        self, inputs: Float[Array, "*b S I"], lengths: Int[Array, "*b"], deterministic: bool = True
    ) -> tuple[Float[Array, "*b S V"], tuple[State, ...]]:
        """Reads sources of the given lengths.

        Returns:
            annotations [..., S, V], V = 2D when bidirectional (forward state first), zeros in padding; and the
            last state of each layer, both directions joined in the same way.
        """
        outputs, finals = jnp.moveaxis(inputs, -2, 0), []
        real: Any = alive(lengths, inputs.shape[-2])
        for number in range(self.layers):
            before = outputs
            dropped = self.drop(before, deterministic=deterministic) if number else before
            outputs, final = self._layer(number, dropped, lengths)
            if self.residual and outputs.shape == before.shape:
                outputs = outputs + jnp.where(real[..., None], before, 0).astype(outputs.dtype)
            finals.append(final)
        return jnp.moveaxis(outputs, 0, -2), tuple(finals)

    def _layer(self, number: int, inputs: jax.Array, lengths: jax.Array) -> tuple[jax.Array, State]:
        read = self.forward_layers[number](inputs, lengths)
        if not self.bidirectional:
            return read
        return jax.tree.map(
            lambda *both: jnp.concatenate(both, -1), read, self.backward_layers[number](inputs, lengths)
        )


def _forget_one(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """Gates i, f, g, o: one for f, zero for the others."""
    return jnp.repeat(jnp.array([0, 1, 0, 0], dtype), shape[0] // 4)

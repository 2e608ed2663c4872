"""The recurrent decoder, with attention or without; when the query is taken is explicit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.loop import scan
from attention_zoo.functional.masks import alive
from attention_zoo.functional.recurrent import State
from attention_zoo.modules.alignment import NOISE
from attention_zoo.modules.attention import Attention
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.memory import Memory
from attention_zoo.modules.recurrent import CELLS, RecurrentLayer
from attention_zoo.notation import Array, Bool, Float, Int, checked

# What the features may be for each time of the query; the first is the default, Bahdanau's and Luong's.
READOUTS = {"previous": ("deep", "state", "both"), "current": ("attentional",)}


class DecoderState(NamedTuple):
    """What a decoder carries from step to step; all leaves lead with the batch axis.

    layers: the recurrent state of each layer. fed: the attentional vector [B, D] for the next step, None without
    input feeding. attention: the mechanism's own state, None where it has none.
    """

    layers: tuple[State, ...]
    fed: jax.Array | None
    attention: Any


class RecurrentDecoder(nn.Module):
    """A stack of recurrent layers that attends to a memory while it writes.

    With query "previous" (Bahdanau 2014, A.2.2) the state before the step asks, `c_t = attend(s_{t-1})`, and the
    context enters the cell, `s_t = cell([y_{t-1}; c_t], s_{t-1})`. With "current" (Luong 2015, section 3) the new
    state asks, `c_t = attend(h_t)`, and the features are the attentional vectors `a_t = tanh(W [c_t; h_t])` (eq. 5),
    which input feeding (section 3.3) hands to the cell of the next step. Without input feeding nothing attended enters
    the recurrence: the layers run first and attention then answers all steps at once.

    units: D. attention: None for a decoder that knows the source from its first state and its inputs alone; its
    features are the top layer's states. query: "previous" or "current". readout: what the features are with
    "previous": "deep", the default, for Bahdanau's `max over pairs of U s_{t-1} + V y_{t-1} + C c_t`, [B, T, D / 2],
    "state" for `s_t` (Raffel 2017, D.2), [B, T, D], or "both" for `[c_t; s_t]` (Raffel 2017, D.1.2), [B, T, V + D];
    with "current" they are "attentional", [B, T, D]. dropout: on the inputs of every layer but the first.

    Raises:
        ValueError: an unknown query or readout, one without attention, or input feeding where the context enters the
            cell anyway.
    """

    units: int
    attention: Attention | None = None
    layers: int = 1
    cell: str = "lstm"
    query: str = "current"
    input_feeding: bool = False
    readout: str | None = None
    dropout: float = 0.0
    dtype: Dtype | None = None

    def setup(self) -> None:
        if self.query not in READOUTS:
            raise ValueError(f"query is one of {', '.join(READOUTS)}; got {self.query!r}")
        if self.readout not in (None, *READOUTS[self.query]):
            allowed = ", ".join(READOUTS[self.query])
            raise ValueError(f"readout with query {self.query!r} is one of {allowed}; got {self.readout!r}")
        if self.readout is not None and self.attention is None:
            raise ValueError(f"a decoder without attention has no readout but None; got {self.readout!r}")
        if self.input_feeding and (self.attention is None or self.query == "previous"):
            raise ValueError("input feeding hands on attentional vectors: it needs attention with query 'current'")
        self.stack = [RecurrentLayer(self.units, self.cell, dtype=self.dtype) for _ in range(self.layers)]
        self.drop = nn.Dropout(self.dropout)
        if self.attention is not None:
            # What is attended to enters the first layer beside its input, through a matrix of its own.
            self.enter = Dense(CELLS[self.cell][2] * self.units, use_bias=False, dtype=self.dtype)
            self.combine = Dense(self.units, use_bias=self.query == "previous", dtype=self.dtype)

    def start(self, layers: tuple[State, ...], memory: Memory | None) -> DecoderState:
        """The state before the first step, from the first state of each layer."""
        layers = _in_dtype(layers, self.dtype)
        fed = jnp.zeros_like(layers[-1].hidden) if self.input_feeding else None
        return DecoderState(layers, fed, None if self.attention is None else self.attention.start(memory))

    @checked
    def __call__(
        self,
        inputs: Float[Array, "B T E"],
        memory: Memory | None,
        state: DecoderState,
        deterministic: bool = True,
        lengths: Int[Array, "B"] | None = None,
    ) -> tuple[Float[jax.Array, "B T O"], DecoderState, Alignment | None]:
        """Takes T more steps.

        Args:
            inputs: embedded previous tokens, [B, T, E].
            memory: what `attention.remember` gave; None without attention.
            state: from `start` or from the last call.
            lengths: steps of each row that are read, [B]; all T by default. What a row gives after them, its state
                among that, is not to be read.

        Returns:
            features [B, T, ...], the state after the last step, and the alignment [B, T, S].

        Raises:
            ValueError: there is attention, but no memory to attend to.
        """
        _check_rows(inputs, state.layers[0].hidden, state.fed, None if memory is None else memory.mask)
        if self.attention is None:
            hidden, layers = self._run(inputs, state.layers, deterministic, lengths)
            return hidden, state._replace(layers=layers), None
        if self.query == "current" and not self.input_feeding:
            hidden, layers = self._run(inputs, state.layers, deterministic, lengths)
            context, alignment, attention = self.ask(hidden, memory, state.attention, deterministic)
            features = self._attentional(context, hidden, _batch_first(alive(lengths, inputs.shape[1])))
            return features, DecoderState(layers, None, attention), alignment
        return self._loop(inputs, memory, state, deterministic, alive(lengths, inputs.shape[1]))

    def _run(
        self, inputs: jax.Array, states: tuple[State, ...], deterministic: bool, lengths: jax.Array | None
    ) -> tuple[jax.Array, tuple[State, ...]]:
        outputs, finals = jnp.moveaxis(inputs, -2, 0), []
        for number, (layer, state) in enumerate(zip(self.stack, states, strict=True)):
            dropped = self.drop(outputs, deterministic=deterministic) if number else outputs
            projected = layer.project(dropped, alive(lengths, len(dropped)))
            outputs, final = layer.run(projected, state, lengths)
            finals.append(final)
        return jnp.moveaxis(outputs, 0, -2), tuple(finals)

    def _loop(
        self,
        inputs: jax.Array,
        memory: Memory | None,
        state: DecoderState,
        deterministic: bool,
        real: jax.Array | None,
    ) -> tuple[jax.Array, DecoderState, Alignment]:
        projected = self.stack[0].project(jnp.moveaxis(inputs, -2, 0), real)
        one = _previous if self.query == "previous" else _current
        if self.is_initializing():
            one(self, memory, deterministic, state, projected[0], None)  # makes the parameters that the loop then reads
        module, variables = self.unbind()
        # Once, not in every step, where the copies would not be the constants that `scan` knows. Vectors are left:
        # their gradients are summed step by step, in float32.
        variables = jax.tree.map(lambda leaf: _in_dtype(leaf, self.dtype) if leaf.ndim > 1 else leaf, variables)
        noisy = {"dropout": self.dropout > 0, NOISE: self.has_rng(NOISE)}
        streams = [name for name, used in noisy.items() if used and not deterministic]
        keys = {name: jax.random.split(self.make_rng(name), len(projected)) for name in streams}

        def step(constants: Any, state: DecoderState, inputs: Any) -> Any:
            variables, memory = constants
            *now, keys = inputs
            return module.apply(variables, memory, deterministic, state, *now, method=one, rngs=keys)

        state, (steps, alignment) = scan(step, (variables, memory), state, (projected, real, keys))
        features, *context = jax.tree.map(lambda step: jnp.moveaxis(step, 0, -2), steps)
        if self._is_deep():
            features = self._deep(jnp.concatenate([features, inputs, *context], -1), _batch_first(real))
        elif self.readout == "both":
            features = jnp.concatenate([*context, features], -1)
        # Each step attended with one query: [T, B, 1, ...] to [B, T, ...].
        return features, state, jax.tree.map(lambda step: jnp.moveaxis(step[:, :, 0], 0, 1), alignment)

    def advance(
        self, projected: jax.Array, states: tuple[State, ...], deterministic: bool, real: jax.Array | None
    ) -> tuple[State, ...]:
        """One step of all layers, from the projected input of the first."""
        finals = [self.stack[0].step(projected, states[0], real)]
        for layer, state in zip(self.stack[1:], states[1:], strict=True):
            dropped = self.drop(finals[-1].hidden, deterministic=deterministic)
            finals.append(layer.step(layer.project(dropped, real), state, real))
        return tuple(finals)

    def ask(
        self, queries: jax.Array, memory: Memory | None, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Any, Any]:
        """Attends for queries [..., T, D]."""
        assert self.attention is not None
        if memory is None:
            raise ValueError("a decoder with attention needs a memory, from `attention.remember`; got None")
        return self.attention(queries, memory, state, deterministic)

    def ask_once(
        self, query: jax.Array, memory: Memory | None, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Alignment, Any]:
        """Attends for one query [..., D]: context [..., V]."""
        context, alignment, state = self.ask(query[..., None, :], memory, state, deterministic)
        return context[..., 0, :], alignment, state

    def _is_deep(self) -> bool:
        """Whether the features are Bahdanau's deep output."""
        return self.query == "previous" and self.readout in (None, "deep")

    def _attentional(self, context: jax.Array, hidden: jax.Array, real: jax.Array | None) -> jax.Array:
        return jnp.tanh(self.combine(jnp.concatenate([context, hidden], -1), real))

    def _deep(self, read: jax.Array, real: jax.Array | None) -> jax.Array:
        # Each unit of the first half is paired with its like in the second: the paper's neighbours, reordered.
        return jnp.maximum(*jnp.split(self.combine(read, real), 2, -1))


def _batch_first(real: jax.Array | None) -> jax.Array | None:
    return None if real is None else real.T


def _in_dtype(tree: Any, dtype: Dtype | None) -> Any:
    return tree if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


@checked
def _check_rows(
    inputs: Float[Array, "B T E"],
    hidden: Float[Array, "B D"],
    fed: Float[Array, "B D"] | None,
    mask: Bool[Array, "B S"] | None,
) -> None:
    """The rows inside a state and a memory, which their annotations do not check."""


def _previous(module, memory, deterministic, state, projected, real):  # type: ignore[no-untyped-def]
    """Bahdanau's step: s_{t-1} asks, the context enters the cell."""
    before = state.layers[-1].hidden
    context, alignment, attention = module.ask_once(before, memory, state.attention, deterministic)
    layers = module.advance(projected + module.enter(context, real), state.layers, deterministic, real)
    hidden = before if module._is_deep() else layers[-1].hidden
    read = (hidden,) if module.readout == "state" else (hidden, context)
    return DecoderState(layers, None, attention), (read, alignment)


def _current(module, memory, deterministic, state, projected, real):  # type: ignore[no-untyped-def]
    """Luong's step with input feeding: the last attentional vector enters the cell, h_t asks."""
    layers = module.advance(projected + module.enter(state.fed, real), state.layers, deterministic, real)
    hidden = layers[-1].hidden
    context, alignment, attention = module.ask_once(hidden, memory, state.attention, deterministic)
    fed = module._attentional(context, hidden, real)
    return DecoderState(layers, fed, attention), ((fed,), alignment)

"""Attention as a module: score + alignment, both exchangeable.

What depends on the source alone is computed once per sequence by `remember` and handed to every step as a value.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from attention_zoo.functional.alignment import Alignment, softmax
from attention_zoo.functional.arrays import laid_out
from attention_zoo.functional.attend import attend
from attention_zoo.functional.loop import scan
from attention_zoo.functional.scores import scaled_dot
from attention_zoo.modules.alignment import NOISE, Aligner
from attention_zoo.modules.memory import Memory
from attention_zoo.modules.past import Past
from attention_zoo.modules.scores import ScaledDot
from attention_zoo.notation import Array, Bool, Float, checked


class AttentionState(NamedTuple):
    """What a mechanism carries from query to query, leaves [..., ...]: its score's part and its alignment's."""

    score: Any
    alignment: Any


class Attention(nn.Module):
    """Attention, `c_t = sum_s align(score(q_t, k_s)) v_s`: any score with any alignment.

    score: a module with `remember(values, real=None) -> keys` (see `modules.scores`) and `score(queries, keys)` ->
    scores [..., T, S]; its `dtype` is that of the whole computation, None for that of the arguments. A `Past` also
    knows where was attended before.
    alignment: a function `(scores, mask) -> weights [..., T, S]`, or an `Aligner`.
    implementation: see `functional.attend.attend`; an `Aligner` reads in its own way.

    Raises (when it is called):
        ValueError: an implementation other than "plain" for an `Aligner`.

    >>> from attention_zoo.modules import Additive
    >>> attention = Attention(Additive(units=8))
    >>> values, queries = jnp.ones((2, 7, 5)), jnp.ones((2, 3, 4))
    >>> variables = attention.init(jax.random.key(0), queries, values, method="over")
    >>> memory = attention.apply(variables, values, method="remember")
    >>> context, alignment, state = attention.apply(variables, queries, memory)
    >>> context.shape, alignment.weights.shape
    ((2, 3, 5), (2, 3, 7))
    """

    score: Any
    alignment: Callable[..., Any] = softmax
    implementation: str = "plain"

    def setup(self) -> None:
        if isinstance(self.alignment, Aligner) and self.implementation != "plain":
            raise ValueError(
                f"{type(self.alignment).__name__} reads in its own way: implementation is 'plain'; "
                f"got {self.implementation!r}"
            )

    @checked
    def remember(self, values: Float[Array, "*b S V"], mask: Bool[Array, "*b S"] | None = None) -> Memory:
        """Projects the source once. mask: True = a real position, all of them by default."""
        real = jnp.ones(values.shape[:-1], bool) if mask is None else jnp.asarray(mask)
        (values,) = promote_dtype(values, dtype=self.score.dtype)
        values = laid_out(values)  # keys are made of them, and every step reads them
        extra = self.alignment.remember(values) if isinstance(self.alignment, Aligner) else None
        keys = self.score.remember(values, None if mask is None else real)
        return Memory(keys, values, real, extra)

    def start(self, memory: Memory | None) -> AttentionState | None:
        """The state before the first query; None where the mechanism has none.

        Raises:
            ValueError: the mechanism has one, and there is no memory to make it for.
        """
        parts = [part if isinstance(part, (Past, Aligner)) else None for part in (self.score, self.alignment)]
        if parts == [None, None]:
            return None
        if memory is None:
            raise ValueError("this attention may carry a state, so that it starts from a memory; got None")
        states = [None if part is None else part.start(memory) for part in parts]
        return None if all(state is None for state in states) else AttentionState(*states)

    @checked
    def __call__(
        self, queries: Float[Array, "*#b T Q"], memory: Memory, state: Any = None, deterministic: bool = True
    ) -> tuple[Float[jax.Array, "*b T V"], Alignment | None, Any]:
        """Attends for queries [..., T, Q]: context [..., T, V], the alignment, and the next state.

        The alignment is None where a fused implementation does not build it.

        Args:
            queries: T of them, the next ones of a sequence; their leading axes broadcast against the memory's.
            memory: from `remember`. state: from `start`, or from the last call.
            deterministic: False in training, where some alignments draw noise from the rng stream "alignment".

        Raises:
            ValueError: the mechanism carries a state, and got none.
            TypeError: the state is not one of this module's.
        """
        knows_states = isinstance(self.score, Past) or isinstance(self.alignment, Aligner)
        if knows_states and not isinstance(state, AttentionState | None):
            raise TypeError(f"a state of attention is one from `start` or the last call; got {type(state).__name__}")
        if not isinstance(self.score, Past):
            return self._together(queries, memory, state, deterministic)
        if state is None:
            raise ValueError("this score knows where was attended before: it needs a state, from `start`; got None")
        if queries.shape[-2] == 1:
            return self._one(queries, memory, state, deterministic)
        return self._one_by_one(queries, memory, state, deterministic)

    def _together(
        self, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Any, Any]:
        """All queries at once; the state of an alignment runs through them."""
        queries, keys, values = promote_dtype(queries, memory.keys, memory.values, dtype=self.score.dtype)
        leading = jnp.broadcast_shapes(queries.shape[:-2], memory.mask.shape[:-1])
        queries = jnp.broadcast_to(queries, leading + queries.shape[-2:])
        if not isinstance(self.alignment, Aligner):
            mask = memory.mask[..., None, :]
            # `attend` knows the score that has fused paths as a function.
            score = scaled_dot if isinstance(self.score, ScaledDot) else self.score
            read: dict[str, Any] = {"score": score, "align": self.alignment, "implementation": self.implementation}
            return *attend(queries, keys, values, mask, **read), state
        if state is None and self.start(memory) is not None:
            raise ValueError("this alignment carries a state: it needs the last one, or that of `start`; got None")
        before = None if state is None else state.alignment
        memory = memory._replace(keys=keys, values=values)
        context, alignment, after = self.alignment.attend(self.score, queries, memory, before, deterministic)
        return context, alignment, None if state is None else state._replace(alignment=after)

    def _one(
        self, query: jax.Array, memory: Memory, state: AttentionState, deterministic: bool
    ) -> tuple[jax.Array, Alignment, AttentionState]:
        """One query [..., 1, Q] of a score that knows the past."""
        enriched = memory._replace(keys=self.score.enrich(memory.keys, state.score))
        context, alignment, state = self._together(query, enriched, state, deterministic)
        return context, alignment, state._replace(score=self.score.update(state.score, alignment.weights[..., 0, :]))

    def _one_by_one(
        self, queries: jax.Array, memory: Memory, state: AttentionState, deterministic: bool
    ) -> tuple[jax.Array, Alignment, AttentionState]:
        steps = jnp.moveaxis(queries, -2, 0)[..., None, :]  # [T, ..., 1, Q]
        if self.is_initializing():
            self._one(steps[0], memory, state, deterministic)  # makes the parameters that the loop then reads
        noisy = not deterministic and self.has_rng(NOISE)
        random = jax.random.split(self.make_rng(NOISE), len(steps)) if noisy else None
        module, variables = self.unbind()

        def step(constants: Any, state: AttentionState, inputs: Any) -> Any:
            variables, memory = constants
            query, key = inputs
            rngs = None if key is None else {NOISE: key}
            found: Any = module.apply(variables, query, memory, state, deterministic, rngs=rngs, method="_one")
            context, alignment, state = found
            return state, (context, alignment)

        state, found = scan(step, (variables, memory), state, (steps, random))
        axis = memory.mask.ndim - 1  # of the queries: an alignment's leaves are [..., T, S] and [..., T]
        context, alignment = jax.tree.map(lambda step: jnp.moveaxis(jnp.squeeze(step, axis + 1), 0, axis), found)
        return context, alignment, state

    @checked
    def over(
        self, queries: Float[Array, "*b T Q"], values: Float[Array, "*b S V"], mask: Bool[Array, "*b S"] | None = None
    ) -> tuple[Float[jax.Array, "*b T V"], Alignment | None, Any]:
        """`remember` and call in one, for sources that are read once (and for `init`)."""
        memory = self.remember(values, mask)
        return self(queries, memory, self.start(memory))

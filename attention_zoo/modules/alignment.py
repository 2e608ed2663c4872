"""Alignments that own parameters, carry a state or read only a part of the source, as modules.

A plain alignment is a function `(scores, mask) -> weights`, such as `functional.alignment.softmax`; what needs more
is an `Aligner`, and `Attention` takes either.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional import local, monotonic
from attention_zoo.functional.alignment import Alignment, softmax
from attention_zoo.functional.attend import read
from attention_zoo.functional.mocha import mocha
from attention_zoo.functional.relaxed import gumbel_softmax, log_prob_and_entropy, straight_through
from attention_zoo.modules.memory import Memory

NOISE = "alignment"  # the rng stream of alignments that are noisy in training


class Aligner(nn.Module):
    """An alignment with more than scores and mask to go by. A subclass overrides what it needs.

    `align` gives weights and the next state for T queries at once; T queries one by one give the same.
    """

    def remember(self, values: jax.Array) -> Any:
        """What the alignment itself keeps of a source, beside the keys of the score; leaves [..., S, ...]."""
        return None

    def start(self, memory: Memory) -> Any:
        """The state before the first query, leaves [...]; None where there is none."""
        return None

    def align(
        self, scores: jax.Array, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """Scores [..., T, S] into weights [..., T, S], and the next state."""
        raise NotImplementedError

    def attend(
        self, score: Any, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Alignment, Any]:
        """Score, align, read: context [..., T, V], the alignment, the next state."""
        scores = score(queries, memory.keys)
        weights, state = self.align(scores, queries, memory, state, deterministic)
        return read(weights, memory.values), self.report(weights, scores, memory, deterministic), state

    def report(self, weights: jax.Array, scores: jax.Array, memory: Memory, deterministic: bool) -> Alignment:
        """What is told of weights [..., T, S] that came from scores; an aligner that samples tells more."""
        return Alignment(weights)


class _Local(Aligner):
    """What the local alignments share: a window of 2D + 1 positions around a centre.

    One query at inference scores and reads only its window, so that products do not grow with the source; writing the
    weights [T, S] does, by one number a position. A score that does not score pairs (`Location`) needs all positions,
    and a `Past` enriches all. Real positions come first, padding at the end.
    """

    window: int = 10

    def centers(self, queries: jax.Array, memory: Memory, state: Any) -> jax.Array:
        """The centre p_t of each query's window, [..., T]."""
        raise NotImplementedError

    def next(self, queries: jax.Array, state: Any) -> Any:
        """The state after these queries."""
        return state

    def align(
        self, scores: jax.Array, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        centers = self.centers(queries, memory, state)
        weights = self.function()(scores, memory.mask[..., None, :], centers, window=self.window)
        return weights, self.next(queries, state)

    def attend(
        self, score: Any, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Alignment, Any]:
        if queries.shape[-2] != 1 or not deterministic or not getattr(score, "pairwise", True):
            return super().attend(score, queries, memory, state, deterministic)
        context, weights = local.local_attend(
            queries,
            memory.keys,
            memory.values,
            memory.mask[..., None, :],
            self.centers(queries, memory, state),
            score=score,
            window=self.window,
            align=self.function(),
        )
        return context, Alignment(weights), self.next(queries, state)

    def function(self) -> Callable[..., jax.Array]:
        """`(scores, mask, centers, window) -> weights`."""
        raise NotImplementedError


class LocalM(_Local):
    """Luong's local-m: the t-th query looks at source positions t - D to t + D; see `functional.local.local_m`.

    window: D. State: how many queries there were, [...].
    """

    def start(self, memory: Memory) -> jax.Array:
        return jnp.zeros(memory.mask.shape[:-1], jnp.int32)

    def centers(self, queries: jax.Array, memory: Memory, state: jax.Array) -> jax.Array:
        steps = jnp.arange(queries.shape[-2]).reshape((1,) * state.ndim + (-1,))
        return state[..., None] + steps

    def next(self, queries: jax.Array, state: jax.Array) -> jax.Array:
        return state + queries.shape[-2]

    def function(self) -> Callable[..., jax.Array]:
        return local.local_m


class LocalP(_Local):
    """Luong's local-p: a window around `p_t = S sigmoid(v^T tanh(W h_t))`; see `functional.local.local_p`.

    window: D; sigma is D / 2. units: of the predictive network, None for the width of the queries.
    renormalise: divide by the sum of the weights after the Gaussian, which the authors do not.
    """

    units: int | None = None
    renormalise: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def centers(self, queries: jax.Array, memory: Memory, state: Any) -> jax.Array:
        units = self.units or queries.shape[-1]
        weight = self.param("weight", nn.initializers.lecun_normal(), (queries.shape[-1], units))
        energy = self.param("energy", nn.initializers.normal(units**-0.5), (units,))
        queries, weight, energy = nn.dtypes.promote_dtype(queries, weight, energy, dtype=self.dtype)
        return local.predicted_centers(queries, weight, energy, memory.mask.sum(-1))

    def function(self) -> Callable[..., jax.Array]:
        return partial(local.local_p, renormalise=self.renormalise)


class Monotonic(Aligner):
    """Raffel's monotonic attention: expected in training, decided at inference; see `functional.monotonic`.

    bias: where the learned bias r of the scores starts; below zero, walks come far enough to learn from. gain: where a
    learned factor g starts (his eq. 17, `g e + r`), None for none; an additive score has its own, `normalised=True`
    (eq. 16). noise: scale of the pre-sigmoid noise in training, from the rng stream "alignment". hard: decide at
    inference, the default; else the expectation stays. method: of `functional.monotonic.monotonic`. State: the weights
    before, [..., S]; what training hands on is no state for inference. All positions are scored at every query: where
    the source is long, `functional.monotonic.online` takes linear time.

    Raises (when it is called):
        ValueError: the method is not one of `functional.monotonic.METHODS`.
    """

    bias: float = -1.0
    noise: float = 1.0
    hard: bool = True
    method: str = "parallel"
    gain: float | None = None

    def setup(self) -> None:
        if self.method not in monotonic.METHODS:
            raise ValueError(f"method is one of {', '.join(monotonic.METHODS)}; got {self.method!r}")
        self.offset = self.param("bias", nn.initializers.constant(self.bias), ())
        if self.gain is not None:
            self.factor = self.param("gain", nn.initializers.constant(self.gain), ())

    def start(self, memory: Memory) -> jax.Array:
        return monotonic.first(memory.mask)

    def align(
        self, scores: jax.Array, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        scores = scores if self.gain is None else self.factor.astype(scores.dtype) * scores
        scores, mask = scores + self.offset.astype(scores.dtype), memory.mask[..., None, :]
        if deterministic and self.hard:
            return monotonic.hard(scores, mask, state)
        if not deterministic and self.noise:
            scores = monotonic.with_noise(scores, self.make_rng(NOISE), self.noise)
        return monotonic.monotonic(scores, mask, state, method=self.method)


class MoChA(Monotonic):
    """Monotonic chunkwise attention; see `functional.mocha`. State: the monotonic weights before, [..., S].

    width: w, positions in a chunk. chunk_score: a score module of its own for the softmax over the chunk.
    """

    width: int = 3
    chunk_score: nn.Module | None = None

    def remember(self, values: jax.Array) -> Any:
        return self._chunk().remember(values)

    def align(
        self, scores: jax.Array, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        stops, state = super().align(scores, queries, memory, state, deterministic)
        chunk = self._chunk()(queries, memory.extra)
        return mocha(stops, chunk, memory.mask[..., None, :], self.width), state

    def _chunk(self) -> Any:
        if self.chunk_score is None:
            raise ValueError("MoChA needs a chunk_score, a score module such as Additive(units)")
        return self.chunk_score


class GumbelSoftmax(Aligner):
    """A relaxed sample in training, the softmax at inference; see `functional.relaxed.gumbel_softmax`.

    temperature: of the sample; lower is nearer to one position. Noise comes from the rng stream "alignment". A relaxed
    sample is no position, so the alignment has neither log_prob nor entropy.

    Raises (when it is called):
        ValueError: the temperature is not above zero.
    """

    temperature: float = 1.0

    def setup(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is above zero; got {self.temperature}")

    def align(
        self, scores: jax.Array, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        mask = memory.mask[..., None, :]
        if deterministic:
            return softmax(scores, mask), state
        return gumbel_softmax(scores, mask, self.make_rng(NOISE), temperature=self.temperature), state


class StraightThrough(GumbelSoftmax):
    """One position, sampled in training and the best at inference; its gradient is the relaxed sample's.

    See `functional.relaxed.straight_through`. In training the alignment also has the log_prob of the sampled position
    and the entropy of `softmax(e)`, which it is sampled from at any temperature.
    """

    def align(
        self, scores: jax.Array, queries: jax.Array, memory: Memory, state: Any, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        key = None if deterministic else self.make_rng(NOISE)
        mask = memory.mask[..., None, :]
        return straight_through(scores, mask, key, temperature=self.temperature), state

    def report(self, weights: jax.Array, scores: jax.Array, memory: Memory, deterministic: bool) -> Alignment:
        if deterministic:
            return Alignment(weights)
        return Alignment(weights, *log_prob_and_entropy(scores, memory.mask[..., None, :], weights))

"""Scores that know where attention looked before: any score, its keys enriched by what was attended to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional import coverage
from attention_zoo.functional.products import project
from attention_zoo.modules.memory import Memory


class Past(nn.Module):
    """A score whose keys are `k_s + W f_s`, with features f_s of the alignments before; queries are taken one by one.

    With the additive score this is the papers' `v^T tanh(W q + U k + V f + b)`; any score that looks at keys may be
    enriched (the cosine score then sees keys whose length is no longer one). All S keys are enriched at every query.
    score: the score module.

    Raises (when it is called):
        ValueError: the score does not look at keys (`Location`).
    """

    score: Any

    @property
    def dtype(self) -> Dtype | None:
        """That of the score."""
        return self.score.dtype

    @property
    def pairwise(self) -> bool:
        """That of the score."""
        return getattr(self.score, "pairwise", True)

    def remember(self, values: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """The score's keys."""
        return self.score.remember(values, real)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S], of enriched keys."""
        return self.score(queries, keys)

    def start(self, memory: Memory) -> Any:
        """The state before the first query, leaves [..., S]: nothing was attended to."""
        return jnp.zeros(memory.mask.shape, jnp.float32)

    @nn.compact
    def enrich(self, keys: jax.Array, state: Any) -> jax.Array:
        """Keys with the features of the state, [..., S, K]."""
        if not self.pairwise:
            raise ValueError(
                f"{type(self).__name__} enriches keys, and {type(self.score).__name__} does not look at any"
            )
        features = self.features(state).astype(keys.dtype)
        weight = self.param("past", nn.initializers.lecun_normal(), (features.shape[-1], keys.shape[-1]))
        return keys + project(features, weight.astype(keys.dtype))

    def features(self, state: Any) -> jax.Array:
        """f, [..., S, F]."""
        raise NotImplementedError

    def update(self, state: Any, weights: jax.Array) -> Any:
        """The state after one query was aligned with weights [..., S]."""
        raise NotImplementedError


class LocationSensitive(Past):
    """Chorowski's location features, `f = F * alpha_{t-1}`; see `functional.coverage.location_features`.

    filters: how many. width: of each, odd. State: the weights before, [..., S], zeros at the start.
    """

    filters: int = 10
    width: int = 11

    def features(self, state: jax.Array) -> jax.Array:
        shape = (self.width, self.filters)
        filters = self.param("filters", nn.initializers.lecun_normal(), shape)
        return coverage.location_features(state, filters)

    def update(self, state: jax.Array, weights: jax.Array) -> jax.Array:
        return weights.astype(state.dtype)


class Fertility(nn.Module):
    """How much a position is expected to be attended to; see `functional.coverage.fertility`. largest: N."""

    largest: float

    @nn.compact
    def __call__(self, annotations: jax.Array) -> jax.Array:
        """Annotations [..., S, V] to [..., S]."""
        weight = self.param("weight", nn.initializers.normal(annotations.shape[-1] ** -0.5), annotations.shape[-1:])
        return coverage.fertility(annotations, weight.astype(annotations.dtype), self.largest)


class CoverageState(NamedTuple):
    """What was attended to so far, [..., S], and the fertility it is divided by, None for none."""

    total: jax.Array
    fertility: jax.Array | None


class Coverage(Past):
    """How much each position was attended to so far, `f_s = sum_t' alpha_t's` (See 2017, eq. 10 and 11).

    fertility: N; above zero the sum is divided by a learned fertility up to N (Tu 2016, linguistic coverage; N = 2).

    Raises (when it is called):
        ValueError: the fertility is negative.
    """

    fertility: float = 0.0

    def setup(self) -> None:
        if not self.fertility >= 0:
            raise ValueError(f"fertility is 0, for none, or above; got {self.fertility}")
        self.expected = Fertility(self.fertility) if self.fertility else None

    def start(self, memory: Memory) -> CoverageState:
        """Nothing was attended to."""
        return CoverageState(super().start(memory), self.expected(memory.values) if self.expected else None)

    def features(self, state: CoverageState) -> jax.Array:
        if state.fertility is None:
            return state.total[..., None]
        # A fertility may be zero to rounding; with this floor the quotient and its gradient stay finite.
        return (state.total / jnp.maximum(state.fertility, 1e-6))[..., None]

    def update(self, state: CoverageState, weights: jax.Array) -> CoverageState:
        return state._replace(total=coverage.coverage(state.total, weights[..., None, :])[1])

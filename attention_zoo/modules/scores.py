"""Scores as modules: each owns its weights, and projects the source once, by `remember`.

`remember(values, real=None)` gives the keys of values [..., S, V]. Where not all positions are `real`, [..., S], the
keys of the others are not to be read, and no gradient comes back from them.
"""

import jax
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype

from attention_zoo.functional import scores
from attention_zoo.modules.dense import Dense


class Dot(nn.Module):
    """`e_ts = q_t^T k_s`; see `functional.scores.dot`."""

    dtype: Dtype | None = None

    def remember(self, values: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """The keys are the values."""
        return values

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        return scores.dot(queries, keys)


class ScaledDot(nn.Module):
    """`e_ts = q_t^T k_s / sqrt(D)`; see `functional.scores.scaled_dot`."""

    dtype: Dtype | None = None

    def remember(self, values: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """The keys are the values."""
        return values

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        return scores.scaled_dot(queries, keys)


class General(nn.Module):
    """`e_ts = q_t^T W k_s`; see `functional.scores.general`. units: width of the queries."""

    units: int
    dtype: Dtype | None = None

    def setup(self) -> None:
        self.key = Dense(self.units, use_bias=False, dtype=self.dtype)

    def remember(self, values: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """Keys `W k_s`, [..., S, units]."""
        return self.key(values, real)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        return scores.dot(queries, keys)


class Additive(nn.Module):
    """`e_ts = v^T tanh(W q_t + U k_s + b)`; see `functional.scores.additive`.

    units: width of the hidden layer. use_bias: whether there is b. normalised: use `g v / ||v||` for v.
    """

    units: int
    use_bias: bool = True
    normalised: bool = False
    dtype: Dtype | None = None

    def setup(self) -> None:
        self.query = Dense(self.units, use_bias=False, dtype=self.dtype)
        # With the keys, b and its gradient cost one pass over a sequence, with the queries one in every step.
        self.key = Dense(self.units, use_bias=self.use_bias, dtype=self.dtype)
        self.energy = self.param("energy", nn.initializers.normal(self.units**-0.5), (self.units,))
        if self.normalised:
            self.gain = self.param("gain", nn.initializers.constant(self.units**-0.5), ())

    def remember(self, values: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """Keys `U k_s + b`, [..., S, units]."""
        return self.key(values, real)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        energy = scores.normalised_energy(self.energy, self.gain) if self.normalised else self.energy
        return scores.additive(self.query(queries), keys, energy.astype(keys.dtype))


class Concat(nn.Module):
    """`e_ts = v^T tanh(W [q_t; k_s])`, with W in its two halves; see `functional.scores.concat`.

    The additive score without a bias. units: width of the hidden layer.
    """

    units: int
    dtype: Dtype | None = None

    def setup(self) -> None:
        self.additive = Additive(self.units, use_bias=False, dtype=self.dtype)

    def remember(self, values: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """Keys `W_k k_s`, [..., S, units]."""
        return self.additive.remember(values, real)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        return self.additive(queries, keys)


class Location(nn.Module):
    """`e_t = W q_t`; see `functional.scores.location`. positions: the longest source that can be scored."""

    positions: int
    dtype: Dtype | None = None
    pairwise = False  # it scores positions, not pairs of a query and a key, so that all keys must be there

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]; of the keys only their number counts."""
        shape = (queries.shape[-1], self.positions)
        weight = self.param("weight", nn.initializers.lecun_normal(), shape)
        queries, weight = promote_dtype(queries, weight, dtype=self.dtype)
        return scores.location(queries, weight, keys.shape[-2])

    def remember(self, values: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """The keys are the values."""
        return values


class Cosine(nn.Module):
    """`e_ts = beta cos(W q_t, k_s)` with a learned sharpness beta; see `functional.scores.cosine`.

    units: width of the values, to which W brings the queries.
    """

    units: int
    dtype: Dtype | None = None

    def setup(self) -> None:
        self.query = Dense(self.units, use_bias=False, dtype=self.dtype)
        self.sharpness = self.param("sharpness", nn.initializers.constant(10.0), ())

    def remember(self, values: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """The keys are the values, brought to length one."""
        return scores.unit(values)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        queries = scores.unit(self.query(queries))
        return self.sharpness.astype(queries.dtype) * scores.dot(queries, keys)

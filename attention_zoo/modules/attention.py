"""Attention as modules: a score that owns its weights, and `Attention` = score + alignment.

What depends on the source alone is computed once per sequence by `remember` and handed to every step as a value.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype

from attention_zoo.functional import scores
from attention_zoo.functional.alignment import Alignment, softmax
from attention_zoo.functional.attend import attend
from attention_zoo.modules.dense import Dense
from attention_zoo.notation import Array, Bool, Float, checked


class Memory(NamedTuple):
    """What attention remembers of a source: keys [..., S, K], values [..., S, V], mask [..., S] (True = real)."""

    keys: jax.Array
    values: jax.Array
    mask: jax.Array


class Dot(nn.Module):
    """`e_ts = q_t^T k_s`; see `functional.scores.dot`."""

    dtype: Dtype | None = None

    def remember(self, values: jax.Array) -> jax.Array:
        """The keys are the values."""
        return values

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        return scores.dot(queries, keys)


class ScaledDot(nn.Module):
    """`e_ts = q_t^T k_s / sqrt(D)`; see `functional.scores.scaled_dot`."""

    dtype: Dtype | None = None

    def remember(self, values: jax.Array) -> jax.Array:
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

    def remember(self, values: jax.Array) -> jax.Array:
        """Keys `W k_s`, [..., S, units]."""
        return self.key(values)

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
        self.query = Dense(self.units, use_bias=self.use_bias, dtype=self.dtype)
        self.key = Dense(self.units, use_bias=False, dtype=self.dtype)
        self.energy = self.param("energy", nn.initializers.normal(self.units**-0.5), (self.units,))
        if self.normalised:
            self.gain = self.param("gain", nn.initializers.constant(self.units**-0.5), ())

    def remember(self, values: jax.Array) -> jax.Array:
        """Keys `U k_s`, [..., S, units]."""
        return self.key(values)

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

    def remember(self, values: jax.Array) -> jax.Array:
        """Keys `W_k k_s`, [..., S, units]."""
        return self.additive.remember(values)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        return self.additive(queries, keys)


class Location(nn.Module):
    """`e_t = W q_t`; see `functional.scores.location`. positions: the longest source that can be scored."""

    positions: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]; of the keys only their number counts."""
        shape = (queries.shape[-1], self.positions)
        weight = self.param("weight", nn.initializers.lecun_normal(), shape)
        queries, weight = promote_dtype(queries, weight, dtype=self.dtype)
        return scores.location(queries, weight, keys.shape[-2])

    def remember(self, values: jax.Array) -> jax.Array:
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

    def remember(self, values: jax.Array) -> jax.Array:
        """The keys are the values, brought to length one."""
        return scores.unit(values)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Scores [..., T, S]."""
        queries = scores.unit(self.query(queries))
        return self.sharpness.astype(queries.dtype) * scores.dot(queries, keys)


class Attention(nn.Module):
    """Attention, `c_t = sum_s align(score(q_t, k_s)) v_s`: any score with any alignment.

    score: a module with `remember(values) -> keys` and `score(queries, keys) -> scores [..., T, S]`; its `dtype` is
    that of the whole computation, None for that of the arguments.
    alignment: `(scores, mask) -> weights [..., T, S]`. implementation: see `functional.attend.attend`.

    >>> attention = Attention(Additive(units=8))
    >>> values, queries = jnp.ones((2, 7, 5)), jnp.ones((2, 3, 4))
    >>> variables = attention.init(jax.random.key(0), queries, values, method="over")
    >>> memory = attention.apply(variables, values, method="remember")
    >>> context, alignment, state = attention.apply(variables, queries, memory)
    >>> context.shape, alignment.weights.shape
    ((2, 3, 5), (2, 3, 7))
    """

    score: nn.Module
    alignment: Callable[..., jax.Array] = softmax
    implementation: str = "plain"

    @checked
    def remember(self, values: Float[Array, "*b S V"], mask: Bool[Array, "*b S"] | None = None) -> Memory:
        """Projects the source once. mask: True = a real position, all of them by default."""
        real = jnp.ones(values.shape[:-1], bool) if mask is None else jnp.asarray(mask)
        (values,) = promote_dtype(values, dtype=self.score.dtype)
        return Memory(self.score.remember(values), values, real)

    def start(self, memory: Memory | None) -> Any:
        """The state before the first query; None where the mechanism has none."""
        return None

    @checked
    def __call__(
        self, queries: Float[Array, "*#b T Q"], memory: Memory, state: Any = None
    ) -> tuple[Float[jax.Array, "*b T V"], Alignment, Any]:
        """Attends for queries [..., T, Q]: context [..., T, V], the alignment, and the next state."""
        queries, keys, values = promote_dtype(queries, memory.keys, memory.values, dtype=self.score.dtype)
        context, alignment = attend(
            queries,
            keys,
            values,
            memory.mask[..., None, :],
            score=self.score,
            align=self.alignment,
            implementation=self.implementation,
        )
        return context, alignment, state

    @checked
    def over(
        self, queries: Float[Array, "*b T Q"], values: Float[Array, "*b S V"], mask: Bool[Array, "*b S"] | None = None
    ) -> tuple[Float[jax.Array, "*b T V"], Alignment, Any]:
        """`remember` and call in one, for sources that are read once (and for `init`)."""
        memory = self.remember(values, mask)
        return self(queries, memory, self.start(memory))

"""Multi-head attention: several heads look at one source, each in its own way."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.attend import read
from attention_zoo.functional.dot_product import attention_rows, dot_product_attention
from attention_zoo.functional.heads import join_heads, split_heads
from attention_zoo.functional.masks import causal as causal_mask
from attention_zoo.functional.masks import combine, padding
from attention_zoo.functional.masks import segments as segments_mask
from attention_zoo.functional.masks import window as window_mask
from attention_zoo.functional.positions import alibi, rotary
from attention_zoo.modules.dense import Dense
from attention_zoo.notation import Array, Float, Int, checked

SCHEMES = ("none", "rotary", "alibi", "relative")


class Heads(NamedTuple):
    """What heads remember of a source: keys [B, G, S, D] and values [B, G, S, D], one pair for H / G heads of queries.

    All leaves lead with the batch axis, so that a search may reorder them.
    """

    keys: jax.Array
    values: jax.Array


class Sight(NamedTuple):
    """What queries may see and where they stand; None where there is nothing to say.

    mask: True = may attend; broadcasts against [B, H, T, S].
    segments: numbers of packed sequences, of queries [B, T] and of keys [B, S]; 0 marks padding.
    positions: of the queries, and of the keys that come with them, [B, T]; 0, 1, ... without. Queries of a cache need
        them, each row its own.
    relative: from distances to biases, see `modules.RelativeBias`: `(positions [..., T], positions [..., S]) ->
        [..., H, T, S]`, for the scheme "relative".
    lengths: how many of the keys are real, [B]; outside kernels are quicker by them than by a mask.
    """

    mask: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    positions: jax.Array | None = None
    relative: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    lengths: jax.Array | None = None


class Asked(NamedTuple):
    """Whose weights are wanted: heads [h] and query rows [r]; None for all."""

    heads: jax.Array | None = None
    rows: jax.Array | None = None


class MultiHeadAttention(nn.Module):
    """`concat(head_1, ..., head_H) W^O`, `head_i = attend(Q W_i^Q, K W_i^K, V W_i^V)` (Vaswani 2017, section 3.2.2).

    heads: H. width: of what comes out. groups: G heads of keys and values, each for H / G heads of queries (1 is
        multi-query attention, Shazeer 2019; between, Ainslie 2023); None for H.
    head_width: D of a head; None for width / H. qk_norm: queries and keys are normalised, by RMS (Henry 2020).
    scheme: of positions: "none", "rotary" (Su 2021), "alibi" (Press 2022), "relative" (T5; the biases come in by
        `Sight`). window: keys at most (left, right) away. soft_cap: c of `c tanh(scores / c)`.
    score: None for scaled dot, which has fused paths; or what makes a module of `modules.scores`, such as
        `partial(Additive, 64)`, one for each head, whose scores `alignment` turns into weights: a function
        `(scores, mask) -> weights`. For a cache, its keys are as wide as a head.
    dropout: of the weights, per element. implementation: see `functional.dot_product.dot_product_attention`; queries
        of a cache take the default one.

    Raises:
        ValueError: fields that do not fit together; the message says which.
    """

    heads: int
    width: int
    groups: int | None = None
    head_width: int | None = None
    use_bias: bool = True
    qk_norm: bool = False
    scheme: str = "none"
    window: tuple[int, int] | None = None
    soft_cap: float | None = None
    score: Callable[[], Any] | None = None
    alignment: Callable[..., jax.Array] = softmax
    dropout: float = 0.0
    implementation: str | None = None
    dtype: Dtype | None = None

    def setup(self) -> None:
        _check(self)
        groups, each = self.groups or self.heads, self.head_width or self.width // self.heads
        options: dict[str, Any] = {"use_bias": self.use_bias, "dtype": self.dtype}
        self.query = Dense(self.heads * each, **options)
        self.key = Dense(groups * each, **options)
        self.value = Dense(groups * each, **options)
        self.output = Dense(self.width, **options)
        if self.qk_norm:
            self.query_norm, self.key_norm = nn.RMSNorm(dtype=self.dtype), nn.RMSNorm(dtype=self.dtype)
        if self.score is not None:
            each_its_own: Any = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            methods: dict[str, Any] = {"in_axes": 1, "out_axes": 1, "methods": ["remember", "__call__"]}
            self.relevance = nn.vmap(_Relevance, **methods, **each_its_own)(self.score)

    @checked
    def remember(self, inputs: Float[Array, "B S E"], positions: Int[Array, "B S"] | None = None) -> Heads:
        """Projects a source once: keys and values of its positions (0, 1, ... without)."""
        keys = split_heads(self.key(inputs), self.groups or self.heads)
        keys = self._placed(self.key_norm(keys) if self.qk_norm else keys, positions)
        keys = keys if self.score is None else self.relevance.remember(keys)
        return Heads(keys, split_heads(self.value(inputs), self.groups or self.heads))

    @checked
    def __call__(
        self,
        inputs: Float[Array, "B T E"],
        memory: Heads,
        sight: Sight = Sight(),  # noqa: B008
        *,
        causal: bool = False,
        cached: bool = False,
        asked: Asked | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[jax.Array, "B T W"], Float[jax.Array, "B h r S"] | None]:
        """Attends for inputs [B, T, E] over what `remember` gave.

        Args:
            causal: query t sees no key after it.
            cached: the keys are a cache, from position 0; `sight.positions` says where the queries stand in it.
            asked: weights that are wanted beside the context; nothing is paid by those who do not ask.
            deterministic: False in training: dropout draws from the rng stream "dropout".

        Returns:
            the output [B, T, width], and the weights [B, h, r, S] (before dropout), None unless asked.
        """
        queries = split_heads(self.query(inputs), self.heads)
        queries = self._placed(self.query_norm(queries) if self.qk_norm else queries, sight.positions)
        where = self._where(sight, memory.keys.shape[-2], causal, cached)
        memory = Heads(*(part.astype(queries.dtype) for part in memory))
        key = self.make_rng("dropout") if self.dropout and not deterministic else None
        attend = partial(self._fused, None if cached else self.implementation) if self.score is None else self._scored
        context, weights = attend(queries, memory, where, asked, key)
        return self.output(join_heads(context)), weights

    def _placed(self, vectors: jax.Array, positions: jax.Array | None) -> jax.Array:
        """Queries or keys [B, H, T, D], turned by their positions where the scheme is rotary."""
        if self.scheme != "rotary":
            return vectors
        return rotary(vectors, jnp.arange(vectors.shape[-2]) if positions is None else positions[:, None])

    def _where(self, sight: Sight, size: int, causal: bool, cached: bool) -> dict[str, Any]:
        """The arguments of `dot_product_attention` that say what is seen."""
        if self.scheme == "relative" and sight.relative is None:
            raise ValueError("scheme 'relative' needs its bias, from modules.RelativeBias, as Sight.relative; got None")
        bias = {"alibi": alibi(self.heads) if self.scheme == "alibi" else None, "relative": sight.relative}
        where: dict[str, Any] = {"mask": sight.mask, "lengths": sight.lengths, "segments": sight.segments}
        where["bias"] = bias.get(self.scheme)
        if not cached:
            return {**where, "causal": causal, "window": self.window}
        assert sight.positions is not None
        # Each row stands elsewhere in the cache, so that what it sees is a mask of its own: [B, 1, T, S].
        left, right = self.window or (size, size)
        distance = jnp.arange(size)[None, None] - sight.positions[..., None]
        seen = (-left <= distance) & (distance <= (0 if causal else right))
        if where["bias"] is not None:
            where["bias"] = where["bias"](sight.positions, jnp.arange(size)[None])
        return {**where, "mask": combine(sight.mask, seen[:, None])}

    def _fused(
        self,
        implementation: str | None,
        queries: jax.Array,
        memory: Heads,
        where: dict[str, Any],
        asked: Asked | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Scaled dot-product attention, on whichever path is fastest."""
        weights = None
        if asked is not None:
            heads = jnp.arange(self.heads) if asked.heads is None else asked.heads
            rows = jnp.arange(queries.shape[-2]) if asked.rows is None else asked.rows
            weights = attention_rows(queries, memory.keys, heads=heads, rows=rows, soft_cap=self.soft_cap, **where)
        noise: dict[str, Any] = {} if key is None else {"dropout": self.dropout, "key": key}
        options = {"soft_cap": self.soft_cap, "implementation": implementation, **where, **noise}
        context = dot_product_attention(queries, memory.keys, memory.values, **options)
        return context, weights

    def _scored(
        self, queries: jax.Array, memory: Heads, where: dict[str, Any], asked: Asked | None, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Any score and alignment, over the whole [B, H, T, S]."""
        scores = self.relevance(queries, memory.keys)
        if where["bias"] is not None:
            bias = where["bias"]
            scores = scores + (bias(*map(jnp.arange, scores.shape[-2:]))[None] if callable(bias) else bias)
        weights = self.alignment(scores, _mask(where, *scores.shape[-2:]))
        dropped = weights
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - self.dropout, weights.shape)
            dropped = jnp.where(kept, weights / (1 - self.dropout), 0)
        if asked is None:
            return read(dropped, memory.values), None
        heads, rows = (slice(None) if choice is None else choice for choice in asked)
        return read(dropped, memory.values), weights[:, heads][:, :, rows]


class _Relevance(nn.Module):
    """One head's score."""

    make: Callable[[], Any]

    def setup(self) -> None:
        self.score = self.make()

    def remember(self, keys: jax.Array) -> jax.Array:
        return self.score.remember(keys)

    def __call__(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        return self.score(queries, keys)


def _mask(where: dict[str, Any], queries: int, keys: int) -> jax.Array | None:
    """All that hides a key from a query, as one mask."""
    future = causal_mask(queries, keys) if where.get("causal") else None
    band = window_mask(queries, keys, *where["window"]) if where.get("window") else None
    apart = None if where["segments"] is None else segments_mask(*where["segments"])[:, None]
    real = None if where["lengths"] is None else padding(where["lengths"], keys)[:, None]
    return combine(where["mask"], real, apart, future, band)


def append(cache: Heads, new: Heads, positions: Int[Array, "B T"]) -> Heads:
    """A cache [B, G, S, D] with new keys and values [B, G, T, D] written at their positions, row by row.

    A row's positions are distinct and at least 0. What does not fit into the S positions is left out, so that padding
    at the end of a prompt spoils nothing.
    """

    def one(buffer: jax.Array, rows: jax.Array, positions: jax.Array) -> jax.Array:
        return buffer.at[:, positions].set(rows.astype(buffer.dtype), mode="drop", unique_indices=True)

    return Heads(*(jax.vmap(one)(buffer, rows, positions) for buffer, rows in zip(cache, new, strict=True)))


def _check(module: MultiHeadAttention) -> None:
    groups = module.groups or module.heads
    if module.heads < 1 or module.heads % groups:
        raise ValueError(f"heads is a multiple of groups; got {module.heads} and {groups}")
    if module.head_width is None and module.width % module.heads:
        raise ValueError(f"width is a multiple of heads, or head_width is given; got {module.width} and {module.heads}")
    if module.scheme not in SCHEMES:
        raise ValueError(f"scheme is one of {', '.join(SCHEMES)}; got {module.scheme!r}")
    if not 0 <= module.dropout < 1:
        raise ValueError(f"dropout lies in [0, 1); got {module.dropout}")
    fused = module.soft_cap is not None or module.implementation not in (None, "plain") or groups != module.heads
    if module.score is not None and fused:
        raise ValueError("a score of its own takes no soft_cap, no groups and no implementation but 'plain'")
    if module.score is None and module.alignment is not softmax:
        raise ValueError("an alignment other than softmax needs a score, such as modules.ScaledDot")

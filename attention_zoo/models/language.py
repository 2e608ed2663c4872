"""The causal language model: a Transformer decoder that looks at nothing but what is written."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from attention_zoo.functional.losses import projected_cross_entropy
from attention_zoo.functional.masks import reach, within
from attention_zoo.models.layers import Layers
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.embedding import Embedding
from attention_zoo.modules.multihead import Asked, Sight
from attention_zoo.notation import Array, Float, Int, checked


class LanguageCache(NamedTuple):
    """Keys and values of what is written, layer by layer, and how many tokens that is, [B]; leaves lead with B."""

    written: Any
    length: jax.Array


class CausalLM(Layers, kw_only=True):
    """`p(y_t | y_1 ... y_{t-1})` (Radford 2018; with rotary positions, RMS norms and SwiGLU that of Touvron 2023).

    vocabulary: N. tied: the embedding is the output layer too. scaled: embeddings are multiplied by sqrt(D).
    """

    vocabulary: int
    tied: bool = True
    scaled: bool = False

    def setup(self) -> None:
        initializer = nn.initializers.normal(self.width**-0.5 if self.scaled else 0.02)
        self.embedding = Embedding(self.vocabulary, self.width, dtype=self.dtype, initializer=initializer)
        self.learned, self.relative = self.make_positions(), self.make_relative(causal=True)
        self.blocks = self.stack(self.layers, causal=True)
        self.drop = nn.Dropout(self.dropout)
        if not self.tied:
            self.output = Dense(self.vocabulary, use_bias=False, dtype=self.dtype)

    @checked
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        deterministic: bool = True,
        segments: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        asked: Asked | None = None,
    ) -> tuple[Float[jax.Array, "B T N"], list[Any]]:
        """The logits of the token after each, [B, T, N], and the attention weights that were asked for.

        Args:
            tokens: [B, T]; padding stands at the end, and what it holds changes nothing before it.
            segments, positions: numbers and positions of sequences that are packed in one row, see `data.packing`.
        """
        features, seen = self._features(tokens, deterministic, segments, positions, asked)
        return self.logits(features), seen

    def start(self, batch: int, size: int | None = None) -> LanguageCache:
        """The cache before the first token, with room for `size` tokens (`longest` by default).

        Raises:
            ValueError: room for more tokens than positions that are learnt.
        """
        size = self.longest if size is None else size
        if self.positions == "learned" and size > self.longest:
            raise ValueError(f"start: {self.longest} positions are learnt (longest); got room for {size} tokens")
        written = self.empty_cache(self.blocks, batch, size)
        return LanguageCache(written, jnp.zeros(batch, jnp.int32))

    @checked
    def extend(
        self,
        cache: LanguageCache,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[jax.Array, "B T N"], LanguageCache]:
        """Takes the next tokens [B, T], a prompt or a part of one: logits [B, T, N] and the new cache.

        Args:
            lengths: how many of a row's tokens are real, [B]; all by default. What follows them is overwritten next.

        Raises:
            ValueError: more tokens than the cache has room for. (What is written already is known only at run time:
                tokens beyond its room spoil the result.)
        """
        room = jax.tree.leaves(cache.written)[0].shape[-2]
        if tokens.shape[1] > room:
            raise ValueError(f"extend: the cache has room for {room} tokens; got {tokens.shape[1]}")
        positions = cache.length[:, None] + jnp.arange(tokens.shape[1])[None]
        sight = Sight(positions=positions, relative=None if self.relative is None else self.relative())
        vectors = self._embed(tokens, positions, deterministic)
        features, written, _ = self.blocks(vectors, sight, cache.written, deterministic=deterministic)
        taken = tokens.shape[1] if lengths is None else lengths
        return self.logits(features), LanguageCache(written, cache.length + taken)

    @checked
    def step(
        self, cache: LanguageCache, tokens: Int[Array, "B"]
    ) -> tuple[Float[jax.Array, "B N"], LanguageCache, None]:
        """Takes one token a row, [B]: logits [B, N], the new cache; for `functional.search`."""
        logits, cache = self.extend(cache, tokens[:, None])
        return logits[:, 0], cache, None

    def loss(
        self,
        tokens: jax.Array,
        targets: jax.Array,
        mask: jax.Array,
        deterministic: bool = True,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Loss and token accuracy of targets [B, T], without ever holding all logits; see `projected_cross_entropy`."""
        features, _ = self._features(
            tokens, deterministic, segments, positions, None, within(reach(mask), mask.shape[1])
        )
        kernel = (
            self.embedding.kernel() if self.tied else self.output.variables["params"]["kernel"].astype(features.dtype)
        )
        return projected_cross_entropy(features, kernel, None, targets, mask)

    @checked
    def logits(self, features: Float[Array, "B T D"]) -> Float[jax.Array, "B T N"]:
        """What the output layer makes of features."""
        return self.embedding.attend(features) if self.tied else self.output(features)

    def _features(
        self,
        tokens: jax.Array,
        deterministic: bool,
        segments: Any,
        positions: Any,
        asked: Asked | None,
        real: jax.Array | None = None,
    ) -> tuple[jax.Array, list[Any]]:
        counted = self.count(tokens) if positions is None else positions
        apart = None if segments is None else (segments, segments)
        sight = Sight(None, apart, positions, None if self.relative is None else self.relative())
        vectors = self._embed(tokens, counted, deterministic)
        features, _, seen = self.blocks(vectors, sight, asked=asked, deterministic=deterministic, real=real)
        return features, seen

    def _embed(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        vectors = self.embedding(tokens)
        vectors = vectors * jnp.asarray(self.width**0.5, vectors.dtype) if self.scaled else vectors
        return self.drop(self.place(vectors, positions, self.learned), deterministic=deterministic)

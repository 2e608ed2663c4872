"""The Transformer encoder, and what is put on top of it: masked language model, classifier, sentence embedding."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.masks import within
from attention_zoo.models.layers import Layers
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.embedding import Embedding, OneHotEmbedding
from attention_zoo.modules.multihead import Asked, Sight
from attention_zoo.modules.transformer import ACTIVATIONS
from attention_zoo.notation import Array, Float, Int, checked

POOLING = ("first", "mean")


class Encoder(Layers, kw_only=True):
    """Tokens to vectors that know their context (Devlin 2019's, with `norm_first=False` and learned positions).

    vocabulary: N. types: kinds of segments that have a vector each (BERT has 2), 0 for none. embedding_norm: a norm
    after the embeddings, as in BERT. one_hot: tokens enter as one-hot vectors of width D, which nothing is learnt of.

    Raises:
        ValueError: a field is not one of its names, or one-hot vectors are narrower than the vocabulary.
    """

    vocabulary: int
    types: int = 0
    embedding_norm: bool = False
    one_hot: bool = False

    def setup(self) -> None:
        if self.one_hot:
            if self.vocabulary > self.width:
                raise ValueError(f"one_hot needs width >= vocabulary; got {self.width} and {self.vocabulary}")
            self.embedding: Any = OneHotEmbedding(self.width, dtype=self.dtype)
        else:
            self.embedding = Embedding(
                self.vocabulary, self.width, dtype=self.dtype, initializer=nn.initializers.normal(0.02)
            )
        if self.types:
            self.type_embedding = Embedding(
                self.types, self.width, dtype=self.dtype, initializer=nn.initializers.normal(0.02)
            )
        if self.embedding_norm:
            self.norm_embedded = self.norm_maker()()
        self.learned, self.relative = self.make_positions(), self.make_relative(causal=False)
        self.blocks = self.stack(self.layers)
        self.drop = nn.Dropout(self.dropout)

    @checked
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        lengths: Int[Array, "B"],
        types: Int[Array, "B S"] | None = None,
        deterministic: bool = True,
        segments: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        asked: Asked | None = None,
    ) -> tuple[Float[jax.Array, "B S D"], list[Any]]:
        """Reads tokens [B, S].

        Args:
            lengths: how many of a row are real, [B]; what the others hold changes nothing.
            types: kinds of segments, [B, S]; all 0 by default.
            segments, positions: numbers and positions of sequences that are packed in one row, see `data.packing`.
            asked: whose attention weights are wanted.

        Returns:
            vectors [B, S, D], which mean nothing where there is padding, and the weights that were asked for, layer by
            layer.
        """
        counted = self.count(tokens) if positions is None else positions
        vectors = self.embedding(tokens)
        if self.types:
            vectors = vectors + self.type_embedding(jnp.zeros_like(tokens) if types is None else types)
        vectors = self.place(vectors, counted, self.learned)
        vectors = self.norm_embedded(vectors) if self.embedding_norm else vectors
        vectors = self.drop(vectors, deterministic=deterministic)
        apart = None if segments is None else (segments, segments)
        bias = None if self.relative is None else self.relative()
        sight = Sight(segments=apart, positions=positions, relative=bias, lengths=lengths)
        # The first position is read of empty rows too, by pooling.
        real = within(jnp.maximum(lengths, 1), tokens.shape[1])
        options: Any = {"deterministic": deterministic, "real": real}
        outputs, _, seen = self.blocks(vectors, sight, asked=asked, **options)
        return outputs, seen


class MaskedLM(nn.Module):
    """Masked language model: which token stood there? (Devlin 2019, section 3.1.)

    `logits = E norm(f(W x + b)) + c`, with the encoder's own embeddings E.
    """

    encoder: Encoder

    def setup(self) -> None:
        if self.encoder.one_hot:
            raise ValueError("a masked language model needs learned embeddings, for its output layer; one_hot has none")
        self.transform = Dense(self.encoder.width, dtype=self.encoder.dtype)
        self.norm = self.encoder.norm_maker()()
        self.bias = self.param("bias", nn.initializers.zeros, (self.encoder.vocabulary,))

    @checked
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        lengths: Int[Array, "B"],
        types: Int[Array, "B S"] | None = None,
        deterministic: bool = True,
    ) -> Float[jax.Array, "B S N"]:
        """Logits of every position, [B, S, N]; those of padding mean nothing."""
        vectors, _ = self.encoder(tokens, lengths, types, deterministic)
        hidden = self.norm(ACTIVATIONS[self.encoder.activation](self.transform(vectors)))
        logits = self.encoder.embedding.attend(hidden)
        return logits + self.bias.astype(logits.dtype)[None, None]


class Classifier(nn.Module):
    """One class for a whole sequence.

    pooling: "first" takes the first position's vector (BERT's [CLS]), "mean" the mean of the real ones. pooler: a
    layer `tanh(W x + b)` in between, as in BERT. dropout: before the last layer.
    """

    encoder: Encoder
    classes: int
    pooling: str = "first"
    pooler: bool = True
    dropout: float = 0.0

    def setup(self) -> None:
        if self.pooling not in POOLING:
            raise ValueError(f"pooling is one of {', '.join(POOLING)}; got {self.pooling!r}")
        if self.pooler:
            self.pool = Dense(self.encoder.width, dtype=self.encoder.dtype)
        self.output = Dense(self.classes, dtype=self.encoder.dtype)
        self.drop = nn.Dropout(self.dropout)

    @checked
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        lengths: Int[Array, "B"],
        types: Int[Array, "B S"] | None = None,
        deterministic: bool = True,
        asked: Asked | None = None,
    ) -> tuple[Float[jax.Array, "B C"], list[Any]]:
        """Logits of the classes [B, C], and the attention weights that were asked for, layer by layer."""
        vectors, seen = self.encoder(tokens, lengths, types, deterministic, asked=asked)
        pooled = vectors[:, 0] if self.pooling == "first" else mean(vectors, lengths)
        pooled = jnp.tanh(self.pool(pooled)) if self.pooler else pooled
        return self.output(self.drop(pooled, deterministic=deterministic)), seen


class SentenceEmbedding(nn.Module):
    """The mean of a sentence's vectors, of length one (Reimers 2019): their dot product is the cosine similarity."""

    encoder: Encoder
    normalise: bool = True

    @checked
    def __call__(
        self, tokens: Int[Array, "B S"], lengths: Int[Array, "B"], deterministic: bool = True
    ) -> Float[jax.Array, "B D"]:
        """Sentences [B, S] to vectors [B, D]; an empty one is all zeros."""
        vectors, _ = self.encoder(tokens, lengths, None, deterministic)
        pooled = mean(vectors, lengths)
        if not self.normalise:
            return pooled
        norm = jnp.sqrt(jnp.sum(jnp.square(pooled), -1, keepdims=True))
        return pooled / jnp.maximum(norm, 1e-12)


def mean(vectors: Float[Array, "B S D"], lengths: Int[Array, "B"], dtype: Dtype = jnp.float32) -> jax.Array:
    """The mean of each row's real vectors, [B, D], summed in float32; zeros for an empty row."""
    real = within(lengths, vectors.shape[1])[..., None]
    total = jnp.sum(jnp.where(real, vectors, 0), 1, dtype=jnp.promote_types(dtype, vectors.dtype))
    return (total / jnp.maximum(lengths, 1)[:, None]).astype(vectors.dtype)

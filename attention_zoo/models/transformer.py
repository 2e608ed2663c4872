"""The Transformer of Vaswani 2017 that translates: an encoder, and a decoder that looks at what it read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.losses import projected_cross_entropy
from attention_zoo.functional.masks import reach, within
from attention_zoo.models.layers import Layers
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.embedding import Embedding
from attention_zoo.modules.multihead import Asked, Sight
from attention_zoo.notation import Array, Bool, Float, Int, checked


class TransformerCache(NamedTuple):
    """What decoding carries; all leaves lead with the batch axis.

    written: keys and values of the target so far, layer by layer. length: how many are written, [B]. memory: what
    each layer remembers of the source. source_lengths: how much of it is real, [B].
    """

    written: Any
    length: jax.Array
    memory: Any
    source_lengths: jax.Array


class Packed(NamedTuple):
    """Where the sequences of a packed batch lie, see `data.packing`: numbers (0 = padding) and positions.

    source_segments [B, S], source_positions [B, S], target_segments [B, T], target_positions [B, T].
    """

    source_segments: jax.Array
    source_positions: jax.Array
    target_segments: jax.Array
    target_positions: jax.Array


class Transformer(Layers, kw_only=True):
    """Encoder-decoder of self-attention (Vaswani 2017).

    decoder_layers: as many as `layers` where None. shared: source and target have one embedding; tied: it is the
    output layer too. scaled: embeddings are multiplied by sqrt(D) (section 3.4). output_bias: of the output layer,
    also where that is tied. aligned: the decoder layer whose heads' mean weights, over the source, are the alignment
    of `step` and `extend` (Garg 2019 takes the last but one).
    """

    source_vocabulary: int
    target_vocabulary: int
    decoder_layers: int | None = None
    shared: bool = False
    tied: bool = True
    scaled: bool = True
    output_bias: bool = False
    aligned: int = -1

    def setup(self) -> None:
        if self.shared and self.source_vocabulary != self.target_vocabulary:
            sizes = f"{self.source_vocabulary} and {self.target_vocabulary}"
            raise ValueError(f"shared embeddings need one vocabulary; got {sizes}")
        # Scaled by sqrt(D) they are of size one; and as an output layer they give logits of size one.
        initializer = nn.initializers.normal(self.width**-0.5)
        make: dict[str, Any] = {"width": self.width, "dtype": self.dtype, "initializer": initializer}
        self.target_embedding = Embedding(self.target_vocabulary, **make)
        if not self.shared:
            self.source_embedding = Embedding(self.source_vocabulary, **make)
        self.source_positions, self.target_positions = self.make_positions(), self.make_positions()
        self.source_relative, self.target_relative = self.make_relative(causal=False), self.make_relative(causal=True)
        self.encoder = self.stack(self.layers)
        self.decoder = self.stack(self.decoder_layers or self.layers, causal=True, cross=True)
        self.drop = nn.Dropout(self.dropout)
        if not self.tied:
            self.output = Dense(self.target_vocabulary, use_bias=self.output_bias, dtype=self.dtype)
        elif self.output_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.target_vocabulary,))

    @checked
    def __call__(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, "B"],
        target_inputs: Int[Array, "B T"],
        deterministic: bool = True,
        packed: Packed | None = None,
    ) -> tuple[Float[jax.Array, "B T N"], Alignment]:
        """Teacher forcing: the logits of every target step, given the tokens before it.

        Args:
            source: tokens [B, S]; source_lengths: how many are real, [B].
            target_inputs: the target shifted right, [B, T]; its padding may hold anything.
            packed: where the sequences lie when rows hold several; source_lengths is then of the whole row.

        Returns:
            logits [B, T, N] and the alignment [B, T, S], see `aligned`.
        """
        features, alignment = self._forced(source, source_lengths, target_inputs, deterministic, packed)
        return self.logits(features), alignment

    @checked
    def encode(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, "B"],
        deterministic: bool = True,
        packed: Packed | None = None,
        asked: Asked | None = None,
    ) -> tuple[Float[jax.Array, "B S D"], list[Any]]:
        """Annotations of the source [B, S, D], and the weights of each layer that were asked for."""
        own = None if packed is None else packed.source_positions
        segments = None if packed is None else (packed.source_segments, packed.source_segments)
        embedding = self.target_embedding if self.shared else self.source_embedding
        vectors = self._embed(embedding, source, own, self.source_positions, deterministic)
        bias = _bias(self.source_relative)
        sight = Sight(segments=segments, positions=own, relative=bias, lengths=source_lengths)
        options: Any = {"deterministic": deterministic, "real": within(source_lengths, source.shape[1])}
        annotations, _, seen = self.encoder(vectors, sight, asked=asked, **options)
        return annotations, seen

    @checked
    def start(
        self, source: Int[Array, "B S"], source_lengths: Int[Array, "B"], deterministic: bool = True
    ) -> TransformerCache:
        """Reads the sources once: the cache before the first target token, with room for `longest` of them."""
        annotations, _ = self.encode(source, source_lengths, deterministic)
        batch = source.shape[0]
        return TransformerCache(
            self.empty_cache(self.decoder, batch, self.longest),
            jnp.zeros(batch, jnp.int32),
            self.decoder.remember(annotations),
            source_lengths,
        )

    @checked
    def extend(
        self,
        cache: TransformerCache,
        tokens: Int[Array, "B T"],
        deterministic: bool = True,
        lengths: Int[Array, "B"] | None = None,
    ) -> tuple[Float[jax.Array, "B T N"], TransformerCache, Alignment]:
        """Takes the next tokens [B, T], any number of them: logits [B, T, N], the new cache, the alignment [B, T, S].

        Args:
            lengths: how many of a row's tokens are real, [B]; all by default. What follows them is overwritten next.

        Raises:
            ValueError: more tokens than the cache has room for. (What is written already is known only at run time:
                tokens beyond `longest` spoil the result.)
        """
        if tokens.shape[1] > self.longest:
            raise ValueError(f"extend: the cache has room for {self.longest} tokens (longest); got {tokens.shape[1]}")
        positions = cache.length[:, None] + jnp.arange(tokens.shape[1])[None]
        vectors = self._embed(self.target_embedding, tokens, positions, self.target_positions, deterministic)
        sight = Sight(positions=positions, relative=_bias(self.target_relative))
        options: Any = {"cross_sight": Sight(lengths=cache.source_lengths), "deterministic": deterministic}
        features, written, seen = self.decoder(vectors, sight, cache.written, cache.memory, asked=Asked(), **options)
        taken = tokens.shape[1] if lengths is None else lengths
        cache = cache._replace(written=written, length=cache.length + taken)
        return self.logits(features), cache, self._alignment(seen)

    @checked
    def step(
        self, cache: TransformerCache, tokens: Int[Array, "B"]
    ) -> tuple[Float[jax.Array, "B N"], TransformerCache, Alignment]:
        """Takes one token a row, [B]: logits [B, N], the new cache, the alignment [B, S]; for `functional.search`."""
        logits, cache, alignment = self.extend(cache, tokens[:, None])
        return logits[:, 0], cache, jax.tree.map(lambda steps: steps[:, 0], alignment)

    def loss(
        self,
        source: jax.Array,
        source_lengths: jax.Array,
        target_inputs: jax.Array,
        targets: jax.Array,
        mask: jax.Array,
        label_smoothing: float = 0.0,
        deterministic: bool = True,
        packed: Packed | None = None,
    ) -> tuple[jax.Array, jax.Array, Alignment]:
        """Loss and token accuracy of targets [B, T] by teacher forcing, without ever holding all logits; the alignment.

        What follows the last target of a row that counts may be left out, and its alignment is not to be read. Equal
        to `losses.cross_entropy` of the logits that the call gives; see `losses.projected_cross_entropy`.
        """
        real = within(reach(mask), mask.shape[1])
        features, alignment = self._forced(source, source_lengths, target_inputs, deterministic, packed, real)
        kernel, bias = self._output(features.dtype)
        return *projected_cross_entropy(features, kernel, bias, targets, mask, label_smoothing), alignment

    @checked
    def logits(self, features: Float[Array, "B T D"]) -> Float[jax.Array, "B T N"]:
        """What the output layer makes of the decoder's features."""
        if not self.tied:
            return self.output(features)
        logits = self.target_embedding.attend(features)
        return logits + self.bias.astype(logits.dtype)[None, None] if self.output_bias else logits

    @checked
    def decode(
        self,
        annotations: Float[Array, "B S D"],
        source_lengths: Int[Array, "B"],
        target_inputs: Int[Array, "B T"],
        deterministic: bool = True,
        packed: Packed | None = None,
        asked: Asked | None = None,
        real: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[jax.Array, "B T D"], list[Any]]:
        """The decoder's features of a whole target, [B, T, D], and the weights of each layer that were asked for.

        Args:
            real: what is read of these, see `modules.FeedForward`; all by default.
        """
        own = None if packed is None else packed.target_positions
        vectors = self._embed(self.target_embedding, target_inputs, own, self.target_positions, deterministic)
        segments = None if packed is None else (packed.target_segments, packed.target_segments)
        across = None if packed is None else (packed.target_segments, packed.source_segments)
        own_sight = Sight(segments=segments, positions=own, relative=_bias(self.target_relative))
        sights = own_sight, Sight(segments=across, lengths=source_lengths)
        memory = self.decoder.remember(annotations)
        features, _, seen = self.decoder(vectors, sights[0], None, memory, sights[1], asked, deterministic, real)
        return features, seen

    def _forced(
        self,
        source: Any,
        source_lengths: Any,
        target_inputs: Any,
        deterministic: bool,
        packed: Packed | None,
        real: Any = None,
    ) -> tuple[jax.Array, Alignment]:
        annotations, _ = self.encode(source, source_lengths, deterministic, packed)
        # Under jit the weights cost nothing where nobody reads them.
        features, seen = self.decode(annotations, source_lengths, target_inputs, deterministic, packed, Asked(), real)
        return features, self._alignment(seen)

    def _embed(self, embedding: Any, tokens: Any, positions: Any, learned: Any, deterministic: bool) -> jax.Array:
        vectors = embedding(tokens)
        vectors = vectors * jnp.asarray(self.width**0.5, vectors.dtype) if self.scaled else vectors
        counted = self.count(tokens) if positions is None else positions
        return self.drop(self.place(vectors, counted, learned), deterministic=deterministic)

    def _alignment(self, seen: list[Any]) -> Alignment:
        return Alignment(seen[self.aligned].cross.mean(1))

    def _output(self, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
        if self.tied:
            return self.target_embedding.kernel(), self.bias.astype(dtype) if self.output_bias else None
        output = self.output.variables["params"]
        return output["kernel"].astype(dtype), output["bias"].astype(dtype) if self.output_bias else None


def _bias(module: Any) -> Any:
    return None if module is None else module()

"""The recurrent encoder-decoder: from the fixed context vector to attention, in one model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.losses import projected_cross_entropy
from attention_zoo.functional.masks import reach, within
from attention_zoo.functional.recurrent import State
from attention_zoo.models.mechanisms import ALIGNMENTS, check_mechanism, mechanism, scores_of
from attention_zoo.modules.decoder import READOUTS, DecoderState, RecurrentDecoder
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.embedding import Embedding, OneHotEmbedding
from attention_zoo.modules.memory import Memory
from attention_zoo.modules.recurrent import CELLS, RecurrentEncoder
from attention_zoo.notation import Array, Float, Int, checked

ATTENDING = ("bahdanau", "luong")
ATTENTIONS = ("none", "context", *ATTENDING)
BRIDGES = ("dense", "backward", "copy", "zeros")


class Cache(NamedTuple):
    """What decoding carries; all leaves lead with the batch axis.

    memory: what attention remembers of the source. context: the fixed context [B, V]. decoder: its state. Each
    is None where the model has none.
    """

    memory: Memory | None
    context: jax.Array | None
    decoder: DecoderState


class Seq2Seq(nn.Module):
    """Recurrent encoder-decoder (Sutskever 2014; Cho 2014; Bahdanau 2014; Luong 2015).

    attention: how the decoder sees the source.
        "none": its first state comes from the encoder's last, and nothing else (Sutskever 2014).
        "context": the encoder's last state, the fixed context, enters the cell at every step too (Cho 2014, whose
            readout sees it as well, beside y_{t-1}; here the output layer reads the state alone).
        "bahdanau": the previous state asks, the context enters the cell; deep output, or another `readout`.
        "luong": the new state asks; attentional vectors, with input feeding or without.
    score: a name of `mechanisms.SCORES`. alignment: a name of `mechanisms.ALIGNMENTS`. past: what the score knows of
        where attention looked before: "none", "location" (Chorowski 2015) or "coverage" (See 2017).
    score_units: hidden units of the additive scores and "concat", None for as many as the decoder's.
    filters, filter_width: of the past "location". fertility: N of the coverage's divisor (Tu 2016), 0 for none.
    window: D of the local alignments. chunk: positions in a chunk of MoChA. kept: positions that "top_k" keeps.
        temperature: of "tempered", "gumbel_softmax" and "straight_through". input_feeding: Luong's, on or off.
    score_bias, score_gain: of "monotonic" and "mocha", see `modules.Monotonic`. chunk_score: of MoChA's chunks, a name
        of `mechanisms.SCORES`.
    readout: what the output layer reads with "bahdanau", see `modules.RecurrentDecoder`: "deep", the default, "state"
        or "both".
    bridge: the decoder's first state. "dense": `tanh(W h)` of the encoder's last state; "backward": the same of
        its backward direction alone (Bahdanau A.2.2); "copy": layer by layer, for equal sizes (Luong);
        "zeros": the source reaches the decoder by attention, or the fixed context, alone.
    cell: "lstm", "gru" or "gru_reset_before", the GRU of Cho 2014 and Bahdanau 2014. encoder_units: of each direction.
    positions: the longest source, for the location score alone.
    one_hot: tokens enter as one-hot vectors instead of learned embeddings. shared: source and target have one
        embedding. tied: the output layer is the target embedding, and has no bias. output_bias: of an output layer of
        its own (Luong's has none).
    dropout: on embeddings, between layers and on the features.

    Raises:
        ValueError: a field is not one of its names, or sizes do not fit together; the message says which.
    """

    source_vocabulary: int
    target_vocabulary: int
    embedding: int = 256
    encoder_units: int = 256
    encoder_layers: int = 1
    decoder_units: int = 512
    decoder_layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = True
    attention: str = "bahdanau"
    score: str = "additive"
    alignment: str = "softmax"
    past: str = "none"
    score_units: int | None = None
    filters: int = 10
    filter_width: int = 11
    fertility: float = 0.0
    window: int = 10
    chunk: int = 3
    kept: int = 3
    temperature: float = 1.0
    input_feeding: bool = True
    score_bias: float = -1.0
    score_gain: float | None = None
    chunk_score: str = "additive"
    readout: str | None = None
    bridge: str = "dense"
    positions: int = 64
    one_hot: bool = False
    shared: bool = False
    tied: bool = False
    output_bias: bool = True
    dropout: float = 0.0
    dtype: Dtype | None = None

    def setup(self) -> None:
        _check(self)
        if not self.shared:
            self.source_embedding = self._embedding(self.source_vocabulary)
        self.target_embedding = self._embedding(self.target_vocabulary)
        self.encoder = RecurrentEncoder(
            self.encoder_units,
            self.encoder_layers,
            self.cell,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        self.decoder = RecurrentDecoder(
            self.decoder_units,
            mechanism(self, _annotation_width(self)) if self.attention in ATTENDING else None,
            self.decoder_layers,
            self.cell,
            query="previous" if self.attention == "bahdanau" else "current",
            input_feeding=self.attention == "luong" and self.input_feeding,
            readout=self.readout,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        if self.bridge in ("dense", "backward"):
            width = self.decoder_units * len(CELLS[self.cell][1]._fields)
            self.bridges = [Dense(width, dtype=self.dtype) for _ in range(self.decoder_layers)]
        if self.tied:
            self.to_embedding = Dense(self.embedding, use_bias=False, dtype=self.dtype)
        else:
            self.output = Dense(self.target_vocabulary, use_bias=self.output_bias, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    @checked
    def __call__(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, "B"],
        target_inputs: Int[Array, "B T"],
        deterministic: bool = True,
    ) -> tuple[Float[jax.Array, "B T N"], Alignment | None]:
        """Teacher forcing: the logits of every target step, given the tokens before it.

        Args:
            source: tokens [B, S]; source_lengths: how many are real, [B].
            target_inputs: the target shifted right, [B, T]; its padding may hold anything.

        Returns:
            logits [B, T, N] and the alignment [B, T, S], None without attention.
        """
        cache = self.start(source, source_lengths, deterministic)
        logits, _, alignment = self.extend(cache, target_inputs, deterministic)
        return logits, alignment

    @checked
    def start(self, source: Int[Array, "B S"], source_lengths: Int[Array, "B"], deterministic: bool = True) -> Cache:
        """Reads the sources once: the cache before the first target token."""
        embedding = self.target_embedding if self.shared else self.source_embedding
        embedded = self.drop(embedding(source), deterministic=deterministic)
        annotations, finals = self.encoder(embedded, source_lengths, deterministic)
        memory = None
        if self.decoder.attention is not None:
            memory = self.decoder.attention.remember(annotations, within(source_lengths, source.shape[-1]))
        context = finals[-1].hidden if self.attention == "context" else None
        return Cache(memory, context, self.decoder.start(self._first_states(finals), memory))

    @checked
    def extend(
        self, cache: Cache, tokens: Int[Array, "B T"], deterministic: bool = True
    ) -> tuple[Float[jax.Array, "B T N"], Cache, Alignment | None]:
        """Takes the next tokens [B, T], any number of them: logits [B, T, N], the new cache, the alignment."""
        features, decoder, alignment = self._features(cache, tokens, deterministic)
        logits = self.target_embedding.attend(features) if self.tied else self.output(features)
        return logits, cache._replace(decoder=decoder), alignment

    @checked
    def step(self, cache: Cache, tokens: Int[Array, "B"]) -> tuple[Float[jax.Array, "B N"], Cache, Alignment | None]:
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
    ) -> tuple[jax.Array, jax.Array, Alignment | None]:
        """Loss and token accuracy of targets [B, T] by teacher forcing, without ever holding all logits; the alignment.

        What follows the last target of a row that counts may be left out, and its alignment is not to be read. Equal
        to `losses.cross_entropy` of the logits that the call gives; see `losses.projected_cross_entropy`.
        """
        cache = self.start(source, source_lengths, deterministic)
        # Steps before one that counts are read, even where they do not count themselves.
        lengths = reach(mask)
        features, _, alignment = self._features(cache, target_inputs, deterministic, lengths)
        if self.tied:
            kernel, bias = self.target_embedding.kernel(), None
        else:
            output = self.output.variables["params"]
            kernel = output["kernel"].astype(features.dtype)
            bias = output["bias"].astype(features.dtype) if self.output_bias else None
        return *projected_cross_entropy(features, kernel, bias, targets, mask, label_smoothing), alignment

    def _embedding(self, vocabulary: int) -> nn.Module:
        if self.one_hot:
            return OneHotEmbedding(vocabulary, dtype=self.dtype)
        return Embedding(vocabulary, self.embedding, dtype=self.dtype)

    def _first_states(self, finals: tuple[State, ...]) -> tuple[State, ...]:
        if self.bridge == "copy":
            return finals
        last, kind = finals[-1].hidden, type(finals[-1])
        if self.bridge == "zeros":
            zeros = jnp.zeros((*last.shape[:-1], self.decoder_units), last.dtype)
            return (kind(*[zeros] * len(kind._fields)),) * self.decoder_layers
        source = last[..., self.encoder_units :] if self.bridge == "backward" else last
        return tuple(kind(*jnp.split(jnp.tanh(bridge(source)), len(kind._fields), -1)) for bridge in self.bridges)

    def _features(
        self, cache: Cache, tokens: jax.Array, deterministic: bool, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, DecoderState, Alignment | None]:
        """What the output layer sees, [B, T, ...], the decoder's next state and the alignment."""
        _check_rows(tokens, cache.decoder.layers[0].hidden)
        inputs = self.drop(self.target_embedding(tokens), deterministic=deterministic)
        if cache.context is not None:
            fixed = jnp.broadcast_to(cache.context[:, None], (*tokens.shape, cache.context.shape[-1]))
            inputs = jnp.concatenate([inputs, fixed], -1)
        features, decoder, alignment = self.decoder(inputs, cache.memory, cache.decoder, deterministic, lengths)
        features = self.drop(features, deterministic=deterministic)
        return self.to_embedding(features) if self.tied else features, decoder, alignment


@checked
def _check_rows(tokens: Int[Array, "B T"], hidden: Float[Array, "B D"]) -> None:
    """Tokens and the states of a cache have equal rows; the cache's annotation does not say so."""


def _annotation_width(model: Seq2Seq) -> int:
    return model.encoder_units * (2 if model.bidirectional else 1)


def _check(model: Seq2Seq) -> None:
    """Refuses fields that do not fit together, before any shape does."""
    choices = {"attention": ATTENTIONS, "bridge": BRIDGES, "cell": tuple(CELLS), "alignment": tuple(ALIGNMENTS)}
    for field, names in choices.items():
        if getattr(model, field) not in names:
            raise ValueError(f"{field} is one of {', '.join(names)}; got {getattr(model, field)!r}")
    check_mechanism(model)
    if not 0 <= model.dropout < 1:
        raise ValueError(f"dropout lies in [0, 1); got {model.dropout}")
    width = _annotation_width(model)
    attends = model.attention in ATTENDING
    if not attends and (model.alignment, model.past) != ("softmax", "none"):
        raise ValueError(
            f"attention {model.attention!r} aligns nothing: alignment is 'softmax' and past 'none', the defaults; "
            f"got {model.alignment!r} and {model.past!r}"
        )
    if not model.temperature > 0:
        raise ValueError(f"temperature is above zero; got {model.temperature}")
    for field, score in scores_of(model).items():
        if attends and score in ("dot", "scaled_dot") and width != model.decoder_units:
            sizes = f"{width} and {model.decoder_units}"
            raise ValueError(f"{field} {score!r} needs annotations as wide as the decoder; got {sizes}")
    if model.readout is not None and not (model.attention == "bahdanau" and model.readout in READOUTS["previous"]):
        allowed = ", ".join(READOUTS["previous"])
        raise ValueError(
            f"readout is one of {allowed} with attention 'bahdanau', and None with the others; got {model.readout!r} "
            f"and {model.attention!r}"
        )
    if model.attention == "bahdanau" and model.readout in (None, "deep") and model.decoder_units % 2:
        raise ValueError(
            "readout 'deep', the default with attention 'bahdanau', takes the larger of pairs: decoder_units is even; "
            f"got {model.decoder_units}"
        )
    if model.bridge == "copy" and (width, model.encoder_layers) != (model.decoder_units, model.decoder_layers):
        raise ValueError(
            f"bridge 'copy' needs equal sizes; got {model.encoder_layers} encoder layers of {width} and "
            f"{model.decoder_layers} decoder layers of {model.decoder_units}"
        )
    if model.bridge == "zeros" and model.attention == "none":
        raise ValueError("bridge 'zeros' and attention 'none': nothing of the source would reach the decoder")
    if model.bridge == "backward" and not model.bidirectional:
        raise ValueError("bridge 'backward' needs a bidirectional encoder")
    if model.shared and model.source_vocabulary != model.target_vocabulary:
        sizes = f"{model.source_vocabulary} and {model.target_vocabulary}"
        raise ValueError(f"shared embeddings need one vocabulary; got {sizes}")
    if model.tied and model.one_hot:
        raise ValueError("tied output needs learned embeddings; one_hot has none")

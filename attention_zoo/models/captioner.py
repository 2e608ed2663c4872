"""Show, Attend and Tell: a picture read into words, with soft, hard or latent attention over its grid."""

import math
from dataclasses import field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.latent import log_softmax, mixture
from attention_zoo.functional.loop import scan
from attention_zoo.functional.losses import log_likelihood
from attention_zoo.functional.recurrent import LSTMState
from attention_zoo.models.caption_attention import ATTENTIONS, LATENT, check_width, look, make_attention
from attention_zoo.modules.alignment import NOISE, Aligner
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.embedding import Embedding
from attention_zoo.modules.memory import Memory
from attention_zoo.modules.recurrent import RecurrentLayer
from attention_zoo.modules.scores import Additive
from attention_zoo.modules.vision import ConvEncoder, located
from attention_zoo.notation import Array, Bool, Float, Int, checked


class CaptionCache(NamedTuple):
    """What decoding carries; all leaves lead with B.

    memory: what attention remembers of the pictures. state: the LSTM's. attention: the mechanism's own state, None
    where it has none.
    """

    memory: Memory
    state: LSTMState
    attention: Any = None


class Writing(NamedTuple):
    """What teacher forcing gives beside the logits [B, T, N]: what the losses of hard attention ask for.

    alignment: as the words were written, leaves [B, T, ...]; the log-probability of a location is 0 where the expected
    context stood in for the sample. log_weights: `log alpha` [B, T, S]; None where attention has a state or noise of
    its own. values: the learned baseline [B, T], of what was known before a location was drawn; None without.
    """

    logits: jax.Array
    alignment: Alignment
    log_weights: jax.Array | None
    values: jax.Array | None


class Variational(NamedTuple):
    """What the inference network knows, [B, T, S]: its scores, `log alpha`, and `log p(y_t | s)` of each location."""

    scores: jax.Array
    log_weights: jax.Array
    log_likelihoods: jax.Array


class _Steps(NamedTuple):
    """The steps of the recurrence, [B, T, ...]."""

    before: jax.Array
    hidden: jax.Array
    gate: jax.Array
    context: jax.Array
    logits: Any  # of the locations [B, T, S], None where attention has a state or noise of its own
    alignment: Alignment


class Captioner(nn.Module):
    """Show, Attend and Tell (Xu 2015): `alpha_t` from `h_{t-1}`; a gated context enters the LSTM and the deep output.

    `z_t = beta_t sum_s alpha_ts a_s` with `beta_t = sigmoid(w h_{t-1})`, `h_t = LSTM([E y_{t-1}; z_t], h_{t-1})`,
    `p(y_t) = softmax(L_o tanh(E y_{t-1} + L_h h_t + L_z z_t))` (the authors' code has the tanh, their eq. 7 does not).
    The first state comes from the mean annotation, by two layers.

    vocabulary: N. encoder: a module from pictures to annotations [B, rows, columns, V]; None where annotations
        themselves are given in place of pictures. It has a dtype of its own.
    attention: what the context is.
        "soft": the expectation.
        "hard": one location, sampled in training and the most probable one at inference.
        "gumbel_softmax", "straight_through": a relaxed sample in training; at inference as soft, and as hard. "soft"
            with the alignment of that name is the same thing: take that for a past, and this for `Writing.log_weights`.
        "marginal": the location of each word is a latent variable of the output layer, `p(y_t) = sum_s alpha_ts
            p(y_t | s)`, summed exactly; the LSTM reads the expected context (Deng 2018). The logits are `log p`.
        "variational": the same model, trained by an inference network that sees y_t (`variational`).
    score: a name of `mechanisms.SCORES`. alignment: a name of `mechanisms.ALIGNMENTS`, but for the local ones, whose
        windows have no neighbours above and below; a monotonic walk goes in reading order, row by row. What is hard or
        marginal takes alignments that are functions, and each location has its weight as its probability: one of weight
        zero is never drawn. What is variational or relaxed takes the softmax. past: "none", "location" (its filters run
        along the rows, one after the other) or "coverage", of soft attention. See `Seq2Seq` for chunk, chunk_score,
        score_bias, score_gain, kept, filters, filter_width and fertility.
    embedding, units, attention_units: widths of E, of the LSTM, of scores that have one. located: annotations know
        their places, see `modules.vision.located`. baseline: there is a learned one. temperature: of relaxed samples,
        and of "tempered". best: locations that latent attention sums over at inference; None is all. positions: the
        largest grid, for the score "location" alone. annotation_width: V, for the score "cosine" where no ConvEncoder
        tells it. dropout: on embeddings and before the output layer, of latent attention the same units everywhere.

    Raises:
        ValueError: a field is not one of its names or out of range, or fields do not fit together.
    """

    vocabulary: int
    encoder: nn.Module | None = field(default_factory=ConvEncoder)
    attention: str = "soft"
    embedding: int = 64
    units: int = 128
    attention_units: int = 64
    located: bool = True
    baseline: bool = False
    temperature: float = 1.0
    best: int | None = None
    dropout: float = 0.0
    score: str = "additive"
    alignment: str = "softmax"
    past: str = "none"
    chunk: int = 3
    chunk_score: str = "additive"
    score_bias: float = -1.0
    score_gain: float | None = None
    kept: int = 3
    filters: int = 10
    filter_width: int = 11
    fertility: float = 0.0
    positions: int = 196
    annotation_width: int | None = None
    dtype: Dtype | None = None

    def setup(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention is one of {', '.join(ATTENTIONS)}; got {self.attention!r}")
        if not (0 <= self.dropout < 1 and self.temperature > 0 and (self.best is None or self.best >= 1)):
            given = self.dropout, self.temperature, self.best
            raise ValueError(f"dropout lies in [0, 1), temperature is above 0 and best at least 1; got {given}")
        self.embed = Embedding(self.vocabulary, self.embedding, dtype=self.dtype)
        self.attend = make_attention(self)
        self.cell = RecurrentLayer(self.units, dtype=self.dtype)
        self.enter = Dense(4 * self.units, use_bias=False, dtype=self.dtype)
        self.first_hidden = Dense(self.units, dtype=self.dtype)
        self.first_memory = Dense(self.units, dtype=self.dtype)
        self.gate = Dense(1, dtype=self.dtype)
        self.from_state = Dense(self.embedding, dtype=self.dtype)
        self.from_context = Dense(self.embedding, use_bias=False, dtype=self.dtype)
        self.output = Dense(self.vocabulary, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)
        # The mixture of a word is that of one thinned network.
        self.drop_everywhere = nn.Dropout(self.dropout, broadcast_dims=(-2,))
        if self.baseline:
            self.value = Dense(1)
        if self.attention == "variational":
            self.posterior = Additive(self.attention_units, dtype=self.dtype)

    @checked
    def __call__(
        self, images: Float[Array, "B Y X C"], tokens: Int[Array, "B T"], deterministic: bool = True
    ) -> tuple[Float[jax.Array, "B T N"], Alignment]:
        """Teacher forcing: logits [B, T, N] of every word, given the words before it, and where each one looked.

        Args:
            images: pictures, or annotations [B, rows, columns, V] if there is no encoder.
            tokens: the caption shifted right; its padding may hold anything.
        """
        cache = self.start(images, deterministic=deterministic)
        if self.is_initializing() and self.attention == "variational":
            self.variational(cache, tokens, tokens)
        logits, _, alignment = self.extend(cache, tokens, deterministic)
        return logits, alignment

    @checked
    def start(
        self,
        images: Float[Array, "B Y X C"],
        mask: Bool[Array, "B S"] | None = None,
        deterministic: bool = True,
    ) -> CaptionCache:
        """Looks at the pictures once: the cache before the first word. mask: True = a location that may be seen."""
        grid = jnp.asarray(images) if self.encoder is None else self.encoder(images)
        grid = located(grid) if self.located else grid
        check_width(self, grid.shape[-1])
        values = grid.reshape(len(grid), math.prod(grid.shape[1:-1]), grid.shape[-1])
        if self.dtype is not None:
            values = values.astype(self.dtype)
        seen = jnp.ones(values.shape[:2], bool) if mask is None else jnp.asarray(mask)
        values = jnp.where(seen[..., None], values, 0)
        mean = values.sum(1) / jnp.maximum(seen.sum(1, keepdims=True), 1).astype(values.dtype)
        state = LSTMState(jnp.tanh(self.first_hidden(mean)), jnp.tanh(self.first_memory(mean)))
        memory = self.attend.remember(values, seen)
        return CaptionCache(memory, state, self.attend.start(memory))

    @checked
    def extend(
        self, cache: CaptionCache, tokens: Int[Array, "B T"], deterministic: bool = True
    ) -> tuple[Float[jax.Array, "B T N"], CaptionCache, Alignment]:
        """Takes the next words [B, T], any number of them: logits [B, T, N], the new cache, where each one looked."""
        writing, cache = self._write(cache, tokens, None, deterministic)
        return writing.logits, cache, writing.alignment

    @checked
    def step(
        self, cache: CaptionCache, tokens: Int[Array, "B"]
    ) -> tuple[Float[jax.Array, "B N"], CaptionCache, Alignment]:
        """Takes one word a row, [B]: logits [B, N], the new cache, where it looked [B, S]; for `functional.search`."""
        logits, cache, alignment = self.extend(cache, tokens[:, None])
        return logits[:, 0], cache, jax.tree.map(lambda steps: steps[:, 0], alignment)

    @checked
    def write(
        self,
        cache: CaptionCache,
        tokens: Int[Array, "B T"],
        expected: Bool[Array, "B"] | None = None,
        deterministic: bool = False,
    ) -> Writing:
        """Teacher forcing from a cache, with what the losses of hard attention need.

        Args:
            expected: rows in which the expected context stands in for the sample (Xu's coin); None is no row.
        """
        return self._write(cache, tokens, expected, deterministic)[0]

    @checked
    def variational(
        self, cache: CaptionCache, tokens: Int[Array, "B T"], targets: Int[Array, "B T"], deterministic: bool = True
    ) -> Variational:
        """What the evidence lower bound is made of, see `functional.latent.variational_bound`.

        The inference network is an additive score whose query is `[h_{t-1}; E y_t]`.

        Args:
            tokens: the caption shifted right. targets: the caption.
        """
        embedded = self.drop(self.embed(tokens), deterministic=deterministic)
        steps, _ = self._run(cache, embedded, None, deterministic)
        query = jnp.concatenate([steps.before, self.embed(targets)], -1)
        scores = self.posterior(query, self.posterior.remember(cache.memory.values))
        logits = self._everywhere(steps, embedded, cache, deterministic)
        likelihoods = log_likelihood(logits, jnp.broadcast_to(targets[..., None], logits.shape[:-1]))
        return Variational(scores, log_softmax(steps.logits, cache.memory.mask[:, None]), likelihoods)

    def _write(
        self, cache: CaptionCache, tokens: jax.Array, expected: jax.Array | None, deterministic: bool
    ) -> tuple[Writing, CaptionCache]:
        embedded = self.drop(self.embed(tokens), deterministic=deterministic)
        steps, cache = self._run(cache, embedded, expected, deterministic)
        log_weights: Any = None if steps.logits is None else log_softmax(steps.logits, cache.memory.mask[:, None])
        if self.attention in LATENT:
            everywhere = self._everywhere(steps, embedded, cache, deterministic)
            logits = mixture(log_weights, everywhere, self.best if deterministic else None)
        else:
            logits = self._deep(embedded + self.from_state(steps.hidden), steps.context, deterministic)
        values = self.value(jax.lax.stop_gradient(steps.before))[..., 0] if self.baseline else None
        return Writing(logits, steps.alignment, log_weights, values), cache

    def _run(
        self, cache: CaptionCache, embedded: jax.Array, expected: jax.Array | None, deterministic: bool
    ) -> tuple[_Steps, CaptionCache]:
        """The recurrence over words [B, T, E], and the cache after it."""
        projected = self.cell.project(jnp.moveaxis(embedded, 1, 0))  # [T, B, G]
        state = cache.state, cache.attention
        if self.is_initializing():
            _step(self, cache.memory, expected, True, state, projected[0])  # makes the parameters
        module, variables = self.unbind()
        sampled = self.attention not in ("soft", *LATENT) or isinstance(self.attend.alignment, Aligner)
        noisy = sampled and not deterministic
        keys = jax.random.split(self.make_rng(NOISE), len(projected)) if noisy else None

        def step(constants: Any, state: Any, inputs: Any) -> Any:
            variables, memory, expected = constants
            projected, key = inputs
            rngs = None if key is None else {NOISE: key}
            return module.apply(variables, memory, expected, deterministic, state, projected, method=_step, rngs=rngs)

        (state, attention), found = scan(step, (variables, cache.memory, expected), state, (projected, keys))
        steps = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)
        return steps, cache._replace(state=state, attention=attention)

    def _deep(self, features: jax.Array, context: jax.Array, deterministic: bool) -> jax.Array:
        deep = self.drop(jnp.tanh(features + self.from_context(context)), deterministic=deterministic)
        return self.output(deep)

    def _everywhere(self, steps: _Steps, embedded: jax.Array, cache: CaptionCache, deterministic: bool) -> jax.Array:
        """The logits of every word at every location, [B, T, S, N]."""
        features = embedded + self.from_state(steps.hidden)
        contexts = steps.gate[..., None] * self.from_context(cache.memory.values)[:, None]  # [B, T, S, E]
        deep = self.drop_everywhere(jnp.tanh(features[:, :, None] + contexts), deterministic=deterministic)
        return self.output(deep)


def _step(module, memory, expected, deterministic, state, projected):  # type: ignore[no-untyped-def]
    """One word: where to look from h_{t-1}, then the LSTM with what is seen there."""
    (state, attention), before = state, state[0].hidden
    found, *looked, attention = look(module, before[:, None], memory, attention, expected, deterministic)
    gate = jax.nn.sigmoid(module.gate(before))
    context = gate * found[:, 0]
    state = module.cell.step(projected + module.enter(context), state)
    alignment, logits = jax.tree.map(lambda leaf: leaf[:, 0], looked)
    return (state, attention), _Steps(before, state.hidden, gate, context, logits, alignment)

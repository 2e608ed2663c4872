"""What every Transformer of the zoo is made of: the fields that choose its layers, and the stacks they make."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from attention_zoo.functional.positions import sinusoidal
from attention_zoo.models.mechanisms import ALIGNMENTS, SCORES
from attention_zoo.modules.multihead import MultiHeadAttention
from attention_zoo.modules.norms import NORMS
from attention_zoo.modules.positions import LearnedPositions, RelativeBias
from attention_zoo.modules.transformer import ACTIVATIONS, FeedForward, Stack, TransformerBlock

POSITIONS = ("sinusoidal", "sinusoidal_halves", "learned", "rotary", "alibi", "relative", "none")
# The alignments that are functions: a head carries no state from query to query.
STATELESS = ("softmax", "tempered", "sparsemax", "entmax15", "top_k")
IN_SCORES = ("rotary", "alibi", "relative")  # what knows positions inside attention, and adds no vectors


class Layers(nn.Module):
    """The fields that Transformers share; a model adds its own.

    width: D. layers: their number. heads, groups, head_width, qk_norm, window, soft_cap: see
        `modules.MultiHeadAttention`; hidden: width of the feed-forward layers; activation: see `modules.FeedForward`.
    positions: "sinusoidal" (Vaswani 2017; "sinusoidal_halves" has all sines before all cosines, as Marian), "learned",
        "rotary", "alibi", "relative" (T5; one bias for all layers) or "none".
    longest: positions that are learnt, and that a cache has room for.
    norm: "layer" or "rms". norm_first: pre-norm blocks and a norm after the last, instead of post-norm ones.
        epsilon: of the norms.
    dropout: of embeddings and of what blocks add; hidden_dropout and attention_dropout: of hidden units and weights.
    score, alignment: names of `models.mechanisms`: what stands in a head; "additive" has head_width units.
        temperature: of "tempered". kept: positions that "top_k" keeps.
    rematerialise, scan: see `modules.Stack`. implementation: see `functional.dot_product`.
    """

    width: int = 256
    layers: int = 4
    heads: int = 4
    hidden: int = 1024
    groups: int | None = None
    head_width: int | None = None
    qk_norm: bool = False
    window: tuple[int, int] | None = None
    soft_cap: float | None = None
    activation: str = "relu"
    use_bias: bool = True
    positions: str = "sinusoidal"
    longest: int = 512
    norm: str = "layer"
    norm_first: bool = True
    epsilon: float = 1e-6
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    score: str = "scaled_dot"
    alignment: str = "softmax"
    temperature: float = 1.0
    kept: int = 3
    rematerialise: bool = False
    scan: bool = False
    implementation: str | None = None
    dtype: Dtype | None = None

    def stack(self, layers: int, *, causal: bool = False, cross: bool = False) -> Stack:
        """Layers of this model: of an encoder, of a decoder (causal), of one that looks at a memory too (cross)."""
        check(self)
        part: dict[str, Any] = {"use_bias": self.use_bias, "dtype": self.dtype}
        attend = partial(
            MultiHeadAttention,
            self.heads,
            self.width,
            self.groups,
            self.head_width,
            qk_norm=self.qk_norm,
            soft_cap=self.soft_cap,
            dropout=self.attention_dropout,
            implementation=self.implementation,
            **self._relevance(),
            **part,
        )
        scheme = self.positions if self.positions in IN_SCORES else "none"
        feed = partial(FeedForward, self.hidden, self.width, self.activation, dropout=self.hidden_dropout, **part)
        block = partial(
            TransformerBlock,
            partial(attend, scheme=scheme, window=self.window),
            feed,
            self.norm_maker(),
            attend if cross else None,
            causal,
            self.norm_first,
            self.dropout,
        )
        last = self.norm_maker() if self.norm_first else None
        return Stack(layers, block, last, self.rematerialise, self.scan)

    def norm_maker(self) -> Callable[[], nn.Module]:
        """Makes one norm of this model's kind."""
        return partial(NORMS[self.norm], epsilon=self.epsilon, dtype=self.dtype)

    def _relevance(self) -> dict[str, Any]:
        """Score and alignment of a head; nothing for the usual ones, which have fused paths."""
        if (self.score, self.alignment) == ("scaled_dot", "softmax"):
            return {}
        each = self.head_width or self.width // self.heads
        sizes = SimpleNamespace(
            decoder_units=each,
            score_units=None,
            positions=self.longest,
            temperature=self.temperature,
            kept=self.kept,
            dtype=self.dtype,
        )
        return {"score": partial(SCORES[self.score], sizes, each), "alignment": ALIGNMENTS[self.alignment](sizes, each)}

    def make_positions(self) -> nn.Module | None:
        """What adds position vectors, if they are learnt."""
        return LearnedPositions(self.longest, self.width, self.dtype) if self.positions == "learned" else None

    def make_relative(self, causal: bool) -> nn.Module | None:
        """The bias of relative positions, one for all layers, where they are the scheme."""
        return RelativeBias(self.heads, bidirectional=not causal) if self.positions == "relative" else None

    def count(self, tokens: jax.Array) -> jax.Array:
        """Positions 0, 1, ... of tokens [B, T].

        Raises:
            ValueError: there are more of them than positions that are learnt.
        """
        if self.positions == "learned" and tokens.shape[1] > self.longest:
            raise ValueError(f"at most {self.longest} positions are learnt (longest); got {tokens.shape[1]} tokens")
        return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def place(self, vectors: jax.Array, positions: jax.Array, learned: Any) -> jax.Array:
        """Token vectors [B, T, D] with the vectors of their positions [B, T] added, where the scheme has vectors."""
        if self.positions == "learned":
            return vectors + learned(positions)
        if self.positions not in ("sinusoidal", "sinusoidal_halves"):
            return vectors
        return vectors + sinusoidal(
            positions, self.width, interleaved=self.positions == "sinusoidal", dtype=vectors.dtype
        )

    def empty_cache(self, stack: Stack, batch: int, size: int) -> Any:
        """A cache of a decoder's stack, for `size` positions."""
        each = self.head_width or self.width // self.heads
        return stack.start(batch, size, self.groups or self.heads, each, self.dtype or jnp.float32)


def check(model: Layers) -> None:
    """Refuses fields that are none of their names or out of range, before any shape does.

    Raises:
        ValueError: the field, what it may be, and what it is.
    """
    choices = {"positions": POSITIONS, "norm": tuple(NORMS), "activation": tuple(ACTIVATIONS)}
    choices |= {"score": tuple(SCORES), "alignment": STATELESS}
    for field, names in choices.items():
        if getattr(model, field) not in names:
            raise ValueError(f"{field} is one of {', '.join(names)}; got {getattr(model, field)!r}")
    if not model.temperature > 0:
        raise ValueError(f"temperature is above zero; got {model.temperature}")
    if model.kept < 1:
        raise ValueError(f"kept is at least 1; got {model.kept}")
    for field in ("dropout", "hidden_dropout", "attention_dropout"):
        if not 0 <= getattr(model, field) < 1:
            raise ValueError(f"{field} lies in [0, 1); got {getattr(model, field)}")

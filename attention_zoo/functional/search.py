"""Search: greedy decoding, sampling and beam search over a step function; no model is known here.

A model is `step(cache, tokens [B]) -> (logits [B, N], cache, alignment)`: `tokens` are the symbols written last,
`cache` is any pytree whose leaves have the leading axis B (states, keys and values, the encoder's memory), and
`alignment` is any pytree with leading axis B (as `alignment.Alignment` with weights [B, S]) or None. Every search is
one `lax.while_loop` that stops when all examples have ended; the caller jits it, with step, ids, lengths and
options static. Log-probabilities are float32 whatever the dtype of the logits.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from attention_zoo.functional.arrays import varying
from attention_zoo.functional.beam import Penalty, average, beam, gnmt, none, power
from attention_zoo.functional.stepping import (
    Decoded,
    Step,
    check,
    log_probabilities,
    preview,
    record,
    stacked,
    zero_unless,
)
from attention_zoo.notation import Array, Int, PyTree, checked

__all__ = ["Decoded", "Penalty", "Step", "average", "beam", "gnmt", "greedy", "none", "power", "sample"]

_Choose: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


@checked
def greedy(step: Step, cache: PyTree, start: Int[Array, "B"], *, end: int, max_length: int, pad: int = 0) -> Decoded:
    """Writes the most probable symbol at every step (the lowest id of equals), until END or `max_length`.

    Args:
        step: the model, see the head of this file.
        cache: its state before the first symbol, leaves [B, ...].
        start: the symbols fed first, [B].
        end: the id that ends a sequence.
        max_length: symbols written at most, END included.
        pad: the id that fills the positions after END.

    Returns:
        Decoded, leaves [B, ...].

    Raises:
        ValueError: `max_length` below 1, `end` outside the vocabulary, or a cache leaf without leading axis B.
    """
    return _write(step, cache, start, lambda log_probs, _: jnp.argmax(log_probs, axis=-1), end, max_length, pad)


@checked
def sample(
    step: Step,
    cache: PyTree,
    start: Int[Array, "B"],
    key: jax.Array,
    *,
    end: int,
    max_length: int,
    pad: int = 0,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
) -> Decoded:
    """Draws every symbol at random: `softmax(logits / temperature)`, cut to `top_k`, then to `top_p`, renormalised.

    `top_k` keeps the k most probable symbols. `top_p` (Holtzman 2020) keeps the smallest set of most probable symbols
    whose probabilities, after temperature and `top_k`, sum to p or more: the symbol that crosses p is kept, so that one
    always is. Of equally probable symbols lower ids are kept first. The scores are log-probabilities under the model
    itself (temperature 1, nothing cut), comparable with those of the other searches.

    Args:
        step, cache, start, end, max_length, pad: as in `greedy`.
        key: one random key; step t draws with `fold_in(key, t)`, so that a greater `max_length` changes nothing before
            it and, with JAX's default keys, neither do rows added at the end of the batch.
        temperature: above 0; below 1 sharpens.
        top_k: at least 1, or None for all symbols.
        top_p: in (0, 1], or None for all symbols.

    Returns:
        Decoded, leaves [B, ...].

    Raises:
        ValueError: an option out of its range, or as in `greedy`.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}; greedy() is its limit at 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 (or None for all symbols), got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1] (or None for all symbols), got {top_p}")

    def draw(log_probs: jax.Array, written: jax.Array) -> jax.Array:
        return _draw(jax.random.fold_in(key, written), log_probs / temperature, top_k, top_p)

    start, _ = varying(jnp.asarray(start), key)
    return _write(step, cache, start, draw, end, max_length, pad)


def _draw(key: jax.Array, scores: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """Draws ids [B] from softmax(scores [B, N]) within the `top_k` and the nucleus `top_p`."""
    if top_k is None and (top_p is None or top_p == 1):
        return jax.random.categorical(key, scores)
    size = scores.shape[-1]
    ranked, ids = lax.top_k(scores, size if top_k is None else min(top_k, size))
    if top_p is not None and top_p < 1:
        probabilities = jax.nn.softmax(ranked)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The first is kept by its rank, for rounding may leave "before" a little above a tiny top_p.
        kept = (before < top_p) | (lax.broadcasted_iota(jnp.int32, ranked.shape, 1) == 0)
        ranked = jnp.where(kept, ranked, -jnp.inf)
    rank = jax.random.categorical(key, ranked)
    return jnp.take_along_axis(ids, rank[:, None], axis=-1)[:, 0]


class _Written(NamedTuple):
    """The loop's state where each example has one hypothesis."""

    written: jax.Array  # [], steps taken
    cache: PyTree
    last: jax.Array  # [B]
    ended: jax.Array  # [B]
    lengths: jax.Array  # [B]
    scores: jax.Array  # [B]
    trace: PyTree  # (tokens [L, B], alignment [L, B, ...])


def _write(step: Step, cache: PyTree, start: Array, choose: _Choose, end: int, max_length: int, pad: int) -> Decoded:
    """Greedy decoding and sampling: `choose(log_probs [B, N], steps taken) -> ids [B]`, one hypothesis an example."""
    cache, tokens = varying(cache, jnp.asarray(start, jnp.int32))
    batch = tokens.shape[0]
    check(cache, batch, max_length)
    alignment, _ = preview(step, cache, tokens, end)

    def advance(state: _Written) -> _Written:
        logits, cache, alignment = step(state.cache, state.last)
        log_probs = log_probabilities(logits)
        chosen = choose(log_probs, state.written).astype(jnp.int32)
        gained = jnp.take_along_axis(log_probs, chosen[:, None], axis=-1)[:, 0]
        writing = ~state.ended
        last = jnp.where(writing, chosen, pad)
        return _Written(
            written=state.written + 1,
            cache=cache,
            last=last,
            ended=state.ended | (chosen == end),
            lengths=state.lengths + writing,
            scores=state.scores + jnp.where(writing, gained, 0),
            trace=record(state.trace, (last, zero_unless(writing, alignment)), state.written),
        )

    nothing = jnp.zeros(batch, jnp.int32)
    trace = (jnp.full((max_length, batch), pad, jnp.int32), stacked(alignment, (max_length, batch)))
    first = _Written(jnp.int32(0), cache, tokens, jnp.zeros(batch, bool), nothing, nothing.astype(jnp.float32), trace)
    (first,) = varying(first)
    final = lax.while_loop(lambda state: (state.written < max_length) & ~jnp.all(state.ended), advance, first)
    tokens, alignment = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), final.trace)
    return Decoded(tokens, final.lengths, final.scores, alignment)

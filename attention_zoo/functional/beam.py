"""Beam search over a step function, and the length penalties it divides scores by.

A penalty maps lengths (float32, END included) to positive divisors: score = sum log p / penalty(length).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from attention_zoo.functional.arrays import varying
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

Penalty: TypeAlias = Callable[[jax.Array], jax.Array]
_Tree = TypeVar("_Tree")
_Prolong: TypeAlias = Callable[[list[jax.Array], jax.Array], tuple[jax.Array, list[jax.Array], PyTree]]


def gnmt(alpha: float) -> Penalty:
    """The divisor `((5 + length) / 6)^alpha` (Wu 2016, eq. 14); 0.6 is usual, 0 penalises nothing."""
    return lambda length: ((5 + length) / 6) ** alpha


def power(alpha: float) -> Penalty:
    """The divisor `length^alpha`, as Marian and Hugging Face have it."""
    return lambda length: length**alpha


def average(length: jax.Array) -> jax.Array:
    """The divisor `length`: the score is the mean log-probability of a symbol."""
    return length


def none(length: jax.Array) -> jax.Array:
    """The divisor 1: the score is the log-probability of the sequence."""
    return jnp.ones_like(length)


_GNMT = gnmt(0.6)


class _Ended(NamedTuple):
    """Ended hypotheses, each leaf [B, K], best first; -inf marks a free place."""

    scores: jax.Array  # penalised
    lengths: jax.Array
    last: jax.Array  # the symbol written last
    parents: jax.Array  # the live hypothesis that it prolonged


class _Trace(NamedTuple):
    """What happened at each step: enough to walk back from a hypothesis to its start."""

    tokens: jax.Array  # [L, B, K], the symbol each live hypothesis was prolonged with
    parents: jax.Array  # [L, B, K], the live hypothesis of the step before that it prolonged
    alignment: PyTree  # [L, B, K, ...], in the order of the parents


class _Beam(NamedTuple):
    """The loop's state."""

    written: jax.Array  # [], steps taken
    cache: list[jax.Array]  # [B, K, ...], its leaves that change
    live: jax.Array  # [B, K], sum log p, best first; -inf marks a free place
    last: jax.Array  # [B, K], the symbols the live hypotheses end with
    ended: _Ended
    trace: _Trace


@checked
def beam(
    step: Step,
    cache: PyTree,
    start: Int[Array, "B"],
    *,
    end: int,
    max_length: int,
    width: int,
    penalty: Penalty = _GNMT,
    pad: int = 0,
) -> Decoded:
    """Looks for the K = `width` sequences of greatest `sum log p / penalty(length)`, best first.

    Each example has K live and K ended hypotheses. A step ranks all K*N continuations of the live ones by sum log p
    and takes the best 2K as candidates; at most K of them end, for each live hypothesis has one continuation by END.
    Those are scored, and the K best of them and of the hypotheses ended before are kept; of the others the K best
    live on. With width 1 there is only one candidate: where greedy decoding ends nothing lives on, so that the
    sequence is that of `greedy` whatever the penalty.

    The search stops after `max_length` steps, where the hypotheses still alive count as ended, without END; or when
    in every example K have ended and the best live one can no longer beat the worst of them. As log p <= 0, nothing
    that it grows into scores more than its sum log p / (greatest penalty of any length up to `max_length`), so that
    for every positive penalty stopping early returns what searching to `max_length` would.

    A hypothesis of probability zero is none: where fewer than K sequences exist, the places left have score -inf,
    length 0 and only `pad`. Alignments are those read along the surviving path. Leaves of the cache that `step`
    hands on untouched (the encoder's memory) are recognised while tracing: all K hypotheses read the same, and they are
    neither repeated nor reordered, unless a jitted `step` hides them.

    Args:
        step, cache, start, end, max_length, pad: as in `search.greedy`; `step` is mapped over K by `jax.vmap`.
        width: K, at least 1.
        penalty: lengths -> positive divisors: `gnmt(alpha)`, `power(alpha)`, `average`, `none` or your own.

    Returns:
        Decoded, leaves [B, K, ...].

    Raises:
        ValueError: `width` below 1, or as in `search.greedy`.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    prolong, first = _first(step, cache, jnp.asarray(start, jnp.int32), end, max_length, width)
    divisors = penalty(jnp.arange(1, max_length + 1, dtype=jnp.float32)).astype(jnp.float32)

    def searching(state: _Beam) -> jax.Array:
        settled = state.live[:, 0] / jnp.max(divisors) <= state.ended.scores[:, -1]
        return (state.written < max_length) & ~jnp.all(settled)

    def advance(state: _Beam) -> _Beam:
        return _advance(prolong, state, end, divisors)

    final = lax.while_loop(searching, advance, first)
    return _walk_back(_end_all(final, divisors), final.trace, pad)


def _first(
    step: Step, cache: PyTree, start: jax.Array, end: int, max_length: int, width: int
) -> tuple[_Prolong, _Beam]:
    """The step of all hypotheses, and the state before the first: one live hypothesis an example, of probability 1."""
    batch = start.shape[0]
    check(cache, batch, max_length)
    cache, start = varying(cache, start)
    alignment, constant = preview(step, cache, start, end)
    prolong, moving = _widened(step, cache, constant, width)
    places = jnp.zeros((batch, width), jnp.int32)
    live = jnp.full((batch, width), -jnp.inf, jnp.float32)
    first = _Beam(
        written=jnp.int32(0),
        cache=moving,
        live=live.at[:, 0].set(0),
        last=jnp.repeat(start[:, None], width, axis=1),
        ended=_Ended(live, places, places, places),
        trace=_Trace(*stacked((start, start, alignment), (max_length, batch, width))),
    )
    return prolong, varying(first, cache)[0]


def _widened(step: Step, cache: PyTree, constant: list[bool], width: int) -> tuple[_Prolong, list[jax.Array]]:
    """`step` of K hypotheses, `(moving, tokens [B, K]) -> (logits [B, K, N], moving, alignment)`, and its start.

    `moving` is what changes in the cache, leaves [B, K, ...]; what does not is there once for all K.
    """
    leaves, structure = jax.tree.flatten(cache)

    def changing(leaves: list[jax.Array]) -> list[jax.Array]:
        return [leaf for leaf, same in zip(leaves, constant, strict=True) if not same]

    def one(moving: list[jax.Array], tokens: jax.Array) -> tuple[jax.Array, list[jax.Array], PyTree]:
        left = iter(moving)
        whole = [leaf if same else next(left) for leaf, same in zip(leaves, constant, strict=True)]
        logits, after, alignment = step(jax.tree.unflatten(structure, whole), tokens)
        found: Any = jax.tree.structure(after)
        if found != structure:
            raise ValueError(f"beam_search: step gives a cache of another structure: {after} instead of {cache}")
        return logits, changing(jax.tree.leaves(after)), alignment

    start = [jnp.repeat(jnp.expand_dims(leaf, 1), width, axis=1) for leaf in changing(leaves)]
    return jax.vmap(one, in_axes=1, out_axes=1), start


def _advance(prolong: _Prolong, state: _Beam, end: int, divisors: jax.Array) -> _Beam:
    """One step: prolong, rank, and sort the candidates into ended and live."""
    logits, cache, alignment = prolong(state.cache, state.last)
    scores, tokens, parents = _candidates(log_probabilities(logits), state.live)
    ending = tokens == end
    lengths = jnp.full_like(tokens, state.written + 1)
    ended = _Ended(jnp.where(ending, scores / divisors[state.written], -jnp.inf), lengths, tokens, parents)
    live, places = lax.top_k(jnp.where(ending, -jnp.inf, scores), state.live.shape[1])
    tokens, parents = _pick((tokens, parents), places)
    return _Beam(
        written=state.written + 1,
        cache=_pick(cache, parents),
        live=live,
        last=tokens,
        ended=_best(state.ended, ended),
        trace=record(state.trace, _Trace(tokens, parents, alignment), state.written),
    )


def _candidates(log_probs: jax.Array, live: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best continuations of live hypotheses [B, K] by log_probs [B, K, N]: scores, symbols, parents, best first."""
    batch, width, vocabulary = log_probs.shape
    count = 1 if width == 1 else min(2 * width, width * vocabulary)
    # Ranked relative to the best live score: far from zero, float32 would no longer tell close symbols apart.
    best = jnp.where(jnp.isfinite(live[:, :1]), live[:, :1], 0)
    relative = (live - best)[:, :, None] + log_probs
    ranked, places = lax.top_k(relative.reshape(batch, width * vocabulary), count)
    return ranked + best, places % vocabulary, places // vocabulary


def _pick(tree: _Tree, places: jax.Array) -> _Tree:
    """Leaves [B, J, ...] at places [B, K] of their second axis: [B, K, ...]."""
    rows = jax.vmap(lambda leaf, place: leaf.at[place].get(mode="promise_in_bounds"))
    return jax.tree.map(lambda leaf: rows(leaf, places), tree)


def _best(ended: _Ended, more: _Ended) -> _Ended:
    """The K best of both, of equals those of `ended`: free places stay free, a settled example stays as it is."""
    both = jax.tree.map(lambda one, other: jnp.concatenate([one, other], axis=1), ended, more)
    _, places = lax.top_k(both.scores, ended.scores.shape[1])
    return _pick(both, places)


def _end_all(state: _Beam, divisors: jax.Array) -> _Ended:
    """Counts the hypotheses still alive as ended; where the search stopped early none is good enough."""
    step = state.written - 1
    lengths = jnp.full_like(state.last, state.written)
    return _best(state.ended, _Ended(state.live / divisors[step], lengths, state.last, state.trace.parents[step]))


def _walk_back(ended: _Ended, trace: _Trace, pad: int) -> Decoded:
    """Follows each hypothesis from its last symbol to its first, reading tokens and alignments of its own path."""

    def back(live: jax.Array, at: tuple[jax.Array, _Trace]) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
        written, step = at
        inside, last = written < ended.lengths, written == ended.lengths - 1
        tokens, parents = _pick((step.tokens, step.parents), live)
        tokens = jnp.where(inside, jnp.where(last, ended.last, tokens), pad)
        parents = jnp.where(last, ended.parents, parents)
        return parents, (tokens, zero_unless(inside, _pick(step.alignment, parents)))

    steps = jnp.arange(trace.tokens.shape[0])
    _, path = lax.scan(back, jnp.zeros_like(ended.lengths), (steps, trace), reverse=True)
    tokens, alignment = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), path)
    return Decoded(tokens, ended.lengths, ended.scores, alignment)

"""What greedy decoding, sampling and beam search share: the model they call, what they return, what they record."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from attention_zoo.notation import PyTree

Step: TypeAlias = Callable[[PyTree, jax.Array], tuple[jax.Array, PyTree, PyTree]]
_Tree = TypeVar("_Tree")


class Decoded(NamedTuple):
    """What a search wrote; L is `max_length`, and beam search has an axis K (best first) after B in every leaf.

    tokens: int32 [B, L], the symbols written (without START), END included, `pad` after it.
    lengths: int32 [B], symbols written, END included.
    scores: float32 [B], the sum of their log-probabilities under the model, divided by the penalty in beam search.
    alignment: what `step` returned when it wrote each symbol, [B, L, ...], zero after END; None if it returned None.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    alignment: PyTree


def log_probabilities(logits: jax.Array) -> jax.Array:
    """The float32 log-softmax of logits [B, N], whatever their dtype."""
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def check(cache: PyTree, batch: int, max_length: int) -> None:
    """Raises ValueError for a length below 1 or a cache leaf without the leading axis `batch`."""
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    for path, leaf in jax.tree.leaves_with_path(cache):
        if jnp.shape(leaf)[:1] != (batch,):
            name = "cache" + jax.tree_util.keystr(path)
            raise ValueError(f"{name} must have the leading axis {batch} of the tokens, got shape {jnp.shape(leaf)}")


def preview(step: Step, cache: PyTree, tokens: jax.Array, end: int) -> tuple[PyTree, list[bool]]:
    """The shapes of the alignment that `step` will return, and which cache leaves it hands on untouched.

    Raises:
        ValueError: `end` is not an id of the vocabulary.
    """
    traced, (logits, _, alignment) = jax.make_jaxpr(step, return_shape=True)(cache, tokens)
    if not 0 <= end < logits.shape[-1]:
        raise ValueError(f"end must be an id of the vocabulary, 0 to {logits.shape[-1] - 1}, got {end}")
    leaves = len(jax.tree.leaves(cache))
    given, returned = traced.jaxpr.invars[:leaves], traced.jaxpr.outvars[1 : 1 + leaves]  # after the logits
    return alignment, [before is after for before, after in zip(given, returned, strict=False)]


def stacked(shapes: _Tree, leading: tuple[int, ...]) -> _Tree:
    """Zeros to record leaves [B * ..., ...] in: their first axis is replaced by `leading`."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, leaf.dtype, shape=leading + leaf.shape[1:]), shapes)


def record(buffers: _Tree, values: _Tree, written: jax.Array) -> _Tree:
    """Writes `values` at step `written` of the buffers [L, ...], in place inside a compiled loop."""
    return jax.tree.map(
        lambda buffer, value: lax.dynamic_update_index_in_dim(buffer, value.reshape(buffer.shape[1:]), written, 0),
        buffers,
        values,
    )


def zero_unless(condition: jax.Array, tree: _Tree) -> _Tree:
    """Leaves [*c, ...] where `condition` [*c] holds, zero elsewhere."""

    def one(leaf: jax.Array) -> jax.Array:
        where = condition.reshape(condition.shape + (1,) * (leaf.ndim - condition.ndim))
        return jnp.where(where, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(one, tree)

"""Where the words of a captioner look: what its attention goes with, and one look at the grid."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.attend import read
from attention_zoo.functional.hard import likeliest_location, sample_location
from attention_zoo.functional.relaxed import gumbel_softmax, straight_through
from attention_zoo.functional.sparse import cooled
from attention_zoo.models.layers import STATELESS
from attention_zoo.models.mechanisms import ALIGNMENTS, check_mechanism, mechanism, scores_of
from attention_zoo.modules.alignment import NOISE, Aligner
from attention_zoo.modules.attention import Attention
from attention_zoo.modules.memory import Memory
from attention_zoo.modules.past import Past
from attention_zoo.modules.vision import ConvEncoder

# What each attention goes with. Cells stand in reading order, which is enough for a walk; a window needs neighbours.
# One location is drawn from, or summed over, what is a distribution by the scores alone. The variational bound is
# finite only where no location that the inference network may name has the weight zero.
ALIGNED = {
    "soft": tuple(name for name in ALIGNMENTS if not name.startswith("local")),
    "hard": STATELESS,
    "marginal": STATELESS,
    "variational": ("softmax",),
    "gumbel_softmax": ("softmax",),
    "straight_through": ("softmax",),
}
ATTENTIONS = tuple(ALIGNED)
LATENT = ("marginal", "variational")


def make_attention(model: Any) -> Attention:
    """The attention that the fields of a `Captioner` name, to be made in its `setup`.

    Raises:
        ValueError: a field is not one of its names, or fields do not fit together.
    """
    _check(model)
    given = {field.name: getattr(model, field.name) for field in fields(model)}
    sizes = SimpleNamespace(**given, decoder_units=model.units, score_units=model.attention_units)
    made = mechanism(sizes, _annotation_width(model) or 0)
    # Its parameters have the name of the field: they are where those of earlier captioners are.
    return Attention(made.score.clone(name="score", parent=model), made.alignment)


def _check(model: Any) -> None:
    check_mechanism(model)
    if model.alignment not in ALIGNED[model.attention]:
        allowed = ", ".join(ALIGNED[model.attention])
        raise ValueError(f"attention {model.attention!r} goes with alignment {allowed}; got {model.alignment!r}")
    if model.past != "none" and model.attention != "soft":
        raise ValueError(f"past {model.past!r} goes with attention 'soft'; got {model.attention!r}")
    given, made = model.annotation_width, _encoded_width(model)
    if given is not None and made is not None and given != made:
        raise ValueError(f"annotation_width is that of the encoder, {made}, or None; got {given}")
    for field, score in scores_of(model).items():
        if score == "cosine" and _annotation_width(model) is None:
            sentence = "asks how wide annotations are: annotation_width, where no ConvEncoder says it"
            raise ValueError(f"{field} 'cosine' {sentence}")


def _annotation_width(model: Any) -> int | None:
    """V as far as the fields tell it."""
    return model.annotation_width or _encoded_width(model)


def _encoded_width(model: Any) -> int | None:
    """V of a ConvEncoder; another encoder's fields may have the same names and mean something else."""
    features = model.encoder.features if isinstance(model.encoder, ConvEncoder) else ()
    return features[-1] if features else None


def check_width(model: Any, width: int) -> None:
    """Refuses annotations that do not fit the score.

    Raises:
        ValueError: they are wider or narrower than it needs.
    """
    for field, score in scores_of(model).items():
        if score in ("dot", "scaled_dot") and width != model.units:
            raise ValueError(
                f"{field} {score!r} needs annotations as wide as the state: units is {model.units}, they are {width}"
            )
        if score == "cosine" and width != _annotation_width(model):
            raise ValueError(f"{field} 'cosine' needs annotations of width {_annotation_width(model)}; got {width}")


def look(
    module: Any, query: jax.Array, memory: Memory, state: Any, expected: jax.Array | None, deterministic: bool
) -> tuple[jax.Array, Alignment, jax.Array | None, Any]:
    """One look, for a query [B, 1, D]: context [B, 1, V], alignment, logits, and attention's next state.

    The softmax of the logits [B, 1, S] is the distribution of locations; they are None where attention has a state or
    noise of its own. expected: rows in which the expected context stands in for the sample.
    """
    if isinstance(module.attend.score, Past) or isinstance(module.attend.alignment, Aligner):
        context, alignment, state = module.attend(query, memory, state, deterministic)
        return context, alignment, None, state
    scores, mask = module.attend.score(query, memory.keys), memory.mask[:, None]
    # Aligned in float32 at least: logarithms are of the weights before they are rounded.
    wide = module.attend.alignment(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), mask)
    logits, weights = _logits(module, scores, wide), wide.astype(scores.dtype)
    alignment = _choose(module, logits, mask, weights, expected, deterministic)
    return read(alignment.weights, memory.values), alignment, logits, state


def _logits(module: Any, scores: jax.Array, weights: jax.Array) -> jax.Array:
    """Scores of which the softmax is the weights; -inf, which is never drawn, where a weight is zero."""
    if module.alignment == "softmax":
        return scores
    possible = weights > 0
    # Not the logarithm of weights, whose gradient overflows where they underflow.
    if module.alignment == "tempered":
        return cooled(scores, possible, temperature=module.temperature)
    if module.alignment == "top_k":
        return jnp.where(possible, scores, -jnp.inf)
    return jnp.where(possible, jnp.log(jnp.where(possible, weights, 1)), -jnp.inf)


def _choose(
    module: Any,
    logits: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    expected: jax.Array | None,
    deterministic: bool,
) -> Alignment:
    """The weights, or a choice by the logits: weights [B, 1, S], log-probability and entropy of a location."""
    kind = module.attention
    if kind in ("soft", *LATENT) or (kind == "gumbel_softmax" and deterministic):
        return Alignment(weights)
    if deterministic:
        return _unless(expected, likeliest_location(logits, mask), weights)
    key = module.make_rng(NOISE)
    if kind == "gumbel_softmax":
        return Alignment(gumbel_softmax(logits, mask, key, temperature=module.temperature))
    if kind == "straight_through":
        return Alignment(straight_through(logits, mask, key, temperature=module.temperature))
    return _unless(expected, sample_location(logits, mask, key), weights)


def _unless(expected: jax.Array | None, choice: Alignment, weights: jax.Array) -> Alignment:
    """The choice; in rows where the expected context stands in for it, the weights, which choose nothing."""
    choice = choice._replace(weights=choice.weights.astype(weights.dtype))
    if expected is None:
        return choice
    rows, chosen = expected[:, None], (choice.log_prob, choice.entropy)
    weights = jnp.where(rows[..., None], weights, choice.weights)
    return Alignment(weights, *(jnp.where(rows, 0, jnp.asarray(leaf)) for leaf in chosen))

"""Small encoder-decoders for the tests: one of every mechanism, by name."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.models import Seq2Seq
from attention_zoo.models.mechanisms import ALIGNMENTS, SCORES
from tests.quick import quick

B, S, T, N_SOURCE, N_TARGET = 3, 7, 5, 13, 11
LENGTHS = (S, 4, 0)
SIZES = {"embedding": 5, "encoder_units": 3, "decoder_units": 6}
FAMILIES = {
    "context": {"attention": "context", "cell": "gru"},
    "bahdanau": {"attention": "bahdanau", "score": "additive"},
    "feeding": {"attention": "luong", "score": "general", "bridge": "copy"},
    "at_once": {"attention": "luong", "score": "dot", "input_feeding": False, "tied": True},
}
# What a mechanism alone is tested with reads the source in one direction, which compiles sooner.
FORWARD = {"bidirectional": False, "encoder_units": 6}
BAHDANAU = {"attention": "bahdanau", **FORWARD}
AT_ONCE = {"attention": "luong", "score": "general", "input_feeding": False, "window": 2, **FORWARD}
FEW = {"window": 2, "kept": 2, "temperature": 0.5}
# Every score but additive meets an alignment that hides few errors of scores; the other alignments have additive's.
# What "local_p" is without renormalising, other decoders below have.
PAIRS = dict.fromkeys(
    (alignment for alignment in ALIGNMENTS if alignment not in ("softmax", "local_p")), "additive"
) | {
    "tempered": "cosine",
    "gumbel_softmax": "scaled_dot",
    "local_m": "dot",
    "local_p_renormalised": "concat",
    "sparsemax": "additive_normalised",
    "entmax15": "location",
}
# Fields that only some alignments have, and readouts, which go with any.
WITH = {
    "monotonic": {"score_gain": 0.5, "readout": "state"},
    "mocha": {"chunk_score": "additive_normalised", "readout": "both"},
}
MECHANISMS = FAMILIES | {
    "none": {"attention": "none", **FORWARD},
    "bahdanau_deep": {"attention": "bahdanau", "cell": "gru_reset_before", "bridge": "backward", "decoder_layers": 2},
    **{
        f"bahdanau_{alignment}": {**BAHDANAU, "score": score, "alignment": alignment, **FEW, **WITH.get(alignment, {})}
        for alignment, score in PAIRS.items()
    },
    **{f"at_once_{name}": {**AT_ONCE, "alignment": name} for name in ("local_p", "mocha")},
    "feeding_local_p": {"attention": "luong", "score": "dot", "alignment": "local_p", "window": 1, **FORWARD},
    "bahdanau_past_location": {**BAHDANAU, "past": "location"},
    "bahdanau_past_fertility": {**BAHDANAU, "past": "coverage", "fertility": 2.0},
    "at_once_past_coverage": {**AT_ONCE, "past": "coverage", "alignment": "mocha"},
    "at_once_past_location": {**AT_ONCE, "past": "location", "alignment": "local_p"},
    "at_once_one_hot": {**AT_ONCE, "score": "additive", "one_hot": True},
}
assert set(PAIRS.values()) | {"general"} == set(SCORES)  # which is that of input feeding, and of all at once


@cache
def make(**fields):
    """A small model, its parameters, and a batch of sources (the last one empty) and targets; nobody changes them."""
    model = Seq2Seq(**{"source_vocabulary": N_SOURCE, "target_vocabulary": N_TARGET, **SIZES, **fields})
    generator = np.random.default_rng(0)
    source, target = generator.integers(4, N_SOURCE, (B, S)), generator.integers(4, N_TARGET, (B, T))
    source, lengths, target = map(jnp.int32, (source, LENGTHS, target))
    shapes = jax.eval_shape(model.init, jax.random.key(0), source, lengths, target)
    # Larger than the usual first values, so that attention is sharp and mistakes are visible; and no biases of zero.
    scales = jax.tree.map(lambda leaf: 2 / leaf.shape[0] ** 0.5 if leaf.ndim == 2 else 0.5, shapes)
    params = jax.tree.map(lambda leaf, scale: jnp.float32(generator.normal(0, scale, leaf.shape)), shapes, scales)
    return model, params, source, lengths, target


@cache
def family(name: str):
    """A model of `make`, its arguments, and compiled: (params, source, lengths, target) -> logits and alignment."""
    model, *arguments = make(**FAMILIES[name])
    return model, tuple(arguments), quick(model.apply)

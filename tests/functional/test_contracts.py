"""The contracts of the design, for every mechanism: each score with each alignment, read out by `attend`.

A new score or alignment is one more line in `SCORES` or `ALIGNMENTS`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import TypeCheckError

from attention_zoo.functional import masks, scores, sparse
from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.attend import attend, read
from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.recurrent import (
    GRUState,
    LSTMState,
    RecurrentWeights,
    gru,
    gru_cell,
    lstm,
    lstm_cell,
)

# One size, so that every mechanism is compiled once: examples, queries, source, width of the values, and the positions
# a location score knows.
B, T, S, V, L = 2, 3, 7, 13, 19
Arrays = dict[str, np.ndarray]


class Score(NamedTuple):
    """compute: (parameters, queries, keys) -> scores; widths of queries and keys; shapes of the parameters."""

    compute: Callable
    query: int
    key: int
    shapes: dict[str, tuple[int, ...]]


SCORES = {
    "dot": Score(lambda p, q, k: scores.dot(q, k), 11, 11, {}),
    "scaled_dot": Score(lambda p, q, k: scores.scaled_dot(q, k), 11, 11, {}),
    "general": Score(lambda p, q, k: scores.general(q, k, **p), 5, 11, {"weight": (5, 11)}),
    "concat": Score(lambda p, q, k: scores.concat(q, k, **p), 5, 11, {"weight": (17, 16), "energy": (17,)}),
    "additive": Score(lambda p, q, k: scores.additive(q, k, **p), 11, 11, {"energy": (11,)}),
    "normalised": Score(
        lambda p, q, k: scores.additive(q, k, scores.normalised_energy(**p)), 11, 11, {"energy": (11,), "gain": ()}
    ),
    "location": Score(lambda p, q, k: scores.location(q, **p, size=k.shape[-2]), 5, 11, {"weight": (5, L)}),
    "cosine": Score(lambda p, q, k: scores.cosine(q, k, **p), 11, 11, {"sharpness": ()}),
}
ALIGNMENTS = {
    "softmax": softmax,
    "sparsemax": sparse.sparsemax,
    "entmax15": sparse.entmax15,
    "top_k": partial(sparse.top_k, k=3),
    "tempered": partial(sparse.tempered, temperature=0.5),
}
# Every score with softmax, and every other alignment with one score: what align does knows nothing of the score.
MECHANISMS = [(score, "softmax") for score in SCORES] + [
    ("general", align) for align in ALIGNMENTS if align != "softmax"
]
every_mechanism = pytest.mark.parametrize(("score", "align"), MECHANISMS)


def attention(score: str, align: str, inputs: Arrays, mask: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """One mechanism on `inputs` (queries, keys, values and the parameters of the score): context and weights."""
    parameters = {name: inputs[name] for name in SCORES[score].shapes}
    compute = partial(SCORES[score].compute, parameters)
    context, alignment = attend(
        inputs["queries"], inputs["keys"], inputs["values"], mask, score=compute, align=ALIGNMENTS[align]
    )
    return context, alignment.weights


# What is compiled goes to NumPy where it is indexed: of jax's arrays, every index is a program of its own.
@cache
def compiled(score: str, align: str) -> Callable:
    return jax.jit(partial(attention, score, align))


@cache
def compiled_gradient(score: str, align: str) -> Callable:
    """(inputs, mask, cotangents of context and weights) -> gradients of the inputs."""

    @jax.jit
    def gradient(inputs: Arrays, mask: np.ndarray, cotangents: tuple[np.ndarray, np.ndarray]) -> Arrays:
        return jax.vjp(lambda inputs: attention(score, align, inputs, mask), inputs)[1](cotangents)[0]

    return gradient


def draw(score: str, seed: int = 0) -> tuple[Arrays, tuple[np.ndarray, np.ndarray]]:
    """Random inputs of a mechanism, and cotangents of its context and weights, in float32."""
    shapes = {"queries": (B, T, SCORES[score].query), "keys": (B, S, SCORES[score].key), "values": (B, S, V)}
    normal = np.random.default_rng(seed).normal
    inputs = {name: np.array(normal(size=shape), np.float32) for name, shape in (shapes | SCORES[score].shapes).items()}
    return inputs, (np.float32(normal(size=(B, T, V))), np.float32(normal(size=(B, T, S))))


def dirtied(inputs: Arrays, padding: np.ndarray, garbage: float, names: tuple[str, ...]) -> Arrays:
    """The inputs with garbage in the padding of the named ones."""
    return inputs | {name: np.where(padding[..., None], np.float32(garbage), inputs[name]) for name in names}


seeds = st.integers(0, 999)
lengths = st.lists(st.integers(0, S), min_size=B, max_size=B).map(np.array)
# Masks in which one row in four is empty.
rows = arrays(bool, (B, T, 1), elements=st.integers(0, 3).map(bool), fill=st.nothing())
mask_arrays = st.builds(np.logical_and, arrays(bool, (B, T, S), fill=st.nothing()), rows)
assert_close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
assert_equal = partial(jax.tree.map, np.testing.assert_array_equal)


@every_mechanism
@settings(max_examples=20)
@given(seed=seeds, mask=mask_arrays)
@example(seed=0, mask=np.zeros((B, T, S), bool))
def test_masks_and_empty_rows(score, align, seed, mask):
    inputs, cotangents = draw(score, seed)
    context, weights = jax.device_get(compiled(score, align)(inputs, mask))
    gradients = jax.device_get(compiled_gradient(score, align)(inputs, mask, cotangents))
    empty, unseen = ~mask.any(-1), ~mask.any(1)
    assert np.all(weights >= 0)
    assert_close(weights.sum(-1), ~empty)
    np.testing.assert_array_equal(weights[~mask], 0)
    np.testing.assert_array_equal(context[empty], 0)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients.values())
    np.testing.assert_array_equal(gradients["queries"][empty], 0)
    np.testing.assert_array_equal(gradients["keys"][unseen], 0)
    np.testing.assert_array_equal(gradients["values"][unseen], 0)
    if empty.all():
        jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, 0), gradients)


@every_mechanism
@settings(max_examples=20)
@given(seed=seeds, lengths=lengths, garbage=st.sampled_from([-1e4, 0.0, 1e-4, 1e4]))
def test_contents_of_padding_change_no_result_and_no_gradient(score, align, seed, lengths, garbage):
    inputs, cotangents = draw(score, seed)
    mask, padding = masks.padding(lengths, S), np.arange(S) >= lengths[:, None]
    dirty = dirtied(inputs, padding, garbage, ("keys", "values"))
    assert_equal(compiled(score, align)(dirty, mask), compiled(score, align)(inputs, mask))
    gradients = jax.device_get(compiled_gradient(score, align)(dirty, mask, cotangents))
    assert_equal(gradients, compiled_gradient(score, align)(inputs, mask, cotangents))
    np.testing.assert_array_equal(gradients["keys"][padding], 0)
    np.testing.assert_array_equal(gradients["values"][padding], 0)


@every_mechanism
@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_masked_keys_may_be_anything_going_forward(score, align, garbage):
    # Not values, nor keys in a gradient: there a weight of zero meets them in a product, and 0 * NaN is NaN.
    inputs, _ = draw(score)
    mask, padding = masks.padding(np.array([4, 0]), S), np.arange(S) >= np.array([[4], [0]])
    dirty = dirtied(inputs, padding, garbage, ("keys",))
    assert_equal(compiled(score, align)(dirty, mask), compiled(score, align)(inputs, mask))


@every_mechanism
def test_padding_to_another_size_changes_no_result(score, align):
    inputs, _ = draw(score)
    short = inputs | {name: inputs[name][:, :5] for name in ("keys", "values")}
    context, weights = compiled(score, align)(short, np.ones((B, 1, 5), bool))
    padded_context, padded_weights = jax.device_get(compiled(score, align)(inputs, masks.padding(np.array([5, 5]), S)))
    assert_close(padded_context, context)
    assert_close(padded_weights[..., :5], weights)
    np.testing.assert_array_equal(padded_weights[..., 5:], 0)


@cache
def compiled_vmap(score: str, align: str) -> Callable:
    axes = dict.fromkeys(("queries", "keys", "values"), 0) | dict.fromkeys(SCORES[score].shapes)
    return jax.jit(jax.vmap(partial(attention, score, align), in_axes=(axes, 0)))


@every_mechanism
@settings(max_examples=10)
@given(seed=seeds, mask=mask_arrays)
def test_batched_equals_vmap_of_the_single_example(score, align, seed, mask):
    inputs, _ = draw(score, seed)
    jax.tree.map(assert_close, compiled_vmap(score, align)(inputs, mask), compiled(score, align)(inputs, mask))


@every_mechanism
@settings(max_examples=5)
@given(seed=seeds, mask=mask_arrays)
def test_compiled_equals_eager(score, align, seed, mask):
    inputs, _ = draw(score, seed)
    jax.tree.map(assert_close, attention(score, align, inputs, mask), compiled(score, align)(inputs, mask))


@pytest.mark.parametrize(("score", "align"), [pair for pair in MECHANISMS if pair[0] != "location"])
@settings(max_examples=10)
@given(seed=seeds, mask=mask_arrays, order=st.permutations(range(S)))
def test_the_order_of_the_source_does_not_matter(score, align, seed, mask, order):
    inputs, _ = draw(score, seed)
    shuffled = inputs | {name: inputs[name][:, order] for name in ("keys", "values")}
    context, weights = jax.device_get(compiled(score, align)(inputs, mask))
    other_context, other_weights = compiled(score, align)(shuffled, mask[..., order])
    assert_close(other_context, context)
    assert_close(other_weights, weights[..., order])


@every_mechanism
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_given_dtype_comes_back(score, align, dtype, float64):
    # float64 is on: float32 must not become it.
    inputs, cotangents = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, dtype), draw(score))
    mask = jax.ShapeDtypeStruct((B, T, S), bool)
    results = jax.eval_shape(partial(attention, score, align), inputs, mask)
    gradients = jax.eval_shape(compiled_gradient(score, align), inputs, mask, cotangents)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((results, gradients))} == {dtype}


@every_mechanism
def test_export(score, align):
    inputs, _ = draw(score)
    mask = np.ones((B, T, S), bool)
    exported = jax.export.export(compiled(score, align))(inputs, mask)
    jax.tree.map(assert_close, exported.call(inputs, mask), compiled(score, align)(inputs, mask))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def weights(kind: str = "lstm", **shapes: tuple[int, ...]) -> RecurrentWeights:
    gates = {"lstm": 44, "gru": 33}[kind]
    right = {"input": (5, gates), "recurrent": (11, gates), "bias": (gates,), "recurrent_bias": (gates,)}
    return RecurrentWeights(**{name: zeros(*shape) for name, shape in (right | shapes).items()})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("layer", "kind"), [(lstm, "lstm"), (gru, "gru"), (partial(gru, reset_after=False), "gru")])
def test_recurrent_layers_give_back_the_dtype(layer, kind, dtype, float64):
    def run(inputs, weights):
        results, pull_back = jax.vjp(partial(layer, lengths=np.array([S, 0])), inputs, weights)
        return results, pull_back(results)

    arguments = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, dtype), (zeros(B, S, 5), weights(kind)))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(jax.eval_shape(run, *arguments))} == {dtype}


SHOWN, IDS = np.ones((T, S), bool), np.zeros((B, T), int)
WRONG = [
    ("keys", scores.dot, [zeros(T, 5), zeros(S, 11)]),
    ("keys", scores.scaled_dot, [zeros(B, T, 5), zeros(3, S, 5)]),
    ("weight", scores.general, [zeros(T, 5), zeros(S, 11), zeros(11, 5)]),
    ("keys", scores.additive, [zeros(T, 5), zeros(S, 11), zeros(5)]),
    ("energy", scores.additive, [zeros(T, 5), zeros(S, 5), zeros(1, 5)]),
    ("gain", scores.normalised_energy, [zeros(5), zeros(5)]),
    ("energy", scores.concat, [zeros(T, 5), zeros(S, 11), zeros(17, 16), zeros(16)]),
    ("weight", scores.location, [zeros(T, 5), zeros(11, L), S]),
    ("keys", scores.cosine, [zeros(T, 5), zeros(S, 11)]),
    ("mask", softmax, [zeros(T, S), SHOWN.T]),
    ("mask", softmax, [zeros(T, S), zeros(T, S)]),
    ("scores", softmax, [np.zeros((T, S), int)]),
    ("values", read, [zeros(T, S), zeros(T, V)]),
    ("values", attend, [zeros(T, 5), zeros(S, 5), zeros(T, V)]),
    ("mask", attend, [zeros(B, T, 5), zeros(B, S, 5), zeros(B, S, V), np.ones((B, S), bool)]),
    ("lengths", masks.within, [zeros(B), S]),
    ("keys", masks.segments, [IDS, np.zeros((3, S), int)]),
    ("targets", cross_entropy, [zeros(B, T, 5), IDS.T, IDS == 0]),
    ("mask", cross_entropy, [zeros(B, T, 5), IDS, IDS]),
    ("inputs", lstm, [zeros(5), weights()]),
    ("lengths", lstm, [zeros(B, S, 5), weights(), None, np.array([1, 2, 3])]),
    ("input", lstm, [zeros(B, S, 7), weights()]),
    ("bias", lstm, [zeros(B, S, 5), weights(bias=(11,))]),
    ("recurrent_bias", gru, [zeros(B, S, 5), weights("gru", recurrent_bias=(11,))]),
    ("recurrent", gru, [zeros(B, S, 5), weights("lstm")]),
    ("hidden", gru, [zeros(B, S, 5), weights("gru"), GRUState(zeros(B, 13))]),
    ("memory", lstm, [zeros(B, S, 5), weights(), LSTMState(zeros(B, 11), zeros(3, 11))]),
    ("state", lstm, [zeros(B, S, 5), weights(), GRUState(zeros(B, 11))]),
    ("recurrent", lstm_cell, [zeros(B, 44), zeros(B, 33), LSTMState(zeros(B, 11), zeros(B, 11))]),
    ("recurrent", gru_cell, [zeros(B, 33), zeros(3, 33), GRUState(zeros(B, 11))]),
]


@pytest.mark.parametrize(("name", "function", "arguments"), WRONG, ids=[f"{f.__name__}-{n}" for n, f, _ in WRONG])
def test_a_wrong_shape_is_an_error_that_names_the_argument(name, function, arguments):
    with pytest.raises(TypeCheckError, match=rf"parameter '{name}'\.\nActual value: .*\nExpected type: "):
        function(*arguments)

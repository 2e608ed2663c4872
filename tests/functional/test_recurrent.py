"""LSTM and GRU: by hand, against torch and a plain loop, gradients, lengths, and the transformations of jax."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from attention_zoo.functional.recurrent import GRUState, LSTMState, RecurrentWeights, gru, gru_cell, lstm, lstm_cell

B, S, I, D = 3, 5, 2, 7  # noqa: E741 - the width of the inputs
FULL, SOME = np.array([S] * B), np.array([S, 2, 0])
LAYERS = {"lstm": lstm, "gru": gru}
CELLS = {"lstm": lstm_cell, "gru": gru_cell}
STATES = {"lstm": LSTMState, "gru": GRUState}
kinds = pytest.mark.parametrize("kind", LAYERS)
directions = pytest.mark.parametrize("reverse", [False, True])


def problem(kind: str, seed: int = 0) -> tuple[np.ndarray, RecurrentWeights, LSTMState | GRUState]:
    """Inputs [B, S, I], weights and a state to start from."""
    draw = np.random.default_rng(seed).normal
    gates = {"lstm": 4 * D, "gru": 3 * D}[kind]
    weights = RecurrentWeights(draw(size=(I, gates)), draw(size=(D, gates)), draw(size=gates), draw(size=gates))
    return draw(size=(B, S, I)), weights, STATES[kind](*(draw(size=(B, D)) for _ in STATES[kind]._fields))


def plain(kind: str, inputs, weights, state, lengths, reverse=False):
    """The layer as a loop that autodiff sees whole: no scan, no hoisted projection, no custom gradient."""
    outputs = [jnp.zeros_like(state.hidden)] * S
    for t in reversed(range(S)) if reverse else range(S):
        alive = (t < lengths)[:, None]
        projected = inputs[:, t] @ weights.input + weights.bias[None]
        new = CELLS[kind](projected, state.hidden @ weights.recurrent + weights.recurrent_bias[None], state)
        state = jax.tree.map(partial(jnp.where, alive), new, state)
        outputs[t] = jnp.where(alive, new.hidden, 0)
    return jnp.stack(outputs, axis=1), state


def assert_close(found: object, expected: object, tolerance: float = 1e-10) -> None:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, expected)


def test_lstm_cell_by_hand():
    # s(ln 3) = 3/4 lets in 3/4 of tanh(ln 2) = 3/5; s(0) keeps half of the memory; s(-ln 3) = 1/4 shows a quarter.
    inputs = np.log([1.0, 3.0, 2.0, 1.0])
    recurrent = np.log([3.0, 1 / 3, 1.0, 1 / 3])
    new = jax.jit(lstm_cell)(inputs, recurrent, LSTMState(np.array([9.0]), np.array([2.0])))
    np.testing.assert_allclose(new.memory, [1 + 0.45], rtol=1e-6)
    np.testing.assert_allclose(new.hidden, np.tanh([1.45]) / 4, rtol=1e-6)


def test_gru_cell_by_hand():
    # r = 3/4 of the recurrent ln 16 is ln 8; with the input's -ln 4 that is ln 2: candidate 3/5; z = 1/4 of the old 8.
    inputs = np.log([3.0, 1.0, 1 / 4])
    recurrent = np.log([1.0, 1 / 3, 16.0])
    new = jax.jit(gru_cell)(inputs, recurrent, GRUState(np.array([8.0])))
    np.testing.assert_allclose(new.hidden, [0.75 * 0.6 + 0.25 * 8], rtol=1e-6)


def test_two_steps_of_an_lstm_by_hand():
    # Gates forced by the bias: everything in, kept and shown; so the memory is the sum of tanh(x_t + h_{t-1}).
    kernel = np.array([[0.0, 0, 1, 0]])
    weights = RecurrentWeights(kernel, kernel, np.array([99.0, 99, 0, 99]), None)
    outputs, final = jax.device_get(jax.jit(lstm)(np.array([[0.5], [-1.0]]), weights))
    first = np.tanh(0.5)
    second = first + np.tanh(-1 + np.tanh(first))
    np.testing.assert_allclose(outputs[:, 0], [np.tanh(first), np.tanh(second)], rtol=1e-6)
    np.testing.assert_allclose(final.memory, [second], rtol=1e-6)


def torch_layers(kind: str, case: dict[str, jax.Array], lengths: jax.Array | None):
    """All layers and directions of a golden case, from arrays under torch's names."""
    outputs, finals = case["inputs"], []
    for layer in range(2):
        directions = []
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            if f"weights/weight_ih_{suffix}" in case:
                names = [f"weights/{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                weights = RecurrentWeights(*(case[name].T for name in names))
                initial = (case[f"initial_{part}"][len(finals)] for part in STATES[kind]._fields)
                reverse = suffix.endswith("reverse")
                hidden, final = LAYERS[kind](outputs, weights, STATES[kind](*initial), lengths, reverse=reverse)
                directions.append(hidden)
                finals.append(final)
        outputs = jnp.concatenate(directions, axis=-1) if directions else outputs
    finals = jax.tree.map(lambda *parts: jnp.stack(parts), *finals)
    return {"outputs": outputs} | {f"final_{part}": value for part, value in finals._asdict().items()}


@kinds
@pytest.mark.parametrize("packing", ["plain", "packed"])
def test_results_and_gradients_equal_torch(kind, packing, golden, float64):
    case = golden("recurrent", f"{kind}/{packing}")
    lengths = jnp.array(case["lengths"]) if packing == "packed" else None
    differentiated = {name: case[name] for name in case if f"gradients/{name}" in case}

    @jax.jit
    def run(arrays, cotangents):
        results, pull_back = jax.vjp(partial(torch_layers, kind, lengths=lengths), arrays)
        return results, pull_back(cotangents)[0]

    parts = ["outputs", *(f"final_{part}" for part in STATES[kind]._fields)]
    results, gradients = run(differentiated, {part: case[f"cotangents/{part}"] for part in parts})
    assert_close(results, {part: case[part] for part in parts})
    assert_close(gradients, {name: case[f"gradients/{name}"] for name in differentiated})


@cache
def both(kind: str, reverse: bool) -> Callable:
    """Compiled: (results, gradients of (inputs, weights, state)) of the layer, and the same of the plain loop."""

    @jax.jit
    def run(inputs, weights, state, lengths, cotangents):
        layers = [partial(layer, lengths=lengths, reverse=reverse) for layer in (LAYERS[kind], partial(plain, kind))]
        pairs = [jax.vjp(layer, inputs, weights, state) for layer in layers]
        return [(results, pull_back(cotangents)) for results, pull_back in pairs]

    return lambda *arguments: jax.device_get(run(*arguments))  # of jax's arrays, each index is a program of its own


def cotangents_of(kind: str, seed: int = 0, part: str = "both") -> tuple[np.ndarray, LSTMState | GRUState]:
    """Random cotangents of the results; zero but for those of `part`: outputs, final or both."""
    draw = np.random.default_rng(seed + 1000).normal
    outputs, final = draw(size=(B, S, D)), STATES[kind](*(draw(size=(B, D)) for _ in STATES[kind]._fields))
    return outputs * (part != "final"), jax.tree.map(lambda value: value * (part != "outputs"), final)


def product(cotangents: object, results: object) -> jax.Array:
    return sum((c * r).sum() for c, r in zip(*map(jax.tree.leaves, (cotangents, results)), strict=True))


parts = pytest.mark.parametrize("part", ["outputs", "final", "both"])


@kinds
@directions
@parts
@settings(max_examples=10)
@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(0, S), min_size=B, max_size=B))
@example(seed=0, lengths=[0, 0, 0])
@example(seed=0, lengths=[S, 1, S - 1])
def test_custom_gradient_equals_autodiff_of_a_plain_loop(kind, reverse, part, seed, lengths):
    with jax.enable_x64(True):
        arguments = *problem(kind, seed), np.array(lengths), cotangents_of(kind, seed, part)
        found, expected = both(kind, reverse)(*arguments)
    assert_close(found, expected)


@kinds
@directions
@parts
def test_gradients_of_every_argument_equal_finite_differences(kind, reverse, part, float64):
    cotangents, step = cotangents_of(kind, part=part), 1e-5
    arguments, structure = jax.tree.flatten(problem(kind))

    def run(index: int, way: object):
        moved = [*arguments[:index], arguments[index] + way, *arguments[index + 1 :]]
        return both(kind, reverse)(*jax.tree.unflatten(structure, moved), SOME, cotangents)[0]

    for index, gradient in enumerate(jax.tree.leaves(run(0, 0)[1])):
        way = np.random.default_rng(index).normal(size=gradient.shape)
        ahead, behind = (product(cotangents, run(index, distance * way)[0]) for distance in (step, -step))
        np.testing.assert_allclose(np.sum(gradient * way), (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-8)


@kinds
def test_gradients_without_optional_arguments_equal_finite_differences(kind, float64):
    inputs, weights, _ = problem(kind)
    arguments = inputs, weights._replace(recurrent_bias=None)
    check_grads(jax.jit(LAYERS[kind]), arguments, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@kinds
def test_second_derivative_equals_finite_differences(kind, float64):
    inputs, weights, state = problem(kind)
    way = np.random.default_rng(5).normal(size=inputs.shape)

    @jax.jit
    @jax.value_and_grad
    def slope(inputs):
        gradient = jax.grad(lambda x: jnp.sum(LAYERS[kind](x, weights, state, SOME)[0] ** 2))(inputs)
        return jnp.sum(gradient * way)

    difference = (slope(inputs + 1e-5 * way)[0] - slope(inputs - 1e-5 * way)[0]) / 2e-5
    np.testing.assert_allclose(np.vdot(slope(inputs)[1], way), difference, rtol=1e-7)


@cache
def compiled(kind: str, reverse: bool = False) -> Callable:
    run = jax.jit(partial(LAYERS[kind], reverse=reverse))
    return lambda *arguments: jax.device_get(run(*arguments))


@kinds
@directions
def test_a_finished_sequence_keeps_its_state_and_gives_zeros(kind, reverse):
    inputs, weights, state = jax.tree.map(np.float32, problem(kind))
    outputs, final = compiled(kind, reverse)(inputs, weights, state, np.array([2, 0, 2]))
    short, short_final = compiled(kind, reverse)(inputs[:, :2], weights, state, None)
    np.testing.assert_array_equal(outputs[:, 2:], 0)
    np.testing.assert_array_equal(outputs[1], 0)
    jax.tree.map(lambda after, before: np.testing.assert_array_equal(after[1], before[1]), final, state)
    for b in (0, 2):
        own = jax.tree.map(lambda value, b=b: value[b], (outputs[:, :2], final))
        assert_close(own, jax.tree.map(lambda value, b=b: value[b], (short, short_final)), 1e-6)


@kinds
@directions
def test_padding_changes_nothing_and_receives_no_gradient(kind, reverse, float64):
    inputs, weights, state = problem(kind)
    lengths = np.array([0, 2, S - 1])
    padding = np.arange(S) >= lengths[:, None]
    garbage = np.where(padding[..., None], 1e3, inputs)
    clean, dirty = (both(kind, reverse)(x, weights, state, lengths, cotangents_of(kind))[0] for x in (inputs, garbage))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    np.testing.assert_array_equal(clean[1][0][padding], 0)
    assert np.all(clean[1][0][~padding] != 0)


@kinds
def test_reversed_is_forward_on_reversed_inputs(kind):
    inputs, weights, state = problem(kind)
    outputs, final = compiled(kind, True)(inputs, weights, state, FULL)
    flipped, flipped_final = compiled(kind)(inputs[:, ::-1], weights, state, FULL)
    assert_close((outputs[:, ::-1], final), (flipped, flipped_final), 1e-6)


@kinds
def test_the_final_state_carries_on(kind):
    inputs, weights, state = problem(kind)
    whole = compiled(kind)(inputs, weights, state, FULL)
    first, between = compiled(kind)(inputs[:, :2], weights, state, None)
    second, final = compiled(kind)(inputs[:, 2:], weights, between, None)
    assert_close((np.concatenate([first, second], axis=1), final), whole, 1e-6)


@kinds
def test_one_step_is_the_cell(kind):
    inputs, weights, state = problem(kind)
    outputs, final = compiled(kind)(inputs[:, :1], weights, state, None)
    projected = inputs[:, 0] @ weights.input + weights.bias
    expected = jax.jit(CELLS[kind])(projected, state.hidden @ weights.recurrent + weights.recurrent_bias, state)
    assert_close(final, expected, 1e-5)
    np.testing.assert_array_equal(outputs[:, 0], final.hidden)


@kinds
def test_starts_from_zeros_and_without_recurrent_bias_by_default(kind):
    inputs, weights, state = problem(kind)
    zeros, no_bias = jax.tree.map(np.zeros_like, (state, weights.recurrent_bias))
    expected = compiled(kind)(inputs, weights._replace(recurrent_bias=no_bias), zeros, FULL)
    assert_close(compiled(kind)(inputs, weights._replace(recurrent_bias=None)), expected, 1e-6)


@kinds
def test_a_single_example_equals_its_row_of_the_batch(kind):
    inputs, weights, state = problem(kind)
    lengths = np.array([0, 2, S])
    mapped = jax.jit(jax.vmap(LAYERS[kind], in_axes=(0, None, 0, 0)))(inputs, weights, state, lengths)
    assert_close(mapped, compiled(kind)(inputs, weights, state, lengths), 1e-6)


@kinds
def test_gradient_of_vmap_over_weights(kind, float64):
    inputs, weights, state = problem(kind)
    cotangents = cotangents_of(kind)
    stacked = jax.tree.map(lambda value: np.stack([0.5 * value, value]), weights)

    def loss(weights: RecurrentWeights) -> jax.Array:
        return product(cotangents, LAYERS[kind](inputs, weights, state, SOME))

    found = jax.jit(jax.grad(lambda weights: jax.vmap(loss)(weights).sum()))(stacked)
    expected = both(kind, False)(inputs, weights, state, SOME, cotangents)[0][1][1]
    assert_close(jax.tree.map(lambda value: value[1], found), expected)


@kinds
def test_gradient_through_checkpoint(kind, float64):
    arguments, cotangents = problem(kind), cotangents_of(kind)

    def loss(*arguments: object) -> jax.Array:
        return product(cotangents, jax.checkpoint(LAYERS[kind])(*arguments, SOME))

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
    assert_close(found, both(kind, False)(*arguments, SOME, cotangents)[0][1])


@kinds
def test_export(kind):
    inputs, weights, _ = jax.tree.map(np.float32, problem(kind))
    run = jax.jit(lambda inputs, *weights: jax.tree.leaves(LAYERS[kind](inputs, RecurrentWeights(*weights))))
    exported = jax.export.export(run)(inputs, *weights)
    assert_close(exported.call(inputs, *weights), jax.tree.leaves(compiled(kind)(inputs, weights)), 1e-6)

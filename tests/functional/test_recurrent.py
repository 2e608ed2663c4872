"""LSTM and GRU: by hand, against torch and a plain loop, gradients, lengths, and the transformations of jax."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax.test_util import check_grads

from attention_zoo.functional.recurrent import GRUState, LSTMState, RecurrentWeights, gru, gru_cell, lstm, lstm_cell

B, S, I, D = 3, 5, 2, 7  # noqa: E741 - the width of the inputs
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
    # s(ln 3) = 3/4 lets in 3/4 of tanh(ln 2) = 3/5; s(0) = 1/2 keeps half of the memory; s(-ln 3) = 1/4 shows a quarter.
    inputs = jnp.log(jnp.array([1.0, 3.0, 2.0, 1.0]))
    recurrent = jnp.log(jnp.array([3.0, 1 / 3, 1.0, 1 / 3]))
    new = lstm_cell(inputs, recurrent, LSTMState(jnp.array([9.0]), jnp.array([2.0])))
    np.testing.assert_allclose(new.memory, [1 + 0.45], rtol=1e-6)
    np.testing.assert_allclose(new.hidden, np.tanh([1.45]) / 4, rtol=1e-6)


def test_gru_cell_by_hand():
    # r = 3/4 of the recurrent ln 16 is ln 8; with the input's -ln 4 that is ln 2: candidate 3/5; z = 1/4 of the old 8.
    inputs = jnp.log(jnp.array([3.0, 1.0, 1 / 4]))
    recurrent = jnp.log(jnp.array([1.0, 1 / 3, 16.0]))
    new = gru_cell(inputs, recurrent, GRUState(jnp.array([8.0])))
    np.testing.assert_allclose(new.hidden, [0.75 * 0.6 + 0.25 * 8], rtol=1e-6)


def test_two_steps_of_an_lstm_by_hand():
    # Gates forced by the bias: everything in, kept and shown; so the memory is the sum of tanh(x_t + h_{t-1}).
    weights = RecurrentWeights(
        jnp.array([[0.0, 0, 1, 0]]), jnp.array([[0.0, 0, 1, 0]]), jnp.array([99.0, 99, 0, 99]), None
    )
    outputs, final = lstm(jnp.array([[0.5], [-1.0]]), weights)
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
def results_and_gradients(kind: str, reverse: bool) -> Callable:
    """Compiled: results, and the gradients of (inputs, weights, state), of the layer and of the plain loop."""

    @jax.jit
    def run(inputs, weights, state, lengths, cotangents):
        answers = []
        for layer in (LAYERS[kind], partial(plain, kind)):
            results, pull_back = jax.vjp(partial(layer, lengths=lengths, reverse=reverse), inputs, weights, state)
            answers.append((results, pull_back(cotangents)))
        return answers

    return run


@kinds
@directions
@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(0, S), min_size=B, max_size=B), keep=st.integers(1, 3))
@example(seed=0, lengths=[0, 0, 0], keep=3)
@example(seed=0, lengths=[S, 1, S - 1], keep=1)
@example(seed=0, lengths=[S, 1, S - 1], keep=2)
def test_custom_gradient_equals_autodiff_of_a_plain_loop(kind, reverse, seed, lengths, keep):
    # `keep` says whose cotangent is not zero: 1 the outputs', 2 the final state's, 3 both.
    inputs, weights, state = problem(kind, seed)
    draw = np.random.default_rng(seed + 1).normal
    final = jax.tree.map(lambda part: draw(size=part.shape) * (keep >= 2), state)
    with jax.enable_x64(True):
        cotangents = draw(size=(B, S, D)) * (keep != 2), final
        found, expected = results_and_gradients(kind, reverse)(inputs, weights, state, np.array(lengths), cotangents)
    assert_close(found, expected)


@kinds
@directions
@pytest.mark.parametrize("part", ["outputs", "final", "both"])
def test_gradients_equal_finite_differences(kind, reverse, part, float64):
    select = {
        "outputs": lambda results: results[0],
        "final": lambda results: results[1],
        "both": lambda results: results,
    }
    layer = partial(LAYERS[kind], lengths=jnp.array([S, 2, 0]), reverse=reverse)
    run = jax.jit(lambda *arguments: select[part](layer(*arguments)))
    check_grads(run, problem(kind), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@kinds
def test_gradients_without_optional_arguments_equal_finite_differences(kind, float64):
    inputs, weights, _ = problem(kind)
    check_grads(
        jax.jit(LAYERS[kind]),
        (inputs, weights._replace(recurrent_bias=None)),
        order=1,
        modes=["rev"],
        atol=1e-5,
        rtol=1e-5,
    )


@kinds
def test_second_derivatives_equal_finite_differences(kind, float64):
    inputs, weights, state = problem(kind)
    gradient = jax.grad(lambda x: jnp.sum(LAYERS[kind](x, weights, state, np.array([S, 2, 0]))[0] ** 2))
    check_grads(jax.jit(gradient), (inputs,), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


@cache
def compiled(kind: str, reverse: bool) -> Callable:
    return jax.jit(partial(LAYERS[kind], reverse=reverse))


@kinds
@directions
def test_a_finished_sequence_keeps_its_state_and_gives_zeros(kind, reverse):
    inputs, weights, state = problem(kind)
    lengths = np.array([0, 2, S])
    outputs, final = compiled(kind, reverse)(inputs, weights, state, lengths)
    for b, length in enumerate(lengths):
        own = jax.tree.map(lambda part, b=b: part[b : b + 1], state)
        alone, alone_final = compiled(kind, reverse)(inputs[b : b + 1, :length], weights, own, None)
        np.testing.assert_array_equal(outputs[b, length:], 0)
        assert_close(outputs[b, :length], alone[0], 1e-6)
        assert_close(
            jax.tree.map(lambda part, b=b: part[b], final), jax.tree.map(lambda part: part[0], alone_final), 1e-6
        )
    assert_close(jax.tree.map(lambda part: part[0], final), jax.tree.map(lambda part: np.float32(part[0]), state), 0)


@kinds
@directions
def test_padding_changes_nothing_and_receives_no_gradient(kind, reverse):
    inputs, weights, state = problem(kind)
    lengths = np.array([0, 2, S - 1])
    padding = np.arange(S) >= lengths[:, None]

    @jax.jit
    def run(inputs):
        results, pull_back = jax.vjp(lambda x, w: LAYERS[kind](x, w, state, lengths, reverse=reverse), inputs, weights)
        return results, pull_back(jax.tree.map(jnp.ones_like, results))

    clean, dirty = run(inputs), run(np.where(padding[..., None], 1e3, inputs))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    np.testing.assert_array_equal(clean[1][0][padding], 0)
    assert np.all(np.any(clean[1][0][~padding] != 0, axis=-1))


@kinds
def test_reversed_is_forward_on_reversed_inputs(kind):
    inputs, weights, state = problem(kind)
    outputs, final = compiled(kind, True)(inputs, weights, state, None)
    flipped, flipped_final = compiled(kind, False)(inputs[:, ::-1], weights, state, None)
    assert_close((outputs[:, ::-1], final), (flipped, flipped_final), 1e-6)


@kinds
def test_the_final_state_carries_on(kind):
    inputs, weights, state = problem(kind)
    whole = compiled(kind, False)(inputs, weights, state, None)
    first, between = compiled(kind, False)(inputs[:, :2], weights, state, None)
    second, final = compiled(kind, False)(inputs[:, 2:], weights, between, None)
    assert_close((jnp.concatenate([first, second], axis=1), final), whole, 1e-6)


@kinds
def test_one_step_is_the_cell(kind):
    inputs, weights, state = problem(kind)
    outputs, final = compiled(kind, False)(inputs[:, :1], weights, state, None)
    projected = inputs[:, 0] @ weights.input + weights.bias
    expected = CELLS[kind](projected, state.hidden @ weights.recurrent + weights.recurrent_bias, state)
    assert_close(final, expected, 1e-5)
    np.testing.assert_array_equal(outputs[:, 0], final.hidden)


@kinds
def test_starts_from_zeros_and_without_recurrent_bias_by_default(kind):
    inputs, weights, state = problem(kind)
    zeros = jax.tree.map(np.zeros_like, (state, weights.recurrent_bias))
    expected = compiled(kind, False)(inputs, weights._replace(recurrent_bias=zeros[1]), zeros[0], None)
    found = compiled(kind, False)(inputs, weights._replace(recurrent_bias=None), None, None)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@kinds
def test_a_single_example_equals_its_row_of_the_batch(kind):
    inputs, weights, state = problem(kind)
    lengths = np.array([0, 2, S])
    batched = compiled(kind, False)(inputs, weights, state, lengths)
    mapped = jax.jit(jax.vmap(LAYERS[kind], in_axes=(0, None, 0, 0)))(inputs, weights, state, lengths)
    assert_close(mapped, batched, 1e-6)


@kinds
def test_gradient_of_vmap_over_weights(kind, float64):
    inputs, one, state = problem(kind)
    two = jax.tree.map(lambda first, second: np.stack([first, second]), one, problem(kind, seed=1)[1])

    def loss(weights):
        return jnp.sum(LAYERS[kind](inputs, weights, state, np.array([S, 2, 0]))[0] ** 2)

    mapped = jax.jit(jax.grad(lambda weights: jax.vmap(loss)(weights).sum()))(two)
    separate = jax.jit(jax.grad(loss))(one)
    assert_close(jax.tree.map(lambda part: part[0], mapped), separate)


@kinds
def test_checkpoint_gives_the_same_gradients(kind):
    arguments = problem(kind)

    def loss(layer, *arguments):
        outputs, final = layer(*arguments, np.array([S, 2, 0]))
        return jnp.sum(outputs**2) + sum(part.sum() for part in final)

    gradients = [
        jax.jit(jax.grad(partial(loss, layer), argnums=(0, 1, 2)))(*arguments)
        for layer in (LAYERS[kind], jax.checkpoint(LAYERS[kind]))
    ]
    assert_close(*gradients, 1e-5)


@kinds
def test_export_and_load(kind):
    inputs, weights, _ = jax.tree.map(np.float32, problem(kind))
    run = jax.jit(lambda inputs, *weights: jax.tree.leaves(LAYERS[kind](inputs, RecurrentWeights(*weights))))
    loaded = jax.export.deserialize(jax.export.export(run)(inputs, *weights).serialize())
    assert_close(loaded.call(inputs, *weights), run(inputs, *weights), 1e-6)

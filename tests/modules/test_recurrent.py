"""Recurrent layers and encoders as modules: against torch, lengths, options, parameters."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from attention_zoo.functional.recurrent import GRUState, LSTMState
from attention_zoo.modules import RecurrentEncoder, RecurrentLayer

B, S, I, D = 3, 5, 7, 11  # noqa: E741 - the width of the inputs
LENGTHS = np.array([S, 2, 0])
STATES = {"lstm": LSTMState, "gru": GRUState}
kinds = pytest.mark.parametrize("kind", STATES)
directions = pytest.mark.parametrize("bidirectional", [False, True])


def draw(*shape: int) -> np.ndarray:
    return np.float32(np.random.default_rng(shape).normal(size=shape))


def parameters(kind: str, arrays: dict[str, jax.Array], suffix: str) -> dict:
    """A layer's parameters from torch's; its LSTM has two biases, which are only ever added."""
    names = (f"weights/{name}_{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    kernel, recurrent, bias, recurrent_bias = (arrays[name] for name in names)
    if kind == "lstm":
        return {"input": {"kernel": kernel.T}, "recurrent": recurrent.T, "recurrent_bias": bias + recurrent_bias}
    return {
        "input": {"kernel": kernel.T, "bias": bias},
        "recurrent": recurrent.T,
        "recurrent_bias": recurrent_bias,
    }


def compare(case: dict[str, np.ndarray], kind: str, forward: Callable) -> None:
    """`forward(arrays) -> (outputs, state as torch stacks it)` gives the golden results and gradients."""
    parts = ["outputs", *(f"final_{part}" for part in STATES[kind]._fields)]
    differentiated = {name: case[name] for name in case if f"gradients/{name}" in case}
    results, pull_back = jax.vjp(jax.jit(forward), differentiated)
    cotangents = [jnp.asarray(case[f"cotangents/{part}"]) for part in parts]
    (gradients,) = pull_back((cotangents[0], STATES[kind](*cotangents[1:])))
    found = dict(zip(parts, jax.tree.leaves(results), strict=True))
    found |= {f"gradients/{name}": gradient for name, gradient in gradients.items()}
    for name, value in found.items():
        np.testing.assert_allclose(value, case[name], rtol=1e-10, atol=1e-10, err_msg=name)


@kinds
def test_layer_equals_torch(kind, golden, float64):
    case = golden("recurrent", f"{kind}/plain")
    layer = RecurrentLayer(3, kind)

    def forward(arrays):
        variables = {"params": parameters(kind, arrays, "l0")}
        state = STATES[kind](*(arrays[f"initial_{part}"][0] for part in STATES[kind]._fields))
        projected = layer.apply(variables, jnp.swapaxes(arrays["inputs"], 0, 1), method="project")
        outputs, final = layer.apply(variables, projected, state, method="run")
        return jnp.swapaxes(outputs, 0, 1), jax.tree.map(lambda value: value[None], final)

    compare(case, kind, forward)


@kinds
def test_bidirectional_encoder_equals_torch(kind, golden, float64):
    case = golden("recurrent", f"{kind}/encoder")
    # It starts from zeros and has no say in it.
    case = {name: value for name, value in case.items() if not name.startswith("gradients/initial")}

    def forward(arrays):
        layers = {f"forward_layers_{n}": parameters(kind, arrays, f"l{n}") for n in range(2)}
        layers |= {f"backward_layers_{n}": parameters(kind, arrays, f"l{n}_reverse") for n in range(2)}
        encoder = RecurrentEncoder(3, 2, kind)
        outputs, finals = encoder.apply({"params": layers}, arrays["inputs"], jnp.asarray(case["lengths"]))
        # Ours has one state a layer, the directions joined; torch stacks all: l0, l0_reverse, l1, l1_reverse.
        directions = [
            half for final in finals for half in zip(*(jnp.split(part, 2, -1) for part in final), strict=True)
        ]
        return outputs, STATES[kind](*(jnp.stack(parts) for parts in zip(*directions, strict=True)))

    compare(case, kind, forward)


@cache
def encoder(kind: str, bidirectional: bool) -> tuple[RecurrentEncoder, dict, Callable]:
    """A two-layer encoder, random variables (no initial ones: to compile those takes longer), and itself compiled."""
    module, normal = RecurrentEncoder(D, 2, kind, bidirectional), np.random.default_rng(0).normal
    shapes = jax.eval_shape(module.init, jax.random.key(0), draw(B, S, I), LENGTHS)
    variables = jax.tree.map(lambda leaf: np.float32(normal(size=leaf.shape, scale=0.5)), shapes)
    return module, variables, jax.jit(module.apply)


@kinds
@directions
def test_shapes(kind, bidirectional):
    _, variables, run = encoder(kind, bidirectional)
    outputs, finals = run(variables, draw(B, S, I), LENGTHS)
    assert outputs.shape == (B, S, D * (1 + bidirectional))
    assert [type(final) for final in finals] == [STATES[kind]] * 2
    assert {leaf.shape for leaf in jax.tree.leaves(finals)} == {(B, D * (1 + bidirectional))}


@kinds
@directions
def test_padding_changes_nothing_and_receives_no_gradient(kind, bidirectional):
    module, variables, run = encoder(kind, bidirectional)
    inputs, padding = draw(B, S, I), np.arange(S) >= LENGTHS[:, None]
    garbage = np.where(padding[..., None], np.float32(1e3), inputs)
    clean = jax.device_get(run(variables, inputs, LENGTHS))
    jax.tree.map(np.testing.assert_array_equal, clean, run(variables, garbage, LENGTHS))
    np.testing.assert_array_equal(clean[0][padding], 0)
    total = jax.jit(
        jax.grad(lambda x: sum(leaf.sum() for leaf in jax.tree.leaves(module.apply(variables, x, LENGTHS))))
    )
    gradient = np.asarray(total(inputs))
    np.testing.assert_array_equal(gradient[padding], 0)
    assert np.all(gradient[~padding] != 0)


@kinds
@directions
def test_a_short_sequence_is_read_as_if_it_stood_alone(kind, bidirectional):
    _, variables, run = encoder(kind, bidirectional)
    inputs = draw(B, S, I)
    outputs, finals = jax.device_get(run(variables, inputs, LENGTHS))
    short, short_finals = jax.device_get(run(variables, inputs[:, :2], np.array([2, 2, 2])))
    np.testing.assert_allclose(outputs[1, :2], short[1], atol=1e-6)
    jax.tree.map(lambda long, alone: np.testing.assert_allclose(long[1], alone[1], atol=1e-6), finals, short_finals)
    jax.tree.map(lambda final: np.testing.assert_array_equal(final[2], 0), finals)


@kinds
def test_batched_equals_vmap_of_the_single_example(kind):
    module, variables, run = encoder(kind, True)
    mapped = jax.jit(jax.vmap(module.apply, in_axes=(None, 0, 0)))(variables, draw(B, S, I), LENGTHS)
    expected = run(variables, draw(B, S, I), LENGTHS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mapped, expected)


@kinds
def test_both_directions_see_their_end_of_the_sequence(kind):
    # The first annotation of the forward half knows nothing of the second input; that of the backward half does.
    parameters = encoder(kind, True)[1]["params"]
    one_layer = {"params": {name: value for name, value in parameters.items() if name.endswith("_0")}}
    inputs = draw(B, S, I)
    changed = inputs + np.eye(S, dtype=np.float32)[1][None, :, None]
    run = jax.jit(lambda x: RecurrentEncoder(D, 1, kind).apply(one_layer, x, np.array([S, S, S]))[0][:, 0])
    before, after = np.asarray(run(inputs)), np.asarray(run(changed))
    np.testing.assert_array_equal(before[:, :D], after[:, :D])
    assert np.all(before[:, D:] != after[:, D:])


@kinds
def test_layer_in_parts_equals_the_whole(kind):
    layer, inputs = RecurrentLayer(D, kind), draw(S, B, I)
    variables = {"params": encoder(kind, False)[1]["params"]["forward_layers_0"]}

    @jax.jit
    def both(variables):
        projected = layer.apply(variables, inputs, method="project")
        state, outputs = layer.apply(variables, (B,), method="zeros"), []
        for t in range(S):
            state = layer.apply(variables, projected[t], state, method="step")
            outputs.append(state.hidden)
        return (jnp.stack(outputs), state), layer.apply(variables, inputs)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both(variables))


def test_residual_adds_the_input_where_widths_agree():
    inputs = draw(B, S, I)
    plain, added = (RecurrentEncoder(D, 2, bidirectional=False, residual=residual) for residual in (False, True))
    variables = encoder("lstm", False)[1]
    lower = {"params": {"forward_layers_0": variables["params"]["forward_layers_0"]}}

    @jax.jit
    def outputs():
        both = [module.apply(variables, inputs, LENGTHS)[0] for module in (added, plain)]
        return *both, RecurrentEncoder(D, 1, bidirectional=False).apply(lower, inputs, LENGTHS)[0]

    more, less, first = jax.device_get(outputs())
    np.testing.assert_allclose(more - less, first, atol=1e-6)


def test_residual_sees_no_padding_and_no_dropout():
    clean = draw(B, S, D)
    garbage = np.where(np.arange(S)[None, :, None] < LENGTHS[:, None, None], clean, np.float32(1e4))
    plain, added = (RecurrentEncoder(D, 1, bidirectional=False, residual=residual) for residual in (False, True))
    normal, shapes = np.random.default_rng(0).normal, jax.eval_shape(added.init, jax.random.key(0), clean, LENGTHS)
    variables = jax.tree.map(lambda leaf: np.float32(normal(0, 0.5, leaf.shape)), shapes)
    outputs = np.asarray(added.apply(variables, garbage, LENGTHS)[0])
    np.testing.assert_array_equal(outputs, added.apply(variables, clean, LENGTHS)[0])
    np.testing.assert_allclose(outputs[0] - plain.apply(variables, clean, LENGTHS)[0][0], clean[0], atol=1e-6)
    np.testing.assert_array_equal(outputs[1, 2:], 0)
    # A second layer without weights gives zeros: what comes out is its input, and dropout has hidden none of it.
    two = RecurrentEncoder(D, 2, bidirectional=False, residual=True, dropout=0.5)
    silent = jax.tree.map(np.zeros_like, variables["params"]["forward_layers_0"])
    both = {"params": variables["params"] | {"forward_layers_1": silent}}
    trained, _ = two.apply(both, garbage, LENGTHS, False, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(trained, outputs)


def test_dropout_acts_between_layers_only_and_only_in_training():
    inputs, rngs = draw(B, S, I), {"dropout": jax.random.key(1)}
    _, variables, run = encoder("gru", False)
    wet = RecurrentEncoder(D, 2, "gru", False, dropout=0.5)
    dry_outputs, dry_finals = run(variables, inputs, LENGTHS)
    both = jax.jit(lambda rngs: [wet.apply(variables, inputs, LENGTHS, dry, rngs=rngs) for dry in (True, False)])
    (test_outputs, _), (outputs, finals) = both(rngs)
    np.testing.assert_allclose(test_outputs, dry_outputs, atol=1e-6)
    np.testing.assert_allclose(finals[0].hidden, dry_finals[0].hidden, atol=1e-6)
    assert not np.allclose(outputs, dry_outputs, atol=1e-2)


@pytest.mark.parametrize(("kind", "count"), [("lstm", 4 * D * (I + D + 1)), ("gru", 3 * D * (I + D + 2))])
def test_number_of_parameters(kind, count):
    variables = jax.eval_shape(RecurrentLayer(D, kind).init, jax.random.key(0), draw(S, B, I))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


def test_the_forget_gate_starts_with_bias_one():
    variables = jax.jit(RecurrentLayer(D).init)(jax.random.key(0), draw(S, B, I))
    np.testing.assert_array_equal(variables["params"]["recurrent_bias"], np.repeat([0, 1, 0, 0], D))


@kinds
def test_computes_in_bfloat16_with_parameters_in_float32(kind):
    module = RecurrentEncoder(D, 2, kind, dtype=jnp.bfloat16)
    variables = jax.eval_shape(module.init, jax.random.key(0), draw(B, S, I), LENGTHS)
    results = jax.eval_shape(module.apply, variables, draw(B, S, I), LENGTHS)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(results)} == {"bfloat16"}


@pytest.mark.parametrize("kind", ["lstm", "gru_reset_before"])
def test_the_gradient_of_a_bias_is_summed_in_float32(kind):
    # Equal signs: in bfloat16 a sum over so many steps would stop growing.
    exact, narrow = (RecurrentLayer(D, kind, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    inputs = np.abs(draw(701, B, I))

    def total(variables, layer, inputs):
        return layer.apply(variables, inputs)[0].astype(jnp.float32).sum()

    @jax.jit
    def both(inputs):
        variables = exact.init(jax.random.key(0), inputs)
        return [jax.grad(total)(variables, layer, inputs)["params"]["recurrent_bias"] for layer in (narrow, exact)]

    found, expected = jax.device_get(both(inputs))
    assert found.dtype == jnp.float32
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_unknown_cell_is_refused():
    with pytest.raises(ValueError, match="cell is one of lstm, gru, gru_reset_before; got 'rnn'"):
        RecurrentEncoder(D, cell="rnn").init(jax.random.key(0), draw(B, S, I), LENGTHS)


def test_lengths_of_another_batch_are_an_error_that_names_them():
    with pytest.raises(TypeCheckError, match="parameter 'lengths'"):
        RecurrentEncoder(D).init(jax.random.key(0), draw(B, S, I), np.array([1, 2]))


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize(("projected", "state"), [((3, 2), (6,)), ((6,), (3, 2)), ((1,), (2,)), ((), (2,))])
def test_a_step_of_other_rows_than_its_state_is_refused(kind, projected, state):
    layer, gates = RecurrentLayer(D, kind), {"lstm": 4, "gru": 3}[kind]
    variables = jax.eval_shape(layer.init, jax.random.key(0), draw(1, B, I))
    before = STATES[kind](*[draw(*state, D)] * len(STATES[kind]._fields))
    with pytest.raises(TypeCheckError, match="parameter 'hidden'"):
        jax.eval_shape(lambda v: layer.apply(v, draw(*projected, gates * D), before, method="step"), variables)

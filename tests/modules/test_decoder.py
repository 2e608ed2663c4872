"""The recurrent decoder against a plain loop over the steps, which knows nothing of the package."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from attention_zoo.functional.masks import within
from attention_zoo.functional.recurrent import GRUState, LSTMState
from attention_zoo.modules import Additive, Attention, Cosine, General, Location, RecurrentDecoder, decoder

B, T, S, E, V, A = 2, 3, 5, 7, 11, 13
D = 6  # even, for the deep output
MASK = within(np.array([S, 3]), S)
STATES = {"lstm": LSTMState, "gru": GRUState, "gru_reset_before": GRUState}
TIMINGS = {
    "previous": {"query": "previous"},
    "current": {"query": "current"},
    "feeding": {"query": "current", "input_feeding": True},
}
READING = {name: {"query": "previous", "readout": name} for name in ("state", "both")}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def make(timing: str, cell: str = "lstm", layers: int = 1, score=None, **fields):
    """A decoder, random parameters for it, and the arrays that it reads."""
    score = score or (Additive(A) if timing == "previous" else General(D))
    model = RecurrentDecoder(D, Attention(score), layers, cell, **(TIMINGS | READING)[timing], **fields)
    states = tuple(
        STATES[cell](*(draw(B, D, seed=2 * number + part) for part in range(len(STATES[cell]._fields))))
        for number in range(layers)
    )
    arrays = {"inputs": draw(B, T, E), "values": draw(B, S, V), "states": states}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), arrays, method=run))
    leaves, structure = jax.tree.flatten(shapes)
    return model, structure.unflatten([0.6 * draw(*leaf.shape, seed=n) for n, leaf in enumerate(leaves)]), arrays


def run(model, arrays, deterministic=True):
    """Features, alignment and last states of a decoder on its arrays."""
    memory = model.attention.remember(arrays["values"], MASK)
    features, state, alignment = model(arrays["inputs"], memory, model.start(arrays["states"], memory), deterministic)
    return features, alignment.weights, state.layers


def affine(p, x):
    return x @ p["kernel"] + (jnp.expand_dims(p["bias"], range(x.ndim - 1)) if "bias" in p else 0)


def lstm(p, x, h, c):
    i, f, g, o = jnp.split(x + h @ p["recurrent"] + p["recurrent_bias"][None], 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def gru(p, x, h):
    xs, hs = (jnp.split(half, 3, axis=1) for half in (x, h @ p["recurrent"] + p["recurrent_bias"][None]))
    r, z = (jax.nn.sigmoid(xs[gate] + hs[gate]) for gate in (0, 1))
    return GRUState((1 - z) * jnp.tanh(xs[2] + r * hs[2]) + z * h)


def gru_reset_before(p, x, h):
    x_r, x_z, x_n = jnp.split(x + p["recurrent_bias"][None], 3, axis=1)
    u_r, u_z = jnp.split(p["recurrent"], 2, axis=1)
    r, z = jax.nn.sigmoid(x_r + h @ u_r), jax.nn.sigmoid(x_z + h @ u_z)
    return GRUState((1 - z) * jnp.tanh(x_n + (r * h) @ p["candidate"]) + z * h)


CELLS = {"lstm": lstm, "gru": gru, "gru_reset_before": gru_reset_before}


def look(p, query, values):
    """Context and weights for one query: additive where the score has an energy, general otherwise."""
    if "energy" in p:
        hidden = jnp.tanh((query @ p["query"]["kernel"])[:, None] + affine(p["key"], values))
        scores = jnp.sum(hidden * p["energy"][None, None], axis=2)
    else:
        scores = jnp.sum(query[:, None] * (values @ p["key"]["kernel"]), axis=2)
    weights = jax.nn.softmax(jnp.where(MASK, scores, -jnp.inf), axis=1)
    return jnp.sum(weights[:, :, None] * values, axis=1), weights


def plain(timing, cell, p, arrays):
    """The papers' steps one after another: Bahdanau 2014, A.2.2; Luong 2015, section 3; Raffel 2017, section 2.1."""
    states, fed, features, alignment = list(arrays["states"]), jnp.zeros((B, D)), [], []
    ask = partial(look, p["attention"]["score"], values=arrays["values"])
    for t in range(T):
        y, before = arrays["inputs"][:, t], states[-1].hidden
        x = affine(p["stack_0"]["input"], y)
        if timing in ("previous", *READING):
            context, weights = ask(before)
            x = x + affine(p["enter"], context)
        elif timing == "feeding":
            x = x + affine(p["enter"], fed)
        for number, state in enumerate(states):
            layer = p[f"stack_{number}"]
            x = affine(layer["input"], states[number - 1].hidden) if number else x
            states[number] = CELLS[cell](layer, x, *state)
        if timing == "previous":
            pairs = affine(p["combine"], jnp.concatenate([before, y, context], axis=1))
            feature = jnp.maximum(pairs[:, : D // 2], pairs[:, D // 2 :])
        elif timing in READING:
            hidden = states[-1].hidden
            feature = hidden if timing == "state" else jnp.concatenate([context, hidden], axis=1)
        else:
            context, weights = ask(states[-1].hidden)
            feature = fed = jnp.tanh(affine(p["combine"], jnp.concatenate([context, states[-1].hidden], axis=1)))
        features.append(feature)
        alignment.append(weights)
    return jnp.stack(features, 1), jnp.stack(alignment, 1), tuple(states)


# Every pair of a timing, a cell and a number of layers.
TRIED = [
    *(("previous", "lstm", 1), ("current", "lstm", 2), ("feeding", "lstm", 2)),
    *(("previous", "gru", 2), ("current", "gru", 1), ("feeding", "gru", 1), ("previous", "gru_reset_before", 2)),
    *(("state", "gru", 1), ("both", "lstm", 2)),
]


@pytest.mark.parametrize(("timing", "cell", "layers"), TRIED)
def test_results_and_all_gradients_equal_the_plain_loop(timing, cell, layers, float64):
    model, variables, arrays = make(timing, cell, layers)

    @jax.jit
    def both(*inputs):
        answers = []
        for way in (lambda p, a: model.apply({"params": p}, a, method=run), partial(plain, timing, cell)):
            results, pull_back = jax.vjp(way, *inputs)
            cotangents = jax.tree.map(lambda leaf: draw(*leaf.shape, seed=9), results)
            answers.append((results, pull_back(cotangents)))
        return answers

    found, expected = both(variables["params"], arrays)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(found[1])) > 1e-4
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), found, expected)


def test_feeding_through_a_matrix_of_zeros_is_no_feeding():
    model, variables, arrays = make("feeding")
    parameters = variables["params"] | {"enter": jax.tree.map(np.zeros_like, variables["params"]["enter"])}
    without = model.clone(input_feeding=False)
    both = jax.jit(lambda p: [made.apply({"params": p}, arrays, method=run) for made in (model, without)])
    fed, plain = both(parameters)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), fed, plain)
    assert np.abs(both(variables["params"])[0][0] - fed[0]).max() > 1e-2


@pytest.mark.parametrize("timing", TIMINGS)
def test_dropout_differs_between_steps_and_leaves_the_first_input_alone(timing):
    model, variables, arrays = make(timing, "gru", 2, dropout=0.5)
    # The first layer keeps its state for ever, and the second forgets its own: what differs from step to step is then
    # what dropout hides of a constant input, and the features cannot see the steps in another way.
    parameters = jax.tree.map(np.zeros_like, variables["params"])
    parameters["stack_0"]["recurrent_bias"][D : 2 * D] = 50
    parameters["stack_1"]["recurrent_bias"][D : 2 * D] = -50
    parameters["stack_1"]["input"]["kernel"] = variables["params"]["stack_1"]["input"]["kernel"]
    parameters["combine"] = variables["params"]["combine"]
    arrays["inputs"][:] = arrays["inputs"][:, :1]

    @jax.jit
    def without_and_with(parameters):
        rngs = {"dropout": jax.random.key(3)}
        return [model.apply({"params": parameters}, arrays, dry, method=run, rngs=rngs) for dry in (True, False)]

    dry, wet = without_and_with(parameters)
    # With "previous" the first feature sees the first state alone.
    np.testing.assert_allclose(dry[0][:, 1], dry[0][:, 2], atol=1e-6)
    assert np.abs(wet[0][:, 1] - wet[0][:, 2]).max() > 1e-3
    # With every parameter in use, but nothing attended in the cell, the first layer's states are those without dropout.
    parameters = variables["params"] | {"enter": jax.tree.map(np.zeros_like, parameters.get("enter"))}
    (_, _, (dry_first, dry_second)), (_, _, (first, second)) = without_and_with(parameters)
    np.testing.assert_allclose(first.hidden, dry_first.hidden, atol=1e-6)
    assert np.abs(second.hidden - dry_second.hidden).max() > 1e-3


def carried(jaxpr) -> set[tuple[int, ...]]:
    """The shapes of all that the scans in a jaxpr carry from step to step, or collect: those begin with the steps."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found |= {variable.aval.shape for variable in equation.outvars}
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(value, "jaxpr", value)
            found |= carried(inner) if hasattr(inner, "eqns") else set()
    return found


def sums_of_kernels(model, variables, arrays) -> set[tuple[int, ...]]:
    loss = lambda *arguments: sum(  # noqa: E731
        leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(model.apply(*arguments, method=run))
    )
    gradient = jax.make_jaxpr(jax.grad(loss))(variables, arrays)
    return carried(gradient.jaxpr) & {leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim == 2}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("score", [Additive(A), General(D), Cosine(V), Location(17)], ids=["add", "gen", "cos", "loc"])
@pytest.mark.parametrize("timing", ["previous", "feeding"])
def test_no_sum_of_kernels_is_carried_backwards(timing, score, dtype, monkeypatch):
    model, *numbers = make(timing, layers=2, score=score.clone(dtype=dtype), dtype=dtype)
    numbers = jax.tree.map(np.float32, numbers)
    assert not sums_of_kernels(model, *numbers)
    monkeypatch.setattr(decoder, "scan", lambda step, constants, *rest: jax.lax.scan(partial(step, constants), *rest))
    assert len(sums_of_kernels(model, *numbers)) >= 2  # what it finds where there is something to find


def test_states_and_sources_in_float32_are_brought_to_the_dtype():
    for timing in TIMINGS | READING:
        score = (Additive if timing == "previous" else General)(D, dtype=jnp.bfloat16)
        model, variables, arrays = make(timing, score=score, dtype=jnp.bfloat16)
        results = jax.eval_shape(lambda v, a, model=model: model.apply(v, a, method=run), variables, arrays)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(results)} == {"bfloat16"}


@pytest.mark.parametrize("timing", TIMINGS)
def test_a_missing_memory_is_refused(timing):
    model, variables, arrays = make(timing)

    def without(variables):
        state = model.apply(variables, arrays["states"], None, method="start")
        return model.apply(variables, arrays["inputs"], None, state)

    with pytest.raises(ValueError, match=r"needs a memory, from `attention\.remember`; got None"):
        jax.eval_shape(without, variables)


def test_inputs_of_fewer_rows_than_the_state_are_refused():
    model, variables, arrays = make("feeding")
    arrays["inputs"] = arrays["inputs"][:1]
    with pytest.raises(TypeCheckError, match="parameter 'hidden'"):
        jax.eval_shape(partial(model.apply, method=run), variables, arrays)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"query": "next"}, "query is one of previous, current; got 'next'"),
        ({"readout": "state"}, "readout with query 'current' is one of attentional; got 'state'"),
        ({"query": "previous", "readout": "wide"}, "readout with query 'previous' is one of deep, .*; got 'wide'"),
        ({"query": "previous", "input_feeding": True}, "needs attention with query 'current'"),
        ({"attention": None, "input_feeding": True}, "needs attention with query 'current'"),
        ({"attention": None, "query": "previous", "readout": "both"}, "no readout but None; got 'both'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, sentence):
    model, variables, arrays = make("current")
    with pytest.raises(ValueError, match=sentence):
        model.clone(**fields).apply(variables, arrays["states"], None, method="start")

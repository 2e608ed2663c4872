"""The GRU as first written, which resets before its recurrent product: by hand, against Keras and a plain loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.recurrent import (
    GRUState,
    RecurrentWeights,
    gru,
    gru_reset_before_cell,
    recur,
    recurrent_product,
)
from attention_zoo.modules.recurrent import RecurrentEncoder, RecurrentLayer

B, S, I, D = 3, 5, 2, 7  # noqa: E741 - the width of the inputs
LENGTHS = np.array([S, 2, 0])


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape)


def weights():
    return RecurrentWeights(draw(I, 3 * D), draw(D, 3 * D), draw(3 * D), draw(3 * D + 1)[1:])


def plain(inputs, weights, state, lengths, reverse=False):
    """A loop of the paper's equations, gate by gate."""
    (w_r, w_z, w_n), (u_r, u_z, u_n) = (jnp.split(part, 3, -1) for part in (weights.input, weights.recurrent))
    r_bias, z_bias, n_bias = jnp.split((weights.bias + weights.recurrent_bias)[None], 3, -1)
    hidden, outputs = state.hidden, [jnp.zeros_like(state.hidden)] * S
    for t in reversed(range(S)) if reverse else range(S):
        x, alive = inputs[:, t], (t < lengths)[:, None]
        reset = jax.nn.sigmoid(x @ w_r + hidden @ u_r + r_bias)
        update = jax.nn.sigmoid(x @ w_z + hidden @ u_z + z_bias)
        candidate = jnp.tanh(x @ w_n + (reset * hidden) @ u_n + n_bias)
        hidden = jnp.where(alive, (1 - update) * candidate + update * hidden, hidden)
        outputs[t] = jnp.where(alive, hidden, 0)
    return jnp.stack(outputs, 1), GRUState(hidden)


def test_a_step_by_hand():
    # r = 3/4 of h' = 8 is 6; half of it with the input's ln 2 - 3 is ln 2: candidate 3/5; z = 1/4 of the old 8.
    kernel = jnp.array([[0.0, 0.0]]), jnp.array([[0.5]])
    inputs = jnp.array([jnp.log(3.0), -jnp.log(3.0), jnp.log(2.0) - 3])
    recurrent = recurrent_product(inputs, jnp.array([8.0]), kernel, None)
    np.testing.assert_allclose(recurrent, [0, 0, 3], rtol=1e-6)
    new = gru_reset_before_cell(inputs, recurrent, GRUState(jnp.array([8.0])))
    np.testing.assert_allclose(new.hidden, [0.75 * 0.6 + 0.25 * 8], rtol=1e-6)


def test_results_and_gradients_equal_keras(golden, float64):
    case = golden("keras_gru", "gru")

    def ours(given):
        def turned(name):  # Keras's gates are z, r, h
            z, r, n = jnp.split(given[name], 3, -1)
            return jnp.concatenate([r, z, n], -1)

        weights = RecurrentWeights(turned("kernel"), turned("recurrent_kernel"), turned("bias"))
        return gru(given["inputs"], weights, GRUState(given["initial"]), reset_after=False)[0]

    given = {name: case[name] for name in ("inputs", "initial", "kernel", "recurrent_kernel", "bias")}
    outputs, pull_back = jax.vjp(jax.jit(ours), given)
    np.testing.assert_allclose(outputs, case["outputs"], rtol=1e-10)
    for name, gradient in pull_back(jnp.asarray(case["cotangents"]))[0].items():
        np.testing.assert_allclose(gradient, case[f"gradients/{name}"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_results_and_gradients_equal_a_plain_loop(reverse, float64):
    arguments = draw(B, S, I), weights(), GRUState(draw(B, D))
    cotangents = draw(B, S, D + 1)[..., 1:], GRUState(draw(B, D + 1)[:, 1:])

    @jax.jit
    def both(*arguments):
        layers = [
            partial(layer, lengths=LENGTHS, reverse=reverse) for layer in (partial(gru, reset_after=False), plain)
        ]
        pairs = [jax.vjp(layer, *arguments) for layer in layers]
        return [(results, pull_back(cotangents)) for results, pull_back in pairs]

    found, expected = both(*arguments)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), found, expected)
    after = gru(*arguments, LENGTHS, reverse=reverse)[0]
    assert np.abs(after - found[0][0]).max() > 0.1  # a reset after the product is another function


def test_the_gradient_of_both_kernels_waits_for_the_end_of_the_loop():
    """No step adds to an array as large as a kernel: none is carried through the backward loop."""
    state = GRUState(jnp.zeros((B, D)))

    def loss(kernel, projected):
        return jnp.sum(recur(gru_reset_before_cell, projected, kernel, None, state)[0])

    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((D, 3 * D)), jnp.ones((S, B, 3 * D))))
    loops = [line for line in text.splitlines() if "= scan[" in line]
    assert len(loops) == 2 and not [line for line in loops if f"[{D},{2 * D}]" in line or f"[{D},{D}]" in line]


def test_a_layer_in_parts_is_the_layer():
    layer = RecurrentLayer(D, "gru_reset_before")
    inputs = np.float32(draw(S, B, I))
    variables = jax.tree.map(lambda leaf: np.float32(draw(*leaf.shape)), layer.init(jax.random.key(0), inputs))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 3 * D * (I + D + 1)

    @jax.jit
    def by_steps(variables):
        state, outputs = layer.apply(variables, (B,), method="zeros"), []
        for projected in layer.apply(variables, inputs, method="project"):
            state = layer.apply(variables, projected, state, method="step")
            outputs.append(state.hidden)
        return jnp.stack(outputs)

    np.testing.assert_allclose(by_steps(variables), jax.jit(layer.apply)(variables, inputs)[0], rtol=1e-5, atol=1e-6)


def test_computes_in_bfloat16_with_parameters_in_float32():
    module = RecurrentEncoder(D, 2, "gru_reset_before", dtype=jnp.bfloat16)
    given = np.float32(draw(B, S, I)), LENGTHS
    variables = jax.eval_shape(module.init, jax.random.key(0), *given)
    results = jax.eval_shape(module.apply, variables, *given)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(results)} == {"bfloat16"}

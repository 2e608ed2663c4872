"""What the scan keeps for its gradient, and where it writes."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import recurrent
from attention_zoo.functional.arrays import stays_apart
from attention_zoo.functional.loop import scan
from attention_zoo.functional.products import project
from attention_zoo.functional.recurrent import GRUState, LSTMState, gru_cell, lstm_cell, recur

T, B, D, V = 5, 2, 7, 11


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def step(constants, carry, x):
    """A step as of a decoder: what is looked up enters an LSTM beside x and the last state."""
    looked_up = jnp.tanh(project(carry.hidden, constants["look"]))[:, None]
    gates = project(carry.hidden, constants["recurrent"], plus=x + project(looked_up[:, 0], constants["enter"]))
    i, f, g, o = jnp.split(gates, 4, axis=1)
    memory = jax.nn.sigmoid(f) * carry.memory + jax.nn.sigmoid(i) * jnp.tanh(g)
    after = LSTMState(jax.nn.sigmoid(o) * jnp.tanh(memory), memory)
    return after, (after.hidden, looked_up)


CONSTANTS = {"look": draw(D, V), "recurrent": 0.3 * draw(D, 4 * D), "enter": 0.3 * draw(V, 4 * D)}
START, XS = LSTMState(draw(B, D), draw(B, D, seed=1)), draw(T, B, 4 * D)


def plain(step, constants, carry, xs):
    return jax.lax.scan(partial(step, constants), carry, xs)


@pytest.mark.usefixtures("float64")
def test_a_sum_of_products_has_the_gradients_of_its_terms():
    def total(loop, constants, carry, xs):
        after, (hidden, looked_up) = loop(step, constants, carry, xs)
        return after.memory.sum() + jnp.sum(hidden**2) + jnp.sum(jnp.sin(looked_up))

    found, expected = (
        jax.jit(jax.value_and_grad(partial(total, loop), (0, 1, 2)))(CONSTANTS, START, XS) for loop in (scan, plain)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), found, expected)


def kept(function, *arguments) -> list[tuple[int, ...]]:
    """Shapes of the stacked arrays that a gradient waits with, apart from the arguments."""
    _, pull_back = jax.eval_shape(partial(jax.vjp, function), *arguments)
    return sorted(leaf.shape for leaf in jax.tree.leaves(pull_back) if leaf.shape[:1] == (T,))


def test_a_step_keeps_its_state_and_the_sum_of_its_products():
    found = kept(lambda constants, xs: scan(step, constants, START, xs), CONSTANTS, XS)
    # h and c before the step, the product that is looked up with, and the gates: neither x nor what enters beside it.
    assert found == sorted([(T, B, D), (T, B, D), (T, B, V), (T, B, 4 * D)])


@pytest.mark.usefixtures("float64")
def test_what_a_step_also_gives_is_kept_once():
    """Its state, and a product in another shape, as a decoder's readout has them; apart, x and what is turned."""

    def giving(kernel, carry, x):
        known = project(carry, kernel)
        return jnp.tanh(known + x), (carry, known[:, None], carry[None], x, known.T)

    def total(loop, kernel, start, xs):
        after, given = loop(giving, kernel, start, xs)
        return after.sum() + sum(jnp.sum(jnp.sin(leaf * number)) for number, leaf in enumerate(given, start=1))

    kernel, start, xs = 0.3 * draw(D, D), draw(B, D), draw(T, B, D)
    forward, _ = loops_of(jax.grad(partial(total, scan)), kernel, start, xs)
    held = [variable.aval.shape for variable in forward.outvars if variable.aval.shape[0] == T]
    assert held == [(T, B, D), (T, B, 1, D), (T, B, D), (T, D, B)]
    values, expected = (
        jax.value_and_grad(partial(total, loop), (0, 1, 2))(kernel, start, xs) for loop in (scan, plain)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), values, expected)


@pytest.mark.parametrize(("cell", "state", "arrays"), [(lstm_cell, LSTMState, 1), (gru_cell, GRUState, 2)])
def test_an_lstm_keeps_its_gates_once(cell, state, arrays):
    """A GRU keeps both products: its reset gate scales a part of one."""
    start, gates = state(*START[: len(state._fields)]), {lstm_cell: 4, gru_cell: 3}[cell] * D
    found = kept(lambda kernel, xs: recur(cell, xs, kernel, None, start), draw(D, gates), draw(T, B, gates))
    assert found.count((T, B, gates)) == arrays


@pytest.mark.usefixtures("float64")
def test_an_lstm_that_keeps_its_gates_has_the_gradients_of_one_that_keeps_their_sums(monkeypatch):
    kernel, by = draw(D, 4 * D), draw(T, B, D)

    def total(kernel, start, xs):
        outputs, state = recur(lstm_cell, xs, kernel, None, start, jnp.array([T, 3]))
        return jnp.sum(outputs * by) + jnp.sum(state.memory**2)

    found = []
    for apart in (True, False):
        monkeypatch.setattr(recurrent, "stays_apart", lambda apart=apart: apart)
        found.append(jax.jit(lambda *a: jax.value_and_grad(total, (0, 1, 2))(*a))(kernel, START, XS))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), *found)


def test_gates_of_16_bits_are_too_coarse_for_slopes(monkeypatch):
    """A forget gate of 6.5 is 1 in bfloat16, and s(6.5) (1 - s(6.5)) = 0.0015 is not 0."""
    monkeypatch.setattr(recurrent, "stays_apart", lambda: True)

    def remembered(gate):
        gates = jnp.full((1, 1, 4 * D), gate, jnp.bfloat16)
        start = LSTMState(*jnp.ones((2, 1, D), jnp.bfloat16))
        return recur(lstm_cell, gates, jnp.zeros((D, 4 * D), jnp.bfloat16), None, start)[1].memory.sum()

    slope = 1 / (2 + 2 * np.cosh(6.5))  # of the forget gate and of the input gate; that of g is below 1e-5
    np.testing.assert_allclose(jax.grad(remembered)(6.5), 2 * D * slope, rtol=0.05)


def loops_of(function, *arguments):
    return [one for one in jax.make_jaxpr(function)(*arguments).eqns if one.primitive.name == "scan"]


def test_gradients_are_written_over_what_was_read_and_each_once():
    gradient = jax.grad(lambda constants, xs: scan(step, constants, START, xs)[1][0].sum(), (0, 1))
    forward, backward = loops_of(gradient, CONSTANTS, XS)
    wide = (T, B, 4 * D)

    def shapes(loop, variables):
        return [variable.aval.shape for variable in variables].count(wide)

    assert shapes(forward, forward.outvars) == shapes(backward, backward.outvars) == 1
    assert shapes(forward, forward.invars) == (1 if stays_apart() else 2)  # the gates are written over x
    assert shapes(backward, backward.invars) == 1  # and their gradient over the gates


def apart_step(kernel, carry, x):
    """The gradient of what is added does not depend on the state, nor the product on it: arrays of one shape."""
    curved, added = x
    known = project(carry, kernel)
    return jnp.tanh(known) + jnp.sin(curved) + added, known


def loop_bodies(program: str) -> list[str]:
    """The bodies of the loops of a compiled program."""
    names = re.findall(r" while\(.*body=%([\w.-]+)", program)
    return [re.search(rf"^%{re.escape(name)} .*?^}}", program, re.MULTILINE | re.DOTALL)[0] for name in names]


@pytest.mark.parametrize(
    ("run", "constants", "xs"),
    [
        (lambda constants, xs: scan(step, constants, START, xs), CONSTANTS, XS),
        (
            lambda kernel, xs: scan(apart_step, kernel, draw(B, D), xs),
            draw(D, D),
            (draw(T, B, D), draw(T, B, D, seed=1)),
        ),
        (lambda kernel, xs: recur(lstm_cell, xs, kernel, None, START), draw(D, 4 * D), XS),
    ],
    ids=["decoder", "apart", "lstm"],
)
def test_xla_copies_no_collected_array_in_a_step(run, constants, xs):
    def total(constants, xs):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(run(constants, xs)))

    program = jax.jit(jax.grad(total, (0, 1))).lower(constants, xs).compile().as_text()
    forward, backward = loop_bodies(program)
    for body in (forward, backward):
        assert f"[{T},{B},{D}]" in body and not re.findall(rf"= \w+\[{T},{B},.*copy\(", body)


def test_a_product_of_integers_alone_has_no_gradient():
    def step(constants, carry, x):
        kernel, table = constants
        whole = project(jnp.ones((B, D), jnp.int32), table)
        return jnp.tanh(project(carry, kernel) + x * whole), whole

    kernel, table, xs = 0.3 * jnp.eye(D), jnp.arange(D * D).reshape(D, D) % 3, jnp.asarray(draw(T, B, D), jnp.float32)

    def total(loop, kernel, xs):
        return loop(step, (kernel, table), jnp.ones((B, D)), xs)[0].sum()

    found, expected = (jax.grad(partial(total, loop), (0, 1))(kernel, xs) for loop in (scan, plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


def test_what_is_reordered_is_not_what_was_read():
    def step(kernel, carry, x):
        return jnp.tanh(project(jnp.ravel(x, order="F")[None], kernel)[0] + jnp.reshape(2.0, 1) * carry), carry

    kernel, start, xs = draw(B * D, B * D), draw(B * D), draw(T, B, D)
    found, expected = (
        jax.jit(jax.grad(lambda k, loop=loop: loop(step, k, start, xs)[0].sum()))(kernel) for loop in (scan, plain)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plus", [np.zeros((B, 1)), np.zeros(D), np.zeros((B, D), np.float16), np.zeros((1, B, D))])
def test_what_is_added_to_a_product_has_its_shape_and_dtype(plus):
    inputs, kernel = np.zeros((B, V), np.float32), np.zeros((V, D), np.float32)
    with pytest.raises(ValueError, match=r"shape and dtype, float32\[2, 7\]; got float"):
        jax.eval_shape(lambda plus: project(inputs, kernel, plus=plus), plus)

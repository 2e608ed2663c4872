"""One step against its parts done by hand, and the state it leaves."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_zoo.training.optimizers import optimizer
from attention_zoo.training.sharding import make_mesh, shard_batch
from attention_zoo.training.step import Steps, carrying, evaluation_parameters, initial_state, train_step
from tests.training.tiny import Copies, carried, experiment, rows


def objective(params, batch, key):
    """(w x - y)^2 with noise on x, so that the key matters."""
    noise = jax.random.normal(key, batch["x"].shape)
    loss = jnp.mean((params["w"] * (batch["x"] + noise) - batch["y"]) ** 2)
    return loss, {"loss": loss}


def begun(run, batch):
    """The state before the first step."""
    return jax.jit(partial(initial_state, run))(batch)


def test_a_step_is_the_gradient_the_update_and_a_new_key():
    run = experiment(init=lambda key, batch: {"w": jnp.array([1.5])}, optimizer=optax.sgd(0.1), objective=objective)
    batch = {"x": np.float32([2, -1, 0.5]), "y": np.float32([1, 3, 0])}
    before = begun(run, batch)
    after, metrics = jax.jit(train_step(objective, run.optimizer))(before, batch)

    key, drawn = jax.random.split(before.key)
    x = batch["x"] + np.asarray(jax.random.normal(drawn, (3,)))
    gradient = np.mean(2 * (1.5 * x - batch["y"]) * x)
    np.testing.assert_allclose(after.params["w"], [1.5 - 0.1 * gradient], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.mean((1.5 * x - batch["y"]) ** 2), rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], abs(gradient), rtol=1e-6)
    np.testing.assert_allclose(metrics["parameter_norm"], abs(after.params["w"][0]), rtol=1e-6)
    np.testing.assert_array_equal(jax.random.key_data(after.key), jax.random.key_data(key))
    assert int(after.step) == 1


def test_the_state_follows_from_the_seed_and_every_step_draws_anew():
    batch = rows(1, 5)
    states = [Steps(experiment(Copies((5,)), seed=seed), make_mesh()).initial() for seed in (3, 3, 4)]
    first, again, other = (np.asarray(jax.tree.leaves(state.params)[1]) for state in states)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    run = experiment(optimizer=optax.sgd(0.0))
    step = jax.jit(train_step(run.objective, run.optimizer))
    state, one = step(begun(run, batch), batch)
    _, two = step(state, batch)
    assert float(one["loss"]) != float(two["loss"])


def test_what_is_evaluated_is_the_average_where_there_is_one():
    batch = rows(1, 5)
    plain = begun(experiment(optimizer=optimizer("adam", 0.1)), batch)
    assert evaluation_parameters(plain) is plain.params
    run = experiment(optimizer=optimizer("sgd", 0.5, ema=0.5))
    step = jax.jit(train_step(run.objective, run.optimizer))
    one, _ = step(begun(run, batch), batch)
    two, _ = step(one, batch)
    expected = jax.tree.map(lambda a, b: (0.5 * a + b) / 1.5, *jax.device_get((one.params, two.params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), evaluation_parameters(two), expected)


def test_a_compiled_step_gives_what_the_plain_one_gives_for_every_shape_and_takes_the_old_state():
    run, mesh = experiment(Copies((5, 7))), make_mesh()
    steps = Steps(run, mesh)
    steps.compile_ahead(run.data.shapes()[:1])  # The other shape is compiled when it comes.
    state, plain = steps.initial(), begun(run, rows(0, 5))
    plain_step = jax.jit(train_step(run.objective, run.optimizer))
    for batch in (rows(1, 5), rows(2, 7)):
        given = state
        state, metrics = steps(given, shard_batch(batch, mesh))
        plain, expected = plain_step(plain, batch)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, plain.params)


def test_what_the_objective_carries_goes_from_step_to_step_whole_on_every_device():
    run, mesh = carried(), make_mesh()
    steps = Steps(run, mesh)
    state = steps.initial()
    for number in range(3):
        state, metrics = steps(state, shard_batch(rows(number, 5), mesh))
        assert int(state.carry["calls"]) == number + 1
        assert float(state.carry["average"]) == float(metrics["average"]) > 0
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.carry))


def test_a_carry_is_used_once_and_then_replaced():
    def counting(params, batch, key, carry):
        return params["w"].sum() * carry, ({"seen": carry}, carry + 2)

    run = experiment(init=lambda key, batch: {"w": jnp.ones(3)}, optimizer=optax.sgd(1.0), objective=counting)
    run = dataclasses.replace(run, carry=lambda: jnp.array(5.0))
    state, metrics = train_step(counting, run.optimizer)(initial_state(run, {}), {})
    assert float(metrics["seen"]) == 5 and float(state.carry) == 7
    np.testing.assert_allclose(state.params["w"], 1 - 5 * np.ones(3))


@pytest.mark.parametrize("after", [jnp.zeros(2), jnp.zeros((), jnp.int32), (jnp.zeros(()),)])
def test_a_carry_of_another_shape_is_refused(after):
    with pytest.raises(ValueError, match=r"was given a carry of .* and gave back one of"):
        carrying(lambda *inputs: (jnp.zeros(()), ({}, after)))({}, {}, jax.random.key(0), jnp.zeros(()))

"""Optimisers and schedules against the papers' formulas, worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attention_zoo.training.optimizers import averaged_parameters, learning_rate_schedule, optimizer

PARAMS = {"kernel": jnp.arange(6.0).reshape(2, 3) - 2.0, "bias": jnp.array([0.5, -1.0, 3.0])}
GRADIENTS = {"kernel": jnp.array([[0.3, -2.0, 0.1], [4.0, 0.0, -0.7]]), "bias": jnp.array([1.0, -0.25, 0.5])}


def run(transform, gradients, params=PARAMS):
    """The parameters after each of the gradients, and the last state."""
    state, path = transform.init(params), []
    for gradient in gradients:
        updates, state = jax.jit(transform.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


def close(left, right, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-7), left, right)


def test_adadelta_is_zeilers_rule_with_bahdanaus_numbers():
    path, _ = run(optimizer("adadelta", 1.0), [GRADIENTS, GRADIENTS])
    rho, epsilon, value = 0.95, 1e-6, -1.0  # the bias's second entry
    squares = changes = 0.0
    for params in path:
        gradient = -0.25
        squares = rho * squares + (1 - rho) * gradient**2
        change = -math.sqrt(changes + epsilon) / math.sqrt(squares + epsilon) * gradient
        changes = rho * changes + (1 - rho) * change**2
        value += change
        np.testing.assert_allclose(params["bias"][1], value, rtol=1e-6)


def test_halving_keeps_the_rate_for_five_epochs_and_halves_it_in_each_after():
    rate = learning_rate_schedule("halving", 1.0, steps_per_epoch=7)
    epochs = [[float(rate(7 * epoch + step)) for step in range(7)] for epoch in range(8)]
    assert epochs == [[r] * 7 for r in (1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.25, 0.125)]


def test_rsqrt_is_equation_3_of_vaswani():
    width, warmup = 512, 4000
    rate = learning_rate_schedule("rsqrt", (width * warmup) ** -0.5, warmup=warmup)
    for n in (1, 17, 3999, 4000, 4001, 100_000):
        expected = width**-0.5 * min(n**-0.5, n * warmup**-1.5)
        np.testing.assert_allclose(rate(n - 1), expected, rtol=1e-6)


def test_constant_and_cosine_warm_up_from_the_first_step():
    constant = learning_rate_schedule("constant", 2.0, warmup=4)
    cosine = learning_rate_schedule("cosine", 2.0, warmup=4, steps=14)
    np.testing.assert_allclose([constant(n) for n in range(6)], [0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    np.testing.assert_allclose([cosine(n) for n in (0, 3, 4, 9, 14, 20)], [0.5, 2.0, 2.0, 1.0, 0.0, 0.0], atol=1e-6)
    assert float(learning_rate_schedule("constant", 2.0)(0)) == 2.0


def test_the_schedule_reaches_the_update():
    path, _ = run(optimizer("sgd", 1.0, schedule="halving", steps_per_epoch=1, full_epochs=2), [GRADIENTS] * 4)
    expected = [-1.0 + 0.25 * total for total in (1, 2, 2.5, 2.75)]
    np.testing.assert_allclose([params["bias"][1] for params in path], expected)


def test_clipping_bounds_the_global_norm():
    (params,), _ = run(optimizer("sgd", 1.0, clip=0.1), [GRADIENTS])
    change = jax.tree.map(jnp.subtract, PARAMS, params)
    np.testing.assert_allclose(optax.tree.norm(change), 0.1, rtol=1e-5)
    close(change, jax.tree.map(lambda g: 0.1 * g / optax.tree.norm(GRADIENTS), GRADIENTS), 1e-4)


def test_accumulation_applies_the_mean_of_the_batches():
    other = jax.tree.map(lambda g: 3 * g - 0.2, GRADIENTS)
    path, _ = run(optimizer("adam", 0.1, accumulate=2), [GRADIENTS, other])
    (expected,), _ = run(optimizer("adam", 0.1), [jax.tree.map(lambda a, b: (a + b) / 2, GRADIENTS, other)])
    close(path[0], PARAMS)
    close(path[1], expected)


def test_accumulation_stretches_the_schedule():
    path, _ = run(optimizer("sgd", 1.0, schedule="cosine", steps=6, accumulate=3), [GRADIENTS] * 9)
    changes = [float(params["bias"][1]) for params in path]
    np.testing.assert_allclose(changes[2::3], [-0.75, -0.625, -0.625], rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_weighted_mean_of_the_parameters_so_far(accumulate):
    decay, updates = 0.8, 5
    path, state = run(optimizer("adam", 0.3, ema=decay, accumulate=accumulate), [GRADIENTS] * updates * accumulate)
    path = path[accumulate - 1 :: accumulate]
    weights = np.array([decay ** (updates - n) for n in range(1, updates + 1)])
    expected = jax.tree.map(lambda *leaves: np.tensordot(weights / weights.sum(), np.stack(leaves), 1), *path)
    close(averaged_parameters(state), expected, 1e-5)
    assert averaged_parameters(run(optimizer("adam", 0.3), [GRADIENTS])[1]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_leaves_no_trace(bad):
    broken = {**GRADIENTS, "bias": GRADIENTS["bias"].at[1].set(bad)}
    path, _ = run(optimizer("adam", 0.1, skip_nonfinite=2, ema=0.9), [GRADIENTS, broken, broken, GRADIENTS])
    expected, _ = run(optimizer("adam", 0.1, ema=0.9), [GRADIENTS, GRADIENTS])
    close(path[2], expected[0], 0)
    close(path[3], expected[1], 0)


def test_adamw_decays_matrices_only():
    (decayed,), _ = run(optimizer("adamw", 0.1, weight_decay=0.5), [GRADIENTS])
    (plain,), _ = run(optimizer("adam", 0.1), [GRADIENTS])
    close(decayed["bias"], plain["bias"])
    close(decayed["kernel"], plain["kernel"] - 0.05 * PARAMS["kernel"])


def test_further_settings_go_to_optax():
    close(
        run(optimizer("adam", 0.1, b2=0.98, eps=1e-9), [GRADIENTS] * 3)[0],
        run(optax.adam(0.1, b2=0.98, eps=1e-9), [GRADIENTS] * 3)[0],
    )


@pytest.mark.parametrize(
    "arguments, settings, sentence",
    [
        (("adm", 0.1), {}, "unknown optimizer 'adm'; choose one of adadelta, adam, adamw, sgd"),
        (
            ("adam", 0.1),
            {"schedule": "step"},
            "unknown schedule 'step'; choose one of constant, cosine, halving, rsqrt",
        ),
        (("adam", 0.1), {"weight_decay": 0.1}, "weight_decay goes with adamw, not with adam"),
        (("adam", 0.1), {"ema": 1.0}, "ema lies between 0 and 1; got 1.0"),
        (("adam", 0.1), {"accumulate": 0}, "accumulate is at least 1; got 0"),
        (("sgd", 1.0), {"schedule": "halving"}, "schedule 'halving' needs steps_per_epoch"),
        (("sgd", 1.0), {"schedule": "halving", "steps_per_epoch": 3, "warmup": 2}, "schedule 'halving' has no warm-up"),
        (("adam", 1.0), {"schedule": "rsqrt"}, "schedule 'rsqrt' needs warmup"),
        (("adam", 1.0), {"schedule": "cosine"}, "schedule 'cosine' needs steps"),
        (("adam", 1.0), {"schedule": "cosine", "steps": 5, "warmup": 5}, "a warm-up of 5 leaves nothing of 5 steps"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, settings, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        optimizer(*arguments, **settings)

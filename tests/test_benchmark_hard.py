"""The benchmark of hard attention's estimators at its smallest size: its rulers, its verdicts, its rows and figure."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from attention_zoo.training import gradient_noise
from benchmarks import __main__ as command
from benchmarks import estimators, hard
from benchmarks.__main__ import main
from benchmarks.estimators import ESTIMATORS, EXACT, expected_rewards, model

CHOSEN = ("soft attention", "sampled, likelihood alone", "leave-one-out, K = 4")


@pytest.fixture(scope="module")
def small():
    params, batch = model(2, 2, 3)
    return params, batch | {"expected_rewards": jax.jit(expected_rewards)(params, batch)}


@pytest.fixture(scope="module")
def gradients(small):
    """Estimator -> 300 gradients."""
    keys = jax.random.split(jax.random.key(7), 300)

    def drawn(name):
        gradient = jax.grad(ESTIMATORS[name].objective, has_aux=True)
        return jax.jit(jax.vmap(lambda key: ravel_pytree(gradient(*small, key)[0])[0]))(keys)

    return {name: np.asarray(drawn(name), np.float64) for name in CHOSEN[1:]}


@pytest.fixture(scope="module")
def exact(small):
    """The bound's gradient."""
    return jax.device_get(jax.jit(jax.grad(EXACT["bound"]))(*small))


def test_the_paths_are_all_there_and_their_probabilities_sum_to_one(small):
    params, batch = small
    paths = np.asarray(estimators.paths(batch))
    assert sorted(map(tuple, paths)) == [(first, second) for first in range(3) for second in range(3)]
    one = dict(batch, target=batch["target"][:, :1])
    marginal, alone, variational = (jax.jit(EXACT[name])(params, one) for name in ("marginal", "bound", "variational"))
    # One word: sum_s alpha_s log p(y | s), and latent or not is the same.
    log_weights, log_likelihoods, *_ = jax.jit(estimators.latent)(params, one)
    np.testing.assert_allclose(alone, -jnp.mean(jnp.sum(jnp.exp(log_weights) * log_likelihoods, -1)), rtol=1e-6)
    assert marginal < alone and marginal < variational


def test_the_expected_reward_of_the_first_step_is_the_bound(small):
    params, batch = small
    np.testing.assert_allclose(batch["expected_rewards"][0], -2 * jax.jit(EXACT["bound"])(params, batch), rtol=1e-6)


def test_what_looking_alone_misses_is_the_gradient_of_where_to_look(small, gradients, exact):
    """The likelihood of a sample teaches the scores nothing: no public estimator may forget them."""
    as_tree = ravel_pytree(jax.device_get(small[0]))[1]
    alone = as_tree(np.float32(gradients["sampled, likelihood alone"].mean(0)))["attention"]
    whole = as_tree(np.float32(gradients["leave-one-out, K = 4"].mean(0)))["attention"]
    for name, expected in exact["attention"].items():
        assert np.abs(alone[name]).max() == 0 < np.abs(expected).max()
        assert np.vdot(whole[name], expected) > 0


def test_the_noise_is_that_of_the_meter_and_numpy(small, exact):
    params, batch = small
    objective = ESTIMATORS["leave-one-out, K = 4"].objective
    exact = np.asarray(ravel_pytree(exact)[0], np.float64)
    judged = hard.judge(lambda key: jax.grad(objective, has_aux=True)(params, batch, key), exact, 400)
    assert judged["error_vs_reference"] < judged["bias_bound"]
    found = jax.jit(lambda key: gradient_noise(objective, params, batch, key, 400))(jax.random.key(2))["all"]
    np.testing.assert_allclose(judged["variance"], found.variance, rtol=1e-4)
    np.testing.assert_allclose(judged["snr"], found.snr, rtol=1e-3)


def test_the_command_writes_rows_and_draws_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hard, "ESTIMATORS", {name: ESTIMATORS[name] for name in CHOSEN})
    monkeypatch.setattr(command, "roofs", lambda dtype: {})
    files = {"--json": tmp_path / "rows.json", "--figure": tmp_path / "variance.png"}
    given = [str(part) for pair in files.items() for part in pair]
    assert main(["hard", "--sizes", "small", "--repetitions", "1", *given]) == 0
    rows = json.loads(files["--json"].read_text())["rows"]
    assert [row["implementation"] for row in rows] == list(CHOSEN)
    assert [row["case"] for row in rows] == ["bound, B2 T2 S3"] * 3
    for row in rows:
        assert (row["error_vs_reference"] < row["bias_bound"]) == ESTIMATORS[row["implementation"]].unbiased
        assert (row["variance"] == 0) == (row["snr"] is None) == (row["implementation"] == CHOSEN[0])
    assert files["--figure"].stat().st_size > 0
    assert "leave-one-out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["additive", "--figure", "a.png"],
            "error: --figure draws one of glimpse_large, hard, scores, at a size that it has",
        ),
        (["hard", "--figure", "a.txt"], "error: a.txt cannot be drawn: its name must end in .png, .pdf, .svg"),
    ],
)
def test_a_figure_that_cannot_be_is_refused_before_anything_runs(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(sentence)

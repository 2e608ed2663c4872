"""The gradient's noise against hand-solved cases and explicit gradients, and that measuring it changes nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from attention_zoo.figures import draw_curves, read_metrics
from attention_zoo.training import fit, gradient_noise
from attention_zoo.training.checkpoint import Checkpoints
from attention_zoo.training.sharding import make_mesh
from attention_zoo.training.step import Steps
from tests.training.tiny import Copies, carried, experiment, rows

PARAMS = {"a": {"w": np.float32([2, 0, -1])}, "b": np.full((5, 7), 0.5, np.float32)}
SCALES = {"a": 0.7, "b": 3.0}


def quadratic(params, batch, key):
    """|p|^2 / 2 + p z with z ~ N(0, scale^2): the gradient is p + z, its variance scale^2 an entry."""
    keys = dict(zip(params, jax.random.split(key), strict=True))

    def one(name, leaf):
        noise = SCALES[name] * jax.random.normal(keys[name], leaf.shape)
        return jnp.sum(leaf**2 / 2 + leaf * noise)

    loss = one("a", params["a"]["w"]) + one("b", params["b"])
    return loss, {"loss": loss}


def test_a_quadratic_with_gaussian_noise():
    samples = 401
    measure = jax.jit(lambda key: gradient_noise(quadratic, PARAMS, {}, key, samples))
    found = jax.device_get(measure(jax.random.key(3)))
    assert set(found) == {"a", "b", "all"}
    for name, entries, square in (("a", 3, 5.0), ("b", 35, 35 / 4)):
        # (M - 1) variance / scale^2 is chi-squared with n (M - 1) degrees of freedom, so 99.9 % of it lies here.
        low, high = stats.chi2.interval(0.999, entries * (samples - 1))
        unit = SCALES[name] ** 2
        assert low < found[name].variance * (samples - 1) / unit < high
        # |mean|^2 - n scale^2 / M: the mean is p + N(0, scale^2 / M), so that |mean|^2 has this spread.
        spread = np.sqrt(4 * square * unit / samples + 2 * entries * (unit / samples) ** 2)
        assert abs(found[name].mean_square - square) < 3.3 * spread
        np.testing.assert_allclose(found[name].snr, found[name].mean_square / found[name].variance, rtol=1e-6)
    np.testing.assert_allclose(found["all"].variance, found["a"].variance + found["b"].variance, rtol=1e-6)


def test_the_square_of_the_mean_is_unbiased():
    """Over many measurements of two gradients each; |mean|^2 alone would be 3 x 0.49 / 2 too large."""
    keys = jax.random.split(jax.random.key(5), 2003)
    measure = jax.jit(jax.vmap(lambda key: gradient_noise(quadratic, PARAMS, {}, key, 2)["a"]))
    found = jax.device_get(measure(keys))
    for values, expected in ((found.variance, 3 * 0.49), (found.mean_square, 5.0)):
        error = np.std(values) / np.sqrt(len(keys))
        assert abs(np.mean(values) - expected) < 3.3 * error < 0.1 * expected


def test_it_equals_numpys_variance_of_explicit_gradients():
    run = carried()
    batch, key, carry = rows(1, 5), jax.random.key(2), {"average": jnp.array(0.5), "calls": jnp.array(3)}
    params = jax.jit(run.init)(jax.random.key(0), batch)
    found = jax.jit(lambda params: gradient_noise(run.objective, params, batch, key, samples=5, carry=carry))(params)
    gradient = jax.jit(jax.grad(lambda params, key: run.objective(params, batch, key, carry)[0]))
    gradients = jax.device_get([gradient(params, one) for one in jax.random.split(key, 5)])
    for name in (*params, "all"):
        chosen = gradients if name == "all" else [one[name] for one in gradients]
        flat = np.stack([np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(one)]) for one in chosen])
        variance = flat.astype(np.float64).var(0, ddof=1).sum()
        square = (flat.astype(np.float64).mean(0) ** 2).sum() - variance / 5
        np.testing.assert_allclose(found[name], (square, variance, square / variance), rtol=1e-4)


def test_no_digits_are_lost_where_the_variance_is_far_below_the_mean():
    def objective(params, batch, key):
        return jnp.sum(params["w"] * (1e4 + jax.random.normal(key, (11,)))), {}

    found = jax.jit(lambda key: gradient_noise(objective, {"w": jnp.zeros(11)}, {}, key, 7))(jax.random.key(1))
    drawn = np.stack([jax.random.normal(key, (11,)) for key in jax.random.split(jax.random.key(1), 7)])
    np.testing.assert_allclose(found["w"].variance, drawn.var(0, ddof=1).sum(), rtol=3e-3)  # 1e4 has 3 digits after it


def test_without_noise_and_without_a_gradient():
    params = {"sure": np.ones(3, np.float32), "idle": np.ones(2, np.float32)}

    def objective(params, batch, key):
        return params["sure"].sum(), {}

    found = jax.jit(lambda params: gradient_noise(objective, params, {}, jax.random.key(0), 3))(params)
    assert tuple(map(float, found["sure"])) == (3, 0, np.inf)
    assert tuple(map(float, found["idle"])) == (0, 0, 0)


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2 gradients; got 1"):
        gradient_noise(quadratic, PARAMS, {}, jax.random.key(0), 1)


def end(run, workdir):
    """The last state, bit by bit."""
    fit(run, workdir, log_every=4)
    with Checkpoints(workdir) as checkpoints:
        state, _ = checkpoints.restore(Steps(run, make_mesh()).state_shapes, iter(run.data.train(0)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))]


def test_measuring_a_run_changes_none_of_its_bits(tmp_path):
    plain = end(carried(steps=11), tmp_path / "plain")
    measured = end(carried(steps=11, noise_every=3, noise_samples=2), tmp_path / "measured")
    assert all(np.array_equal(a, b) for a, b in zip(plain, measured, strict=True))
    found = read_metrics(tmp_path / "measured")
    groups = {"Dense_0", "Dense_1", "Embed_0", "Embed_1", "all"}
    assert {f"gradient_{what}/{group}" for what in ("variance", "snr") for group in groups} <= set(found)
    steps, values = found["gradient_variance/all"]
    assert steps.tolist() == [3, 6, 9] and (values > 0).all()
    parts = [found[f"gradient_variance/{group}"][1] for group in groups - {"all"}]
    np.testing.assert_allclose(values, np.sum(parts, 0), rtol=1e-5)
    assert not any("gradient" in axes.get_title() for axes in draw_curves([tmp_path / "measured"]).axes)
    lines = [json.loads(line)["split"] for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert set(lines) == {"train", "dev", "test"}
    assert b"gradient_snr/all" in next((tmp_path / "measured").glob("events*")).read_bytes()


def test_a_run_measures_the_gradient_of_the_step_to_come(tmp_path):
    """The noise at step 1 is that of the first batch, the first parameters, and a key that no step draws."""
    run = experiment(Copies((5,)), steps=1, noise_every=1, noise_samples=3)
    fit(run, tmp_path)
    state = Steps(run, make_mesh()).initial()
    batch = next(iter(run.data.train(run.seed)))
    measure = jax.jit(lambda params, key: gradient_noise(run.objective, params, batch, key, 3))
    expected = measure(state.params, jax.random.fold_in(state.key, 3))
    np.testing.assert_allclose(read_metrics(tmp_path)["gradient_snr/all"][1], expected["all"].snr, rtol=1e-4)

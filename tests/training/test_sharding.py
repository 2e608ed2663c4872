"""Where parameters and batches go, and that eight devices train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from attention_zoo.training import UserError, fit
from attention_zoo.training.sharding import make_mesh, tree_shardings
from tests.training.tiny import Copies, experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What eight_devices.py prints."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.training.eight_devices", str(tmp_path_factory.mktemp("runs"))]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", ["", "real_"])
def test_eight_devices_give_the_losses_of_one(found, model):
    assert found["devices"] == 8
    np.testing.assert_allclose(found[f"{model}eight"], found[f"{model}one"], atol=1e-5, rtol=0)
    assert len(set(found[f"{model}one"])) == 5


def test_divided_parameters_give_the_same_losses(found):
    assert found["specs"] == ["P('model', None)", "P()", "P(None, 'model')", "P(None, None)"]
    np.testing.assert_allclose(found["divided"], found["one"], atol=1e-5, rtol=0)


def test_gradients_in_shard_map_and_under_explicit_axes_are_those_of_one_device(found):
    assert len(found["away"]) == 2 and all(away < 1e-5 * found["gradient"] for away in found["away"])


def test_fit_trains_over_all_devices(found):
    assert found["summary"]["device"].startswith("8 x cpu")
    assert found["summary"]["steps"] == 4


def test_a_batch_that_cannot_be_shared_evenly_is_refused(found):
    assert found["refusal"] == (
        "a batch of 12 examples cannot be shared evenly by 8 devices; choose a batch size that is a multiple of 8"
    )


def test_two_processes_train_as_one_and_stop_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.two_processes", address, str(tmp_path / "two")]
    both = [
        subprocess.Popen(
            [*command, number], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in "01"
    ]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    # Only the second one was asked to stop, at step 5; they agree at the next step that both look at, the 8th.
    for process, (out, err) in zip(both, said, strict=True):
        assert process.returncode == 0 and "stopped after step 8" in out, err
    fit(experiment(Copies((5,)), steps=8), tmp_path / "one", log_every=4)
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert len(two) == 3
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "train"]


def test_the_first_rule_found_in_a_path_lays_out_parameters_and_moments_alike():
    params = {"decoder": {"kernel": jnp.zeros((3, 5)), "bias": jnp.zeros(5)}}
    state = {"params": params, "optimizer": optax.adam(0.1).init(params)}
    rules = ((r"decoder/kernel$", (None, "model")), (r"decoder/.*", ("model",)), (r"kernel", ("data", None)))
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(tree_shardings(state, make_mesh(), rules))
    }
    kernel, bias, whole = PartitionSpec(None, "model"), PartitionSpec("model"), PartitionSpec()
    assert specs == {
        "params/decoder/kernel": kernel,
        "params/decoder/bias": bias,
        "optimizer/0/count": whole,
        "optimizer/0/mu/decoder/kernel": kernel,
        "optimizer/0/mu/decoder/bias": bias,
        "optimizer/0/nu/decoder/kernel": kernel,
        "optimizer/0/nu/decoder/bias": bias,
    }


def test_a_model_axis_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(UserError, match="1 devices do not divide into groups of 3"):
        make_mesh(model=3, devices=jax.devices()[:1])

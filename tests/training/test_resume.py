"""A run that is killed and started again ends in the same bits as one that never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from attention_zoo.training import Interrupted, UserError, fit
from attention_zoo.training.checkpoint import Checkpoints
from attention_zoo.training.sharding import make_mesh
from attention_zoo.training.step import Steps
from tests.training.tiny import Copies, carried, experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work folder of a run that was never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    fit(experiment(), workdir)
    return workdir


@pytest.fixture(scope="module")
def killed(whole, tmp_path_factory):
    """The work folder of a run that was killed after its checkpoint of step 10, of 24."""
    workdir = tmp_path_factory.mktemp("killed")
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "tests.training.killed", str(workdir)], env=env, cwd=ROOT)
    deadline = time.monotonic() + 120
    try:
        while not (workdir / "checkpoints" / "10").is_dir():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    return workdir


@pytest.fixture(scope="module")
def expected(whole):
    """What `end` gives of it."""
    return end(whole)


@pytest.fixture
def copy(killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path


def end(workdir, run=None):
    """All numbers of the last state, and the metrics without the speeds."""
    run = run or experiment()
    with Checkpoints(workdir) as checkpoints:
        state, _ = checkpoints.restore(Steps(run, make_mesh()).state_shapes, iter(run.data.train(0)))
    state = state.replace(key=jax.random.key_data(state.key))
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], [
        {name: value for name, value in line.items() if name != "examples_per_second"} for line in metrics
    ]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_it_ends_in_the_same_bits(copy, whole, expected):
    assert not (copy / "summary.json").exists()
    with (copy / "metrics.jsonl").open("a") as file:  # of steps that were done after the checkpoint
        file.write('{"step": 12, "split": "train"}\n{"step": 12, "spl')
    summary = fit(experiment(), copy)
    state, metrics = end(copy)
    expected_state, expected_metrics = expected
    assert same(state, expected_state)
    assert metrics == expected_metrics
    assert summary["metrics"] == json.loads((whole / "summary.json").read_text())["metrics"]


def test_without_the_key_it_does_not(copy, expected, monkeypatch):
    def forgetful(self, shapes, iterator, tell):
        state, progress = restore(self, shapes, iterator, tell)
        return state.replace(key=jax.random.key(0, impl="unsafe_rbg")), progress

    restore = Checkpoints.restore
    monkeypatch.setattr(Checkpoints, "restore", forgetful)
    fit(experiment(), copy)
    monkeypatch.undo()
    assert not same(end(copy)[0], expected[0])


def test_without_the_place_in_the_data_it_does_not(copy, expected, monkeypatch):
    def forgetful(self, shapes, iterator, tell):
        start = iterator.get_state()
        found = restore(self, shapes, iterator, tell)
        iterator.set_state(start)
        return found

    restore = Checkpoints.restore
    monkeypatch.setattr(Checkpoints, "restore", forgetful)
    fit(experiment(), copy)
    monkeypatch.undo()
    assert not same(end(copy)[0], expected[0])


def stopping(count):
    """A run with a carry that is asked to stop when it has read so many batches."""
    data = Copies((5,), lambda read: os.kill(os.getpid(), signal.SIGTERM) if read == count else None)
    return carried(data=data)


def test_a_stopped_run_goes_on_with_what_its_objective_carries(tmp_path):
    fit(carried(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(stopping(13), tmp_path / "stopped")
    fit(carried(), tmp_path / "stopped")
    state, _ = end(tmp_path / "stopped", carried())
    expected, _ = end(tmp_path / "whole", carried())
    assert same(state, expected) and any(np.array_equal(leaf, np.int32(24)) for leaf in state[-2:])


def test_a_checkpoint_of_an_objective_with_another_carry_is_refused(copy):
    with pytest.raises(UserError, match=r"is of another objective: it carries nothing there and .*average"):
        fit(carried(), copy)

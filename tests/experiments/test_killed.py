"""A real experiment, killed in the middle on its command line and started again, ends in the same bits."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from attention_zoo.training.checkpoint import Checkpoints
from attention_zoo.training.sharding import make_mesh
from attention_zoo.training.step import Steps
from experiments.commands.catalogue import function
from experiments.commands.flags import from_json
from experiments.commands.workdir import read_config

ROOT = Path(__file__).parents[2]
# Dropout, an evaluation before the kill and after it. Many steps, so that there is time to kill.
LINE = (
    "train reverse_luong --embedding 5 --encoder_units 7 --decoder_units 11 --dropout 0.3 --batch_size 3 "
    "--train_examples 7 --held_out_examples 2 --steps 400 --evaluate_every 100 --workdir"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The work folders of a run that was never stopped, and of one that was killed after its first checkpoint."""
    base = tmp_path_factory.mktemp("runs")
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def start(folder):
        command = [sys.executable, "-m", "experiments", *LINE.split(), str(folder)]
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    whole = start(base / "whole")
    said = whole.communicate(timeout=120)[1]
    assert whole.returncode == 0, said
    kill_after(start(base / "killed"), base / "killed" / "checkpoints" / "100")
    assert not (base / "killed" / "summary.json").exists()
    again = start(base / "killed")
    said = again.communicate(timeout=120)[1]
    assert again.returncode == 0, said
    assert "Going on after step " in said
    return base / "whole", base / "killed"


def kill_after(process, path):
    """Kills a process, unasked and unprepared, when a path has come into being."""
    deadline = time.monotonic() + 120
    try:
        while not path.exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()


def end(folder):
    """All numbers of a run's last state."""
    run = function("reverse_luong")
    experiment = run(**from_json(run, read_config(folder)["flags"]))
    with Checkpoints(folder) as checkpoints:
        shapes = Steps(experiment, make_mesh()).state_shapes
        state, progress = checkpoints.restore(shapes, iter(experiment.data.train(experiment.seed)))
    assert progress.step == 400
    return jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))


def test_the_parameters_and_scores_are_the_same_to_the_last_bit(folders):
    whole, killed = folders
    for expected, found in zip(end(whole), end(killed), strict=True):
        np.testing.assert_array_equal(found, expected)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert summaries[0]["dev_metrics"] == summaries[1]["dev_metrics"]

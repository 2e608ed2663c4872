"""A real experiment, killed in the middle on its command line and started again, ends in the same bits."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from attention_zoo.training.checkpoint import Checkpoints
from attention_zoo.training.sharding import make_mesh
from attention_zoo.training.step import Steps
from experiments.__main__ import main
from experiments.commands.catalogue import function
from experiments.commands.flags import from_json
from experiments.commands.workdir import read_config

ROOT = Path(__file__).parents[2]
# Dropout, an evaluation before the kill and after it. Many steps, so that there is time to kill. One shape to
# learn from, with a row more than there are sequences, drawn anew each time; one wide shape for dev and test.
LINE = (
    "train reverse_luong --input_feeding False --embedding 5 --encoder_units 7 --decoder_units 11 --dropout 0.3 "
    "--batch_size 7 --train_examples 6 --held_out_examples 2 --steps 400 --evaluate_every 100 --workdir"
)


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


def end(folder, experiment, shapes):
    """All numbers of a run's last state."""
    with Checkpoints(folder) as checkpoints:
        state, progress = checkpoints.restore(shapes, iter(experiment.data.train(experiment.seed)))
    assert progress.step == 400
    return jax.tree.leaves(state.replace(key=jax.random.key_data(state.key)))


def test_the_parameters_and_scores_are_the_same_to_the_last_bit(tmp_path, capsys):
    """Only what is killed needs a process of its own; the run that never stops is in this one, and the second start."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*LINE.split(), str(whole)]) == 0
    command = [sys.executable, "-m", "experiments", *LINE.split(), str(killed)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    kill_after(process, killed / "checkpoints" / "100")
    assert not (killed / "summary.json").exists()
    capsys.readouterr()
    assert main([*LINE.split(), str(killed)]) == 0
    assert "Going on after step " in capsys.readouterr().err
    run = function("reverse_luong")
    experiment = run(**from_json(run, read_config(whole)["flags"]))
    shapes = Steps(experiment, make_mesh()).state_shapes
    for expected, found in zip(*(end(folder, experiment, shapes) for folder in (whole, killed)), strict=True):
        np.testing.assert_array_equal(found, expected)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert summaries[0]["dev_metrics"] == summaries[1]["dev_metrics"]

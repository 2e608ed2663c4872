"""`python -m experiments train NAME`."""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax

from attention_zoo.figures import draw_curves, save
from attention_zoo.training import Experiment, UserError, fit, make_mesh
from attention_zoo.training.checkpoint import FOLDER as CHECKPOINTS
from attention_zoo.training.sharding import check_batch_size
from attention_zoo.training.step import carrying
from experiments.commands.catalogue import function
from experiments.commands.flags import check_numbers
from experiments.commands.report import show
from experiments.commands.workdir import check, claim, trained


def train(name: str, folder: Path, flags: dict[str, Any]) -> int:
    """Trains an experiment in its work folder, or goes on with the run that the folder holds.

    Raises:
        UserError: the folder holds another run, or cannot be written.
        KeyboardInterrupt: Ctrl-C; what there is so far is saved.
    """
    build = function(name)
    check_numbers(build, flags)
    check(folder, name, flags)
    begun = (folder / CHECKPOINTS).is_dir() and any((folder / CHECKPOINTS).iterdir())
    experiment = build(**(trained(flags) if begun else flags))
    for note in getattr(experiment.data, "notes", ()):
        print(note, file=sys.stderr)
    try_out(experiment)
    claim(folder, name, flags, experiment)
    summary = fit(recorded(experiment, folder), folder)
    show(summary["metrics"], "test")
    print(f"The run is kept in {folder}.", file=sys.stderr)
    return 0


def try_out(experiment: Experiment) -> None:
    """Raises what a model, a loss, a seed or a batch that cannot be would raise later, with a work folder half made."""
    check_batch_size(experiment.batch_size, make_mesh())
    try:
        key = jax.random.key(experiment.seed)
    except OverflowError as error:
        raise UserError(f"--seed is {experiment.seed}: it must be below 2**63.") from error
    blank = max(experiment.data.shapes(), key=lambda batch: sum(leaf.size for leaf in batch.values()))
    params = jax.eval_shape(experiment.init, key, blank)
    carry = None if experiment.carry is None else jax.eval_shape(experiment.carry)
    jax.eval_shape(carrying(experiment.objective), params, blank, key, carry)


def recorded(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment, leaving in its work folder also the learning curves and what `compare` draws from."""

    def draw(params: Any, figures: Path) -> None:
        experiment.draw(params, figures)
        save(draw_curves([folder]), figures / "curves.png")

    return dataclasses.replace(experiment, evaluate=partial(experiment.evaluate, folder=folder), draw=draw)

"""`python -m experiments evaluate WORKDIR`."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from attention_zoo.training import UserError
from experiments.commands.report import show
from experiments.commands.workdir import open_run, writable


def evaluate(workdir: Positional[Path], split: Literal["dev", "test"] = "test", beam_size: int = 1) -> int:
    """Prints the metrics of a run's best checkpoint: a table on a terminal, JSON elsewhere.

    Args:
        workdir: the work folder of the run.
        split: the examples to judge it by.
        beam_size: hypotheses that the search keeps; 1 is greedy.
    """
    at_least_one(beam_size)
    experiment, params = open_run(workdir)
    as_trained = split == "test" and beam_size == 1  # what lengths.json, which `compare` draws from, was counted from
    if as_trained:
        writable(workdir)
    show(experiment.evaluate(params, split, beam_size=beam_size, folder=workdir if as_trained else None), split)
    return 0


def at_least_one(beam_size: int) -> None:
    """Refuses a beam without hypotheses."""
    if beam_size < 1:
        raise UserError(f"--beam_size is {beam_size}: the search must keep at least 1 hypothesis.")

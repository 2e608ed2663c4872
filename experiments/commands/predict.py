"""`python -m experiments predict WORKDIR INPUT...`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional

from attention_zoo.figures.canvas import FORMATS
from attention_zoo.training import Prediction, UserError
from experiments.commands.evaluate import at_least_one
from experiments.commands.workdir import open_run, writable


def predict(
    workdir: Positional[Path], inputs: Positional[tuple[str, ...]], plot: Path | None = None, beam_size: int = 1
) -> int:
    """Prints what a run's best checkpoint makes of each input, one line each; warnings go to stderr.

    Args:
        workdir: the work folder of the run.
        inputs: the texts, each in quotes; for a model of images, their files.
        plot: where to draw the alignment; of several inputs, each gets its number before the suffix.
        beam_size: hypotheses that the search keeps; 1 is greedy.
    """
    check_inputs(inputs)
    at_least_one(beam_size)
    if plot is not None:
        check_plot(plot)
    experiment, params = open_run(workdir, pairs=False)
    predictions = list(experiment.predict(params, inputs, beam_size=beam_size))
    for prediction in predictions:
        for warning in prediction.warnings:
            print(warning, file=sys.stderr)
    if plot is not None:
        draw(predictions, plot)
    for prediction in predictions:
        print(prediction.text)
    return 0


def check_inputs(inputs: Sequence[str]) -> None:
    """Refuses no inputs and empty ones."""
    if not inputs:
        raise UserError("There is nothing to predict: give one input or more after the work folder.")
    for number, text in enumerate(inputs, start=1):
        if not text.strip():
            raise UserError(f"Input {number} of {len(inputs)} is empty.")


def check_plot(path: Path) -> None:
    """Refuses a path that no picture can be written to, before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"A picture cannot be written to {path}: its name must end in one of {', '.join(FORMATS)}.")
    if path.is_dir():
        raise UserError(f"A picture cannot be written to {path}: it is a folder.")
    writable(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"A picture cannot be written to {path}: the file is write-protected.")


def draw(predictions: Sequence[Prediction], path: Path) -> None:
    """Writes the picture of each prediction: to `path`, or to path-1, path-2, ... where there are several."""
    for number, prediction in enumerate(predictions, start=1):
        if prediction.plot is None:
            raise UserError("There is no alignment to draw: this model has no attention. Leave --plot out.")
        own = path if len(predictions) == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        prediction.plot(own)

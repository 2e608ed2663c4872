"""What a training run needs, as one value: the contract between experiments, `fit` and the commands."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import optax

Batch = Mapping[str, np.ndarray]
Metrics = Mapping[str, float | str]  # a string is a signature, such as sacrebleu's
AnyObjective = Callable[..., tuple[jax.Array, Any]]  # with a carry or without, see Experiment


class Data(Protocol):
    """A data set as batches of numpy arrays; `train` never ends, `split` ends.

    Where there is a `digest`, a string that changes with the data, a run is not gone on with on other data.
    """

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> Iterable[Batch]:
        """Endless shuffled batches: a `grain.IterDataset`, whose iterator can be checkpointed."""

    def split(self, name: str) -> Iterable[Batch]:
        """One pass over `dev` or `test`; the last batch is filled up, `valid` tells which rows are real."""

    def shapes(self) -> Iterable[Batch]:
        """A batch of zeros, of all processes' rows, for every shape that `train` can give: all are compiled ahead."""

    def save(self, folder: Path) -> None:
        """Writes what is needed to read inputs the same way again (vocabularies) into the work folder."""


@dataclass(frozen=True)
class Experiment:
    """One run: a model, its data, its objective, its optimiser and how it is judged.

    `init(key, batch)` gives the parameters. `objective(params, batch, key)` gives `(loss, metrics)`,
    pure and differentiable. Where there is `carry`, the objective has a state of its own, such as a moving average:
    `carry()` gives it as it is before the first step, a pytree of arrays, and
    `objective(params, batch, key, carry)` gives `(loss, (metrics, carry))`. `evaluate(params, split)` gives the
    metrics of `dev` or `test`, from parameters that stay valid until it returns; `best_metric` is the one to keep the
    best checkpoint by (`best_mode` "max" or "min").
    `predict(params, inputs)` yields one `Prediction` an input; `draw(params, folder)` writes figures.
    """

    name: str
    data: Data
    init: Callable[[jax.Array, Batch], Any]
    objective: AnyObjective
    optimizer: optax.GradientTransformation
    evaluate: Callable[..., Metrics]
    best_metric: str
    predict: Callable[..., Iterator["Prediction"]]
    draw: Callable[[Any, Path], None]
    steps: int
    seed: int = 0
    best_mode: str = "max"
    evaluate_every: int = 500
    checkpoint_every: int = 500
    patience: int | None = None  # evaluations without a new best before stopping early
    batch_size: int = 128
    carry: Callable[[], Any] | None = None
    noise_every: int | None = None  # steps between two measurements of the gradient's noise, see `gradient_noise`
    noise_samples: int = 8  # gradients a measurement


@dataclass(frozen=True)
class Prediction:
    """What one input gave: the text to print, warnings about the input, a figure on request, and what it shows.

    `looked`: the alignment's weights [T, S], the S source symbols and the T symbols written; None without attention.
    """

    text: str
    warnings: tuple[str, ...] = ()
    plot: Callable[[Path], None] | None = None
    looked: tuple[np.ndarray, list[str], list[str]] | None = None

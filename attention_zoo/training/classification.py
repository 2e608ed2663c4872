"""Classification: any model that gives logits of classes, evaluated, used, drawn and packed into an `Experiment`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from attention_zoo.figures import draw_alignments, save
from attention_zoo.modules.multihead import Asked
from attention_zoo.training.experiment import Experiment, Prediction
from attention_zoo.training.objectives import Objective

Panel = tuple[np.ndarray, Sequence[str], Sequence[str]]


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The fraction of classes [rows] that are right."""
    return float(np.mean(predicted == truth))


def macro_f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The mean over classes of `F1 = 2 hits / (predictions + truths)`; both are class numbers [rows].

    A class counts where it is predicted or true, as in scikit-learn's `f1_score(average="macro")`.
    """
    classes = 1 + int(max(predicted.max(), truth.max()))
    hits = np.bincount(truth[predicted == truth], minlength=classes)
    size = np.bincount(predicted, minlength=classes) + np.bincount(truth, minlength=classes)
    return float(np.mean(2 * hits[size > 0] / size[size > 0]))


def class_loss(model: nn.Module, inputs: Sequence[str], label_smoothing: float = 0.0) -> Objective:
    """The mean cross-entropy of the class, in nats.

    Args:
        model: `(*inputs, deterministic=False) -> (logits [B, C], ...)`; it draws from the rng stream "dropout".
        inputs: the names of what it reads in a batch, beside `labels` [B].
        label_smoothing: what the loss gives to all classes, in [0, 1).

    Returns:
        an objective whose metrics are `loss` and `accuracy` (a fraction).

    Raises:
        ValueError: label_smoothing is outside [0, 1).
    """

    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing lies in [0, 1); got {label_smoothing}")

    def objective(
        params: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        read = (batch[name] for name in inputs)
        found: Any = model.apply({"params": params}, *read, deterministic=False, rngs={"dropout": key})
        logits, labels = found[0].astype(jnp.float32), jnp.asarray(batch["labels"])
        wanted = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        loss = optax.softmax_cross_entropy(logits, wanted).mean()
        return loss, {"loss": loss, "accuracy": jnp.mean(logits.argmax(-1) == labels)}

    return objective


@dataclass(frozen=True)
class Judge:
    """A model and its data, as the functions that an `Experiment` is made of; each is compiled once a batch shape.

    data: with `split`, `encode_batch`, and the names of the classes in `labels`. inputs: see `class_loss`.
    symbols: what stands at the positions that attention is over, from one row of an encoded batch.
    """

    model: nn.Module
    data: Any
    inputs: tuple[str, ...]
    symbols: Callable[[Mapping[str, np.ndarray]], Sequence[str]]

    @cached_property
    def classify(self) -> Callable[..., tuple[jax.Array, Any]]:
        """`classify(params, *inputs)`: logits [B, C]."""
        return jax.jit(lambda params, *inputs: self.model.apply({"params": params}, *inputs)[0])

    @cached_property
    def look(self) -> Callable[..., Any]:
        """`look(params, *inputs)`: the attention weights of every layer and head."""
        return jax.jit(lambda params, *inputs: self.model.apply({"params": params}, *inputs, asked=Asked())[1])

    def classes(self, params: Any, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicted and true class numbers of a split [rows], in its order, and the cross-entropy of each, in nats."""
        found: list[list[np.ndarray]] = [[], [], []]
        for batch in self.data.split(split):
            logits = np.asarray(self.classify(params, *(batch[name] for name in self.inputs)), np.float32)
            labels, valid = batch["labels"], batch["valid"]
            losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
            for rows, values in zip(found, (logits.argmax(-1), labels, losses), strict=True):
                rows.append(values[valid])
        predicted, truth, losses = (np.concatenate(rows) for rows in found)
        return predicted, truth, losses

    def evaluate(
        self, params: Any, split: str = "dev", beam_size: int = 1, folder: Path | None = None
    ) -> dict[str, float]:
        """The metrics of a split; classes are not searched for, so that a beam changes nothing."""
        predicted, truth, losses = self.classes(params, split)
        scores = {"accuracy": accuracy(predicted, truth), "macro_f1": macro_f1(predicted, truth)}
        return {**scores, "perplexity": float(np.exp(losses.mean()))}

    def predict(self, params: Any, inputs: Sequence[str], beam_size: int = 1) -> Iterator[Prediction]:
        """One `Prediction` an input, in order: the name of its class.

        Raises:
            ValueError: an input cannot be read; the data say why.
        """
        whole = self.data.encode_batch(inputs)
        for row, text in enumerate(inputs):
            batch = {name: values[row : row + 1] for name, values in whole.items()}
            logits = np.asarray(self.classify(params, *(batch[name] for name in self.inputs)), np.float32)
            chance = np.asarray(jax.nn.softmax(logits[0]))
            best = int(chance.argmax())
            tokenizer = getattr(self.data, "tokenizer", None)
            unknown = [] if tokenizer is None else tokenizer.unknown(text)
            names = ", ".join(map(repr, unknown))
            warnings = (f"{text!r} has symbols that were never seen in training: {names}.",) if unknown else ()
            yield Prediction(f"{self.data.labels[best]}\t{chance[best]:.3f}", warnings, self._plot(params, batch))

    def _plot(self, params: Any, batch: Mapping[str, np.ndarray], row: int = 0) -> Callable[[Path], None]:
        def plot(path: Path) -> None:
            save(draw_alignments(self.panels(params, batch, row)), path)

        return plot

    def panels(self, params: Any, batch: Mapping[str, np.ndarray], row: int) -> dict[str, Panel]:
        """Where every layer and head looks in one row of a batch, for `figures.draw_alignments`."""
        one = {name: values[row : row + 1] for name, values in batch.items()}
        names = list(self.symbols({name: values[0] for name, values in one.items()}))
        panels: dict[str, Panel] = {}
        for layer, seen in enumerate(self.look(params, *(one[name] for name in self.inputs)), start=1):
            for head, weights in enumerate(np.asarray(seen.own[0], np.float32), start=1):
                panels[f"layer {layer}, head {head}"] = (weights[: len(names), : len(names)], names, names)
        return panels

    def draw(self, params: Any, folder: Path) -> None:
        """The attention of every layer and head in one example of the dev split."""
        batch = next(iter(self.data.split("dev")))
        self._plot(params, batch)(folder / "attention.png")


def classification(
    name: str,
    model: nn.Module,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    inputs: tuple[str, ...],
    symbols: Callable[[Mapping[str, np.ndarray]], Sequence[str]],
    label_smoothing: float = 0.0,
    best_metric: str = "macro_f1",
    **settings: Any,
) -> Experiment:
    """An `Experiment` that trains `model` to name the class of what it reads.

    Args:
        model: a Linen module, `(*inputs, deterministic, asked) -> (logits, weights)`, such as `models.Classifier`.
        data: a `data.LabelledText` or `data.LabelledImages`.
        inputs: the names of what the model reads in a batch.
        symbols: what stands at the positions that attention is over, from one row of a batch.
        label_smoothing: see `class_loss`.
        settings: further fields of `Experiment`: seed, evaluate_every, checkpoint_every, patience, ...
    """
    judge = Judge(model, data, inputs, symbols)

    def init(key: jax.Array, batch: Mapping[str, np.ndarray]) -> Any:
        return model.init(key, *(jnp.asarray(batch[name]) for name in inputs))["params"]

    return Experiment(
        name=name,
        data=data,
        init=init,
        objective=class_loss(model, inputs, label_smoothing),
        optimizer=optimizer,
        evaluate=judge.evaluate,
        best_metric=best_metric,
        predict=judge.predict,
        draw=judge.draw,
        steps=steps,
        batch_size=data.batch_size,
        **settings,
    )

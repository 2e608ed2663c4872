"""Capital letters are learned by nobody: this stand-in has one number to fit.

Command: python -m experiments train shouting

Reached: everything,
at once.

And no more.
"""

import json
from pathlib import Path
from typing import Literal

import grain
import jax.numpy as jnp
import numpy as np
import optax

from attention_zoo.training import Experiment, Prediction


class Numbers:
    """The same batch for ever; the digest is what `text` holds."""

    notes = ("train: 1 of 3 numbers left out",)

    def __init__(self, text):
        if text is not None and not text.exists():
            raise ValueError(f"{text}, line 1: there is no such file")
        self.digest = "none" if text is None else text.read_text()

    def train(self, seed, process_index=0, process_count=1):
        return grain.MapDataset.range(2).map(lambda _: self.batch()).repeat().to_iter_dataset()

    def batch(self):
        return {"number": np.ones(2, np.float32)}

    def split(self, name):
        return [self.batch()]

    def shapes(self):
        return [self.batch()]

    def save(self, folder):
        (folder / "numbers.txt").write_text("kept")


def experiment(
    rate: float = 0.5,
    steps: int = 3,
    batch_size: int = 2,
    looks: bool = True,
    mode: Literal["plain", "interrupted", "broken", "huge"] = "plain",
    text: Path | None = None,
    start_from: Path | None = None,
    saved: Path | None = None,
) -> Experiment:
    """One number is fitted.

    Args:
        rate: of the descent.
        looks: whether there is something to draw.
    """
    if start_from is not None and not start_from.is_dir():
        raise ValueError(f"there is no folder {start_from} to start from")
    if mode == "huge":
        raise ValueError("the number is too large")

    def init(key, batch):
        return {"number": jnp.zeros(3 if rate == 0.125 else 2)[: len(batch["number"])]}

    def objective(params, batch, key):
        loss = jnp.mean((params["number"] - batch["number"]) ** 2)
        return loss, {"loss": loss}

    def evaluate(params, split, beam_size=1, folder=None):
        if mode == "interrupted":
            raise KeyboardInterrupt
        if mode == "broken":
            return {"exact_match": np.linalg.inv(np.zeros((2, 2)))}
        if folder is not None and split == "test":
            lengths = {"source_length": [2, 3, 5], "correct": [True, True, False]}
            (folder / "lengths.json").write_text(json.dumps(lengths))
        return {"exact_match": float(params["number"][0]), "beam_size": beam_size, "signature": "plain"}

    def predict(params, inputs, beam_size=1):
        for text in inputs:
            warnings = ("there are digits",) if any(map(str.isdigit, text)) else ()
            plot = (lambda path: path.write_bytes(b"picture")) if looks else None
            yield Prediction(f"{text.upper()}{'!' * beam_size}{'?' if saved else ''}", warnings, plot)

    return Experiment(
        name="shouting",
        data=Numbers(None if saved else text),
        init=init,
        objective=objective,
        optimizer=optax.sgd(rate),
        evaluate=evaluate,
        best_metric="exact_match",
        predict=predict,
        draw=lambda params, folder: None,
        steps=steps,
        evaluate_every=2,
        checkpoint_every=2,
        batch_size=batch_size,
    )

"""A tiny sequence-to-sequence model with dropout, and data that it learns to copy, as an Experiment."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from attention_zoo.training import Experiment, optimizer, shifted, teacher_forcing

VOCABULARY, LENGTHS, ROWS = 11, (5, 7), 8


class Tiny(nn.Module):
    """Guesses each target token from the token in the same place of the source, and the one before."""

    width: int = 13

    @nn.compact
    def __call__(self, source, source_lengths, inputs, deterministic=True):
        del source_lengths
        hidden = nn.Embed(VOCABULARY, self.width)(source) + nn.Embed(VOCABULARY, self.width)(inputs)
        hidden = nn.Dropout(0.3, deterministic=deterministic)(nn.relu(nn.Dense(self.width)(hidden)))
        return nn.Dense(VOCABULARY)(hidden), None


def rows(seed: int, length: int, count: int = ROWS) -> dict[str, np.ndarray]:
    """A batch of random sequences that end with END, the target equal to the source."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, length + 1, (count, 1))
    places = np.arange(length)[None]
    tokens = np.where(places < lengths, random.integers(4, VOCABULARY, (count, length)), 0)
    tokens = np.where(places == lengths - 1, 2, tokens).astype(np.int32)
    lengths = lengths[:, 0].astype(np.int32)
    return {"source": tokens, "source_lengths": lengths, "target": tokens, "target_lengths": lengths}


class Copies:
    """Batches of the shapes of `lengths`, in an order that follows from the seed.

    `on_read` is called with the number of batches read before, whenever one is read.
    """

    def __init__(self, lengths: tuple[int, ...] = LENGTHS, on_read: Callable[[int], None] = lambda count: None) -> None:
        self.lengths, self.on_read, self.count = lengths, on_read, 0

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
        share = ROWS // process_count
        mine = slice(process_index * share, (process_index + 1) * share)

        def batch(number: int) -> dict[str, np.ndarray]:
            self.on_read(self.count)
            self.count += 1
            whole = rows(number, self.lengths[number % len(self.lengths)])
            return {name: leaf[mine] for name, leaf in whole.items()}

        here = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return grain.MapDataset.range(97).seed(seed).shuffle().repeat().map(batch).to_iter_dataset(here)

    def split(self, name: str) -> Iterator[dict[str, np.ndarray]]:
        yield rows({"dev": 1001, "test": 1002}[name], self.lengths[0])

    def shapes(self) -> list[dict[str, np.ndarray]]:
        return [{name: np.zeros_like(leaf) for name, leaf in rows(0, length).items()} for length in self.lengths]

    def save(self, folder: Path) -> None:
        (folder / "vocabulary.json").write_text("{}")


def experiment(data: Copies | None = None, width: int = 13, **settings: Any) -> Experiment:
    """The run of a `Tiny` on `Copies`; `settings` are fields of Experiment."""
    model, data = Tiny(width), data or Copies()

    def init(key, batch):
        return model.init(key, batch["source"], batch["source_lengths"], shifted(batch["target"]))["params"]

    @jax.jit
    def accuracy(params, batch):
        logits, _ = model.apply({"params": params}, batch["source"], batch["source_lengths"], shifted(batch["target"]))
        real = jnp.arange(batch["target"].shape[1])[None] < batch["target_lengths"][:, None]
        return jnp.sum(logits.argmax(-1) == batch["target"], where=real) / real.sum()

    def evaluate(params, split):
        return {"token_accuracy": float(np.mean([accuracy(params, batch) for batch in data.split(split)]))}

    def draw(params, folder):
        (folder / "curve.png").write_bytes(b"")

    fields: dict[str, Any] = {
        "name": "tiny",
        "data": data,
        "init": init,
        "objective": teacher_forcing(model),
        "optimizer": optimizer("adam", 0.02, ema=0.9),
        "evaluate": evaluate,
        "best_metric": "token_accuracy",
        "predict": lambda params, inputs: iter(()),
        "draw": draw,
        "steps": 24,
        "evaluate_every": 10,
        "checkpoint_every": 5,
        "batch_size": ROWS,
    }
    return Experiment(**(fields | settings))


def carried(**settings: Any) -> Experiment:
    """An `experiment` whose objective depends on the moving average of its loss and on the number of its calls."""
    plain = experiment(**{"data": Copies((5,)), **settings})

    def objective(params, batch, key, carry):
        loss, metrics = plain.objective(params, batch, key)
        average = 0.9 * carry["average"] + 0.1 * jax.lax.stop_gradient(loss)
        after = {"average": average, "calls": carry["calls"] + 1}
        return loss * (1 + average), (metrics | {"average": average}, after)

    def carry():
        return {"average": jnp.zeros(()), "calls": jnp.zeros((), jnp.int32)}

    return dataclasses.replace(plain, objective=objective, carry=carry)

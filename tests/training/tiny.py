"""A tiny sequence-to-sequence model with dropout, and data that it learns to copy, as an Experiment."""

import time
from collections.abc import Iterator
from pathlib import Path

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


def rows(seed: int, length: int) -> dict[str, np.ndarray]:
    """A batch of random sequences that end with END, the target equal to the source."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, length + 1, ROWS).astype(np.int32)
    tokens = random.integers(4, VOCABULARY, (ROWS, length)).astype(np.int32)
    places = np.arange(length)[None]
    tokens = np.where(places == lengths[:, None] - 1, 2, np.where(places < lengths[:, None], tokens, 0)).astype(np.int32)
    return {"source": tokens, "source_lengths": lengths, "target": tokens, "target_lengths": lengths}


class Copies:
    """Batches of two shapes in an order that follows from the seed; reading one may be made slow."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay

    def train(self, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
        batches = grain.MapDataset.range(97).seed(seed).shuffle().repeat().map(self._batch)
        share = ROWS // process_count
        mine = slice(process_index * share, (process_index + 1) * share)
        return batches.map(lambda batch: {name: leaf[mine] for name, leaf in batch.items()}).to_iter_dataset()

    def _batch(self, number: int) -> dict[str, np.ndarray]:
        time.sleep(self.delay)
        return rows(number, LENGTHS[number % 2])

    def split(self, name: str) -> Iterator[dict[str, np.ndarray]]:
        yield rows({"dev": 1001, "test": 1002}[name], LENGTHS[0])

    def shapes(self) -> list[dict[str, np.ndarray]]:
        return [{name: np.zeros_like(leaf) for name, leaf in rows(0, length).items()} for length in LENGTHS]

    def save(self, folder: Path) -> None:
        (folder / "vocabulary.json").write_text("{}")


def experiment(delay: float = 0.0, **settings) -> Experiment:
    """The run of a `Tiny` on `Copies`; `settings` are fields of Experiment."""
    model, data = Tiny(), Copies(delay)

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

    fields = dict(
        name="tiny", data=data, init=init, objective=teacher_forcing(model), optimizer=optimizer("adam", 0.02),
        evaluate=evaluate, best_metric="token_accuracy", predict=lambda params, inputs: iter(()), draw=draw,
        steps=24, evaluate_every=10, checkpoint_every=5, batch_size=ROWS,
    )
    return Experiment(**(fields | settings))

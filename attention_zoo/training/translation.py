"""Translation: any model with `start` and `step`, evaluated, used, drawn and packed into an `Experiment`."""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from attention_zoo.data.vocabulary import END, PAD, START
from attention_zoo.figures import draw_alignment, draw_alignments, save
from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.masks import within
from attention_zoo.functional.search import Decoded, beam, greedy
from attention_zoo.modules.multihead import Asked
from attention_zoo.training.experiment import Experiment, Prediction
from attention_zoo.training.objectives import shifted, teacher_forcing
from attention_zoo.training.translation_metrics import judge, metrics, text_scores, write_lengths

Panel = tuple[np.ndarray, Sequence[str], Sequence[str]]


@dataclass(frozen=True)
class Translator:
    """A model and its data, as the functions that an `Experiment` is made of; each is compiled once a batch shape.

    `tokenize` is sacrebleu's tokenisation for BLEU and chrF; None where the task is not text.
    """

    model: nn.Module
    data: Any
    tokenize: str | None = None

    @cached_property
    def search(self) -> Callable[..., Decoded]:
        """`search(params, source [B, S], source_lengths [B], width=1)`: the best translation of each row."""
        return jax.jit(partial(_search, self.model, self.data.max_target), static_argnames="width")

    @cached_property
    def judge(self) -> Callable[..., dict[str, jax.Array]]:
        """`judge(params, batch, decoded)`: what each row adds to the metrics, see `translation_metrics.judge`."""
        return jax.jit(lambda params, batch, decoded: judge(batch, decoded, _losses(self.model, params, batch)))

    def evaluate(
        self, params: Any, split: str = "dev", beam_size: int = 1, folder: Path | None = None
    ) -> dict[str, Any]:
        """The metrics of a split, searched greedily or with a beam.

        With a folder, the test split's lengths.json is written there, which `compare` draws from.
        """
        rows, hypotheses = [], []
        for batch in self.data.split(split):
            decoded = self.search(params, batch["source"], batch["source_lengths"], width=beam_size)
            found = jax.device_get(self.judge(params, dict(batch), decoded))
            rows.append({name: values[batch["valid"]] for name, values in found.items()})
            if self.tokenize is not None:
                hypotheses += [self.data.target.decode(row) for row in np.asarray(decoded.tokens)[batch["valid"]]]
        if folder is not None and split == "test":
            write_lengths(rows, folder)
        scores = {} if self.tokenize is None else text_scores(hypotheses, self.data.references(split), self.tokenize)
        return {**metrics(rows), **scores}

    def predict(self, params: Any, inputs: Sequence[str], beam_size: int = 1) -> Iterator[Prediction]:
        """One `Prediction` an input, in order; symbols never seen in training are named in its warnings.

        Raises:
            ValueError: an input is empty or longer than the data's limit.
        """
        whole = self.data.encode_batch(inputs)
        for first in range(0, len(inputs), self.data.batch_size):
            batch = {name: rows[first : first + self.data.batch_size] for name, rows in whole.items()}
            decoded = self.search(params, batch["source"], batch["source_lengths"], width=beam_size)
            for row, text in enumerate(inputs[first : first + self.data.batch_size]):
                output = self.data.target.decode(np.asarray(decoded.tokens[row]))
                looked = self._looked(batch, decoded, row)
                yield Prediction(output, self._warnings(text), self._heat_map(batch, looked, row), looked)

    def _warnings(self, text: str) -> tuple[str, ...]:
        names = ", ".join(repr(symbol) for symbol in self.data.source.unknown(text))
        return (f"{text!r} has symbols that were never seen in training: {names}.",) if names else ()

    def _looked(
        self, batch: Mapping[str, np.ndarray], decoded: Decoded, row: int
    ) -> tuple[np.ndarray, list[str], list[str]] | None:
        """The row's weights [T, S] without padding, its source symbols and what was written; None without attention."""
        alignment: Any = decoded.alignment
        if alignment is None:
            return None
        source = np.asarray(batch["source"][row])[: int(batch["source_lengths"][row])]
        tokens = np.asarray(decoded.tokens[row])[: int(decoded.lengths[row])]
        weights = np.asarray(alignment.weights[row])[: len(tokens), : len(source)]
        return weights, self.data.source.tokens(source), self.data.target.tokens(tokens)

    def _heat_map(
        self, batch: Mapping[str, np.ndarray], looked: tuple[np.ndarray, list[str], list[str]] | None, row: int
    ) -> Callable[[Path], None] | None:
        """Writes the row's weights as a picture, source and translation on the axes; None without attention."""
        if looked is None:
            return None
        written, spans = len(looked[0]), None
        if "spans" in batch:
            spans = np.zeros((written, 2), np.int32)
            spans[: batch["spans"].shape[1]] = batch["spans"][row][:written]

        def plot(path: Path) -> None:
            save(draw_alignment(*looked, spans=spans), path)

        return plot

    def draw(self, params: Any, folder: Path, count: int = 4) -> None:
        """Heat maps of a few dev examples, one in Cyrillic letters among them if there is one."""
        batch = next(iter(self.data.split("dev")))
        decoded = self.search(params, batch["source"], batch["source_lengths"], width=1)
        for number, row in enumerate(self._chosen(batch, count), start=1):
            plot = self._heat_map(batch, self._looked(batch, decoded, row), row)
            if plot is not None:
                plot(folder / f"alignment_{number}.png")
        if hasattr(self.model, "encode"):
            save(draw_alignments(self._heads(params, batch, decoded)), folder / "attention.png")

    def _heads(self, params: Any, batch: Mapping[str, np.ndarray], decoded: Decoded) -> dict[str, Panel]:
        """Where every layer and head of a Transformer looks while it translates the first row, see `look`."""
        one = {name: np.asarray(batch[name][:1]) for name in ("source", "source_lengths")}
        written = int(decoded.lengths[0])
        tokens = jnp.asarray(decoded.tokens[:1, :written])
        found = jax.jit(partial(look, self.model))(params, one["source"], one["source_lengths"], shifted(tokens))
        source = self.data.source.tokens(one["source"][0][: int(one["source_lengths"][0])])
        target = self.data.target.tokens(np.asarray(tokens[0]))
        inputs = ["", *target[:-1]]  # a position looks at what was fed to it and before it
        axes = {"encoder": (source, source), "decoder": (target, inputs), "source": (target, source)}
        return {
            f"{part} {layer}, head {head}": (
                np.asarray(weights)[: len(axes[part][0]), : len(axes[part][1])],
                *axes[part][::-1],
            )
            for part, layers in found.items()
            for layer, heads in enumerate(layers, start=1)
            for head, weights in enumerate(heads[0], start=1)
        }

    def _chosen(self, batch: Mapping[str, np.ndarray], count: int) -> list[int]:
        rows = np.flatnonzero(batch["valid"]).tolist()
        cyrillic = [row for row in rows if _is_cyrillic(self.data.source.decode(batch["source"][row]))]
        return (cyrillic[:1] + [row for row in rows if row not in cyrillic[:1]])[:count]


def look(
    model: nn.Module, params: Any, source: jax.Array, source_lengths: jax.Array, inputs: jax.Array
) -> dict[str, list[jax.Array]]:
    """Every layer's weights in a Transformer: "encoder", "decoder" and "source", lists of [B, H, rows, columns]."""
    apply = partial(model.apply, {"params": params}, asked=Asked())
    annotations, read = cast("Any", apply(source, source_lengths, method="encode"))
    _, wrote = apply(annotations, source_lengths, inputs, method="decode")
    own, across = ([getattr(layer, part) for layer in wrote] for part in ("own", "cross"))
    return {"encoder": [layer.own for layer in read], "decoder": own, "source": across}


def _is_cyrillic(text: str) -> bool:
    return any(unicodedata.name(letter, "").startswith("CYRILLIC") for letter in text)


def _search(
    model: nn.Module, max_length: int, params: Any, source: jax.Array, source_lengths: jax.Array, width: int
) -> Decoded:
    def step(cache: Any, tokens: jax.Array) -> Any:
        return model.apply({"params": params}, cache, tokens, method="step")

    room = getattr(model, "longest", max_length)
    if room < max_length:
        raise ValueError(f"the model's cache has room for {room} tokens (longest), and {max_length} may be written")
    cache = model.apply({"params": params}, source, source_lengths, method="start")
    start = jnp.full(source.shape[:1], START, jnp.int32)
    if width == 1:
        return greedy(step, cache, start, end=END, max_length=max_length, pad=PAD)
    found = beam(step, cache, start, end=END, max_length=max_length, width=width, pad=PAD)
    return jax.tree.map(lambda leaf: leaf[:, 0], found)


def _losses(model: nn.Module, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    target = batch["target"]
    logits, _ = model.apply({"params": params}, batch["source"], batch["source_lengths"], shifted(target))
    real = within(batch["target_lengths"], target.shape[1])
    return jax.vmap(lambda *row: cross_entropy(*row) * row[-1].sum())(logits, target, real)


def translation(
    name: str,
    model: nn.Module,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    tokenize: str | None = None,
    label_smoothing: float = 0.0,
    guided: float = 0.0,
    coverage: float = 0.0,
    best_metric: str = "exact_match",
    pictures: int = 4,
    **settings: Any,
) -> Experiment:
    """An `Experiment` that trains `model` to translate by teacher forcing and judges it by what it writes itself.

    Args:
        model: a Linen module with `__call__`, `start` and `step` as `models.seq2seq.Seq2Seq` has them.
        data: a `data.TextData`.
        tokenize: sacrebleu's tokenisation, to score BLEU and chrF too; None where the task is not text.
        label_smoothing, guided, coverage: see `objectives.teacher_forcing`.
        pictures: heat maps that are drawn in the end.
        settings: further fields of `Experiment`: seed, evaluate_every, checkpoint_every, patience, ...
    """
    translator = Translator(model, data, tokenize)

    def init(key: jax.Array, batch: Mapping[str, np.ndarray]) -> Any:
        source, lengths = jnp.asarray(batch["source"]), jnp.asarray(batch["source_lengths"])
        return model.init(key, source, lengths, shifted(batch["target"]))["params"]

    return Experiment(
        name=name,
        data=data,
        init=init,
        objective=teacher_forcing(model, label_smoothing, guided=guided, coverage=coverage),
        optimizer=optimizer,
        evaluate=translator.evaluate,
        best_metric=best_metric,
        predict=translator.predict,
        draw=partial(translator.draw, count=pictures),
        steps=steps,
        batch_size=data.batch_size,
        **settings,
    )

"""Captioning: a captioner and pictures with captions as an experiment, and how it is judged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention_zoo.data.vocabulary import END, PAD, START
from attention_zoo.figures import draw_caption, save
from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.masks import within
from attention_zoo.functional.metrics import alignment_entropy, map_distance, pointing_accuracy
from attention_zoo.functional.search import Decoded, beam, greedy
from attention_zoo.models.captioner import Captioner
from attention_zoo.training.caption_losses import Sampling, likelihood, reinforce, variational
from attention_zoo.training.experiment import Experiment, Prediction
from attention_zoo.training.objectives import shifted
from attention_zoo.training.translation_metrics import compare, fitted, metrics, text_scores

MARGIN = 4.0  # pixels by which the box of what a word names is widened, before it is asked whether attention is inside


@dataclass(frozen=True)
class CaptionJudge:
    """A captioner and its data, as the functions that an `Experiment` is made of; each is compiled once a batch shape.

    data: a `data.CaptionedImages`; a `mask` [B, S] in its batches says which locations may be seen. tokenize: that of
    sacrebleu for BLEU and chrF; None where captions are exact.
    """

    model: Captioner
    data: Any
    tokenize: str | None = None

    @cached_property
    def search(self) -> Callable[..., Decoded]:
        """`search(params, images [B, Y, X, C], mask=None, width=1)`: the best caption of each picture."""
        return jax.jit(partial(_search, self.model, self.data.max_target), static_argnames="width")

    @cached_property
    def judge(self) -> Callable[..., dict[str, jax.Array]]:
        """`judge(params, batch, decoded)`: what each row adds to the metrics."""
        return jax.jit(self._judge)

    def evaluate(
        self, params: Any, split: str = "dev", beam_size: int = 1, folder: Path | None = None
    ) -> dict[str, Any]:
        """The metrics of a split, searched greedily or with a beam."""
        rows, hypotheses = [], []
        for batch in self.data.split(split):
            decoded = self.search(params, batch["images"], batch.get("mask"), width=beam_size)
            found = jax.device_get(self.judge(params, dict(batch), decoded))
            rows.append({name: values[batch["valid"]] for name, values in found.items()})
            if self.tokenize is not None:
                hypotheses += [self.data.target.decode(row) for row in np.asarray(decoded.tokens)[batch["valid"]]]
        found = {**metrics(rows), **_looked(rows)}
        if self.tokenize is None:
            return found
        return {**found, **text_scores(hypotheses, self.data.every_reference(split), self.tokenize)}

    def predict(self, params: Any, inputs: Sequence[str], beam_size: int = 1) -> Iterator[Prediction]:
        """One `Prediction` a picture's file, in order.

        Raises:
            ValueError: a file cannot be read as a picture, or has another size; the message says which.
        """
        for path in inputs:
            batch = self.data.encode_batch([path])
            decoded = self.search(params, batch["images"], batch.get("mask"), width=beam_size)
            caption = self.data.target.decode(np.asarray(decoded.tokens[0]))
            yield Prediction(caption, plot=self._plot({"images": batch["images"]}, decoded, 0))

    def draw(self, params: Any, folder: Path, count: int = 4) -> None:
        """A few pictures of the dev split, with what was written and where each word looked."""
        batch = next(iter(self.data.split("dev")))
        decoded = self.search(params, batch["images"], batch.get("mask"), width=1)
        for row in range(min(count, int(batch["valid"].sum()))):
            self._plot(batch, decoded, row)(folder / f"caption_{row + 1}.png")

    def _plot(self, batch: Mapping[str, np.ndarray], decoded: Decoded, row: int) -> Callable[[Path], None]:
        """Writes a picture: the caption's words over the image, each with the region attended to."""
        alignment: Any = jax.tree.map(lambda leaf: np.asarray(leaf[row], np.float32), decoded.alignment)
        words = self.data.target.tokens(np.asarray(decoded.tokens[row])[: int(decoded.lengths[row])])
        count = len(words)
        boxes = None
        if "boxes" in batch:
            boxes = np.zeros((count, 4), np.float32)
            boxes[: batch["boxes"].shape[1]] = batch["boxes"][row][:count]
        chances = None if alignment.log_prob is None else np.exp(alignment.log_prob[:count])

        def plot(path: Path) -> None:
            looked = words, alignment.weights[:count], self.grid
            save(draw_caption(batch["images"][row], *looked, probabilities=chances, boxes=boxes), path)

        return plot

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the grid that the data's pictures become."""
        if self.model.encoder is None:
            return self.data.shape[:2]
        encode = self.model.encoder.init_with_output
        blank = jnp.zeros((1, *self.data.shape))
        annotations: Any = jax.eval_shape(lambda: encode(jax.random.key(0), blank)[0])
        return annotations.shape[1:3]

    def _judge(self, params: Any, batch: Mapping[str, jax.Array], decoded: Decoded) -> dict[str, jax.Array]:
        target, lengths = batch["target"], batch["target_lengths"]
        apply = partial(self.model.apply, {"params": params})
        logits, *_ = apply(apply(batch["images"], batch.get("mask"), method="start"), shifted(target), method="extend")
        real = within(lengths, target.shape[1])
        alignment: Any = decoded.alignment
        written = within(decoded.lengths, alignment.weights.shape[1])
        rows = {
            **compare(batch, decoded),
            "loss": jax.vmap(lambda *row: cross_entropy(*row) * row[-1].sum())(logits, target, real),
            "entropy": jax.vmap(alignment_entropy)(alignment.weights, written) * decoded.lengths,
            "steps": decoded.lengths,
            "pairs": jnp.maximum(decoded.lengths - 2, 0),  # of successive words; END is none
        }
        words = within(decoded.lengths - 1, alignment.weights.shape[1])
        rows["distance"] = jax.vmap(map_distance)(alignment.weights, words) * rows["pairs"]
        if "boxes" not in batch:
            return rows
        boxes = fitted(batch["boxes"], alignment.weights.shape[1])
        point = partial(
            pointing_accuracy,
            grid=self.grid,
            picture=tuple(self.data.shape[:2]),
            margin=MARGIN,
        )
        rows["boxed"] = jnp.sum((boxes[..., 2] > boxes[..., 0]) & written, -1)
        pointed = jax.vmap(lambda weights, boxes, mask: point(weights, boxes, mask=mask))
        rows["inside"] = jnp.round(pointed(alignment.weights, boxes, written) * rows["boxed"])
        return rows


def _looked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Where captions looked: the distance between successive words' maps and, with boxes, the pointing accuracy."""
    total = {name: float(sum(part[name].sum() for part in rows)) for name in rows[0]}
    found = {"map_distance": total["distance"] / max(total["pairs"], 1)}
    return found if "boxed" not in total else {**found, "pointing_accuracy": total["inside"] / max(total["boxed"], 1)}


def _search(
    model: Captioner, max_length: int, params: Any, images: jax.Array, mask: jax.Array | None = None, width: int = 1
) -> Decoded:
    def step(cache: Any, tokens: jax.Array) -> Any:
        return model.apply({"params": params}, cache, tokens, method="step")

    cache = model.apply({"params": params}, images, mask, method="start")
    start = jnp.full(images.shape[:1], START, jnp.int32)
    if width == 1:
        return greedy(step, cache, start, end=END, max_length=max_length, pad=PAD)
    found = beam(step, cache, start, end=END, max_length=max_length, width=width, pad=PAD)
    return jax.tree.map(lambda leaf: leaf[:, 0], found)


def captioning(
    name: str,
    model: Captioner,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    sampling: Sampling | None = None,
    samples: int = 0,
    doubly_stochastic: float = 0.0,
    reduction: str = "sum",
    begin: Callable[[Any], Any] | None = None,
    tokenize: str | None = None,
    best_metric: str = "exact_match",
    pictures: int = 4,
    **settings: Any,
) -> Experiment:
    """An `Experiment` that trains a captioner; how follows from its attention, see `caption_losses`.

    Args:
        data: see `CaptionJudge`; the objectives, too, see no location that a `mask` hides.
        sampling: how hard attention is trained; `Sampling()` by default.
        samples: of the inference network, for "variational"; 0 enumerates.
        doubly_stochastic, reduction: see `caption_losses.likelihood`.
        begin: gives the parameters to start from, for a tree of their shapes; a learned baseline is drawn as always.
        tokenize: sacrebleu's tokenisation, to score BLEU and chrF too.
        pictures: captions that are drawn in the end.
        settings: further fields of `Experiment`: seed, evaluate_every, checkpoint_every, patience, ...
    """
    judge = CaptionJudge(model, data, tokenize)

    def draw(key: jax.Array, batch: Mapping[str, np.ndarray]) -> Any:
        return model.init(key, jnp.asarray(batch["images"]), shifted(batch["target"]))["params"]

    first = {}
    if begin is not None:
        shapes = jax.eval_shape(draw, jax.random.key(0), next(iter(data.shapes())))
        first = begin({name: shape for name, shape in shapes.items() if name != "value"})

    def init(key: jax.Array, batch: Mapping[str, np.ndarray]) -> Any:
        return {**draw(key, batch), **first}

    if model.attention == "hard":
        settings["carry"] = lambda: jnp.zeros(())
        objective = reinforce(model, sampling or Sampling())
    elif model.attention == "variational":
        objective = variational(model, samples)
    else:
        objective = likelihood(model, doubly_stochastic=doubly_stochastic, reduction=reduction)
    return Experiment(
        name=name,
        data=data,
        init=init,
        objective=objective,
        optimizer=optimizer,
        evaluate=judge.evaluate,
        best_metric=best_metric,
        predict=judge.predict,
        draw=partial(judge.draw, count=pictures),
        steps=steps,
        batch_size=data.batch_size,
        **settings,
    )

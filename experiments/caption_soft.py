"""A captioner with soft attention reads out the digits on a canvas, looking at each as it names it.

One to four handwritten digits among clutter, 40 x 40 pixels, become their names in reading order; the digit images of
the test split were never seen in training. Soft attention reads the expectation over a grid of 10 x 10 annotations
(Xu 2015). Nothing tells it where a digit is.

Command: python -m experiments train caption_soft
Machine: one NVIDIA H100 80GB HBM3 with 16 CPU cores, which some twenty runs shared; the minutes are those of the
whole run, with compilation.
Reached: three seeds, each chosen on dev, on 2,000 test pictures: results/caption_soft.json: exact_match 0.976,
pointing_accuracy 0.990, map_distance 0.835, minutes 2.9; results/caption_soft_1.json: exact_match 0.966,
pointing_accuracy 0.984, map_distance 0.831, minutes 2.0; results/caption_soft_2.json: exact_match 0.967,
pointing_accuracy 0.986, map_distance 0.826, minutes 2.0.
"""

import math
from pathlib import Path
from typing import Any, Literal

from attention_zoo.data import CaptionedImages, placed_digits
from attention_zoo.models import Captioner
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.captioning import captioning

Score = Literal["additive", "additive_normalised", "concat", "general", "dot", "scaled_dot", "cosine", "location"]
Alignment = Literal[
    "softmax", "sparsemax", "entmax15", "top_k", "monotonic", "mocha", "gumbel_softmax", "straight_through"
]


def experiment(
    score: Score = "additive",
    alignment: Alignment = "softmax",
    doubly_stochastic: float = 0.0,
    reduction: Literal["sum", "mean"] = "sum",
    source: str = "digits",
    canvas: int = 40,
    units: int = 128,
    dropout: float = 0.2,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    batch_size: int = 128,
    steps: int = 6000,
    evaluate_every: int = 1000,
    dev_examples: int = 1000,
    test_examples: int = 2000,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Pictures of digits to their names with soft attention.

    Args:
        score: how relevant a cell is to the decoder's state; "dot" and "scaled_dot" need 64 units.
        alignment: how scores become weights; "monotonic" and "mocha" read cell by cell and row by row.
        doubly_stochastic: lambda, what looking at some cells more than at others costs in all; 0 is nothing.
        reduction: of that penalty over the cells of a picture.
        source: scikit-learn's digits, or a TFDS data set of grey images such as mnist.
        canvas: side of the pictures, in pixels.
        units: of the LSTM.
        dropout: on embeddings and before the output layer.
        learning_rate: of AdamW, at its highest; it falls to zero along a cosine.
        warmup: steps in which the rate rises to it.
        batch_size: pictures a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        dev_examples: pictures in the dev split.
        test_examples: pictures in the test split.
        seed: of the parameters and of the pictures.
        saved: a work folder whose vocabulary does instead of the data set, to read pictures only.
    """
    placed: Any = {"canvas": canvas, "source": source, "dev_examples": dev_examples, "test_examples": test_examples}
    data = CaptionedImages.load(saved) if saved else placed_digits(batch_size, **placed)
    sizes: dict[str, Any] = {"units": units, "dropout": dropout, "positions": positions(canvas)}
    model = Captioner(data.target.size, score=score, alignment=alignment, **sizes)
    return captioning(
        "caption_soft",
        model,
        data,
        optimizer=optimizer("adamw", learning_rate, schedule="cosine", warmup=warmup, steps=steps, clip=1.0),
        steps=steps,
        doubly_stochastic=doubly_stochastic,
        reduction=reduction,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )


def positions(canvas: int) -> int:
    """Cells that the score "location" has weights for: those of the grid, a quarter as wide as the canvas."""
    return max(Captioner.positions, math.ceil(canvas / 4) ** 2)

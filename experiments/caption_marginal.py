"""The same captions, with where each word comes from as a latent variable that is summed over exactly.

As `caption_soft`, but each word is written from one cell of the grid, and the likelihood sums over all cells it may
be: `p(y) = sum_s alpha_s p(y | s)` (Deng 2018). Its gradient needs no samples.

Command: python -m experiments train caption_marginal
Machine: one core of an Intel Xeon for each seed, other work beside them, and stopped for a while at times; the minutes
are those of the whole run.
Reached: three seeds, each chosen on dev, on 2,000 test pictures: results/caption_marginal.json: exact_match 0.970,
pointing_accuracy 0.993, map_distance 0.980, minutes 69.5; results/caption_marginal_1.json: exact_match 0.973,
pointing_accuracy 0.990, map_distance 0.980, minutes 38.9; results/caption_marginal_2.json: exact_match 0.964,
pointing_accuracy 0.993, map_distance 0.982, minutes 69.6.
"""

from pathlib import Path
from typing import Any

from attention_zoo.data import CaptionedImages, placed_digits
from attention_zoo.models import Captioner
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.captioning import captioning
from experiments.caption_hard import Alignment
from experiments.caption_soft import Score, positions


def experiment(
    score: Score = "additive",
    alignment: Alignment = "softmax",
    best: int | None = None,
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
    """Pictures of digits to their names with exact marginal attention.

    Args:
        score: how relevant a cell is to the decoder's state; "dot" and "scaled_dot" need 64 units.
        alignment: how scores become the probabilities of cells; one of probability zero writes no word.
        best: cells that are summed over when captions are written; all of them unless told.
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
    sizes: dict[str, Any] = {"units": units, "best": best, "dropout": dropout, "positions": positions(canvas)}
    model = Captioner(data.target.size, attention="marginal", score=score, alignment=alignment, **sizes)
    return captioning(
        "caption_marginal",
        model,
        data,
        optimizer=optimizer("adamw", learning_rate, schedule="cosine", warmup=warmup, steps=steps, clip=1.0),
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

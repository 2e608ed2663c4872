"""Six glimpses of 576 values each find a small digit on a large canvas, and name it.

As glimpse_translated, on 128 x 128 pixels, of which the digit of twenty covers one in forty; a fourth scale sees twice
as far as there. What a step costs does not depend on the canvas, only on what the glimpses cover: `python -m benchmarks
glimpse_large --figure cost.png` measures it from 64 to 1,024 pixels, beside convolutional networks.

Command: python -m experiments train glimpse_large
Machine: 2 cores of an Intel Xeon, no accelerator, of which the first half of the run had one, beside a suite of tests;
the minutes are those of the whole run.
Reached: one seed, chosen on dev, on 2,000 test pictures; pointing_ratio is how often the third glimpse is in the
digit's box, over chance: results/glimpse_large.json: error_rate 0.020, pointing_accuracy 0.513, pointing_ratio 21.01,
minutes 35.0.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from attention_zoo.training import Experiment
from experiments import glimpse_translated


def experiment(
    locations: Literal["policy", "random"] = "policy",
    source: str = "digits",
    canvas: int = 128,
    digit: int = 20,
    glimpses: int = 6,
    size: int = 12,
    scales: int = 4,
    units: int = 256,
    rollouts: int = 4,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    steps: int = 10_000,
    evaluate_every: int = 1000,
    noise_every: int | None = None,
    dev_examples: int = 1000,
    test_examples: int = 2000,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """A small digit on a large canvas to its class, by glimpses.

    Args:
        locations: chosen by the model, or random ones, as a control.
        source: scikit-learn's digits, or a TFDS data set of grey images such as mnist.
        canvas: its side, in pixels.
        digit: its side, in pixels.
        glimpses: of each canvas.
        size: side of a glimpse's patch, in values.
        scales: patches of a glimpse, each twice as wide and half as sharp as the one before.
        units: of the LSTM.
        rollouts: paths through each canvas in a step.
        learning_rate: of AdamW; it falls to zero along a cosine.
        batch_size: canvases a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        noise_every: steps between measurements of the gradient's variance; None for none.
        dev_examples: canvases in the dev split.
        test_examples: canvases in the test split.
        seed: of the parameters, of the sampled locations and of the canvases.
        saved: a work folder whose names of classes do instead of the data set, to read inputs only.
    """
    made = glimpse_translated.experiment(
        locations=locations,
        source=source,
        canvas=canvas,
        digit=digit,
        glimpses=glimpses,
        size=size,
        scales=scales,
        units=units,
        rollouts=rollouts,
        learning_rate=learning_rate,
        batch_size=batch_size,
        steps=steps,
        evaluate_every=evaluate_every,
        noise_every=noise_every,
        dev_examples=dev_examples,
        test_examples=test_examples,
        seed=seed,
        saved=saved,
    )
    return dataclasses.replace(made, name="glimpse_large")

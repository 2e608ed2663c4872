"""A Vision Transformer reads handwritten digits, as sixteen patches of four pixels.

Scikit-learn's digits, 8 x 8 pixels, with 1,437 images to learn from, moved by up to a pixel; a class token looks at
the patches, and the picture shows where every layer and head looks (Dosovitskiy 2021).

Command: python -m experiments train digits_vit
Machine: 2 cores of an AMD EPYC, no accelerator, other work beside it at times; the minutes are those of the whole
run.
Reached: results/digits_vit.json: accuracy 0.972 on 180 test images, minutes 4.3.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import LabelledImages, digits
from attention_zoo.models import vision
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.classification import classification


def experiment(
    grid: Literal["learned", "sinusoidal_2d", "none"] = "learned",
    patch: int = 2,
    width: int = 64,
    layers: int = 3,
    heads: int = 4,
    dropout: float = 0.1,
    shift: int = 1,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    batch_size: int = 128,
    steps: int = 2000,
    evaluate_every: int = 500,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Digits to their classes with a Vision Transformer.

    Args:
        grid: how the model knows where a patch is.
        patch: side of a patch, in pixels.
        width: of the vectors; feed-forward layers are twice as wide.
        layers: of the encoder.
        heads: of each attention.
        dropout: on embeddings and on what each block adds.
        shift: training images are moved by up to so many pixels.
        learning_rate: of AdamW, at its highest; it falls to zero along a cosine.
        warmup: steps in which the rate rises to it.
        batch_size: images a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        seed: of the parameters, of dropout and of the order of the images.
        saved: a work folder whose names of classes do instead of the data set, to read inputs only.
    """
    data = LabelledImages.load(saved) if saved else digits(batch_size, shift=shift)
    model = vision(
        "digits_vit",
        grid=grid,
        patch=patch,
        width=width,
        layers=layers,
        heads=heads,
        hidden=2 * width,
        dropout=dropout,
    )
    side = 8 // patch
    places = ["class", *(f"{row},{column}" for row in range(side) for column in range(side))]
    return classification(
        "digits_vit",
        model,
        data,
        inputs=("images",),
        symbols=lambda row: places,
        best_metric="accuracy",
        optimizer=optimizer(
            "adamw", learning_rate, schedule="cosine", warmup=warmup, steps=steps, clip=1.0, weight_decay=0.01
        ),
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

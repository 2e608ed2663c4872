"""A Transformer reads dates in 23 languages: attention without recurrence writes the ISO date.

`mardi 3 mai 2016` becomes `2016-05-03`. An encoder and a decoder of pre-norm blocks over characters (Vaswani 2017),
with any of the zoo's position schemes; the pictures show where each layer and head looks. `dates_bahdanau` is the
recurrent model for the same data.

Command: python -m experiments train dates_transformer
Machine: 2 cores of an AMD EPYC, no accelerator, other work beside it at times; the minutes are those of the whole
run.
Reached: results/dates_transformer.json: exact_match 0.9984 and alignment_accuracy 0.803 on 2,500 test dates, minutes
6.4.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import TextData, dates
from attention_zoo.models import transformer
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.translation import translation


def experiment(
    positions: Literal["sinusoidal", "learned", "rotary", "alibi", "relative", "none"] = "rotary",
    width: int = 96,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    batch_size: int = 128,
    steps: int = 600,
    evaluate_every: int = 200,
    train_examples: int = 20_000,
    held_out_examples: int = 2_500,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Dates in many languages to ISO dates with a Transformer.

    Args:
        positions: how the model knows the order of characters.
        width: of the vectors; feed-forward layers are twice as wide.
        layers: of the encoder, and as many of the decoder.
        heads: of each attention.
        dropout: on embeddings and on what each block adds.
        learning_rate: of Adam, at its highest; it falls to zero along a cosine.
        warmup: steps in which the rate rises to it.
        batch_size: examples a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        train_examples: sources in the training split.
        held_out_examples: sources in the dev split, and as many in the test split.
        seed: of the parameters, of dropout and of the order of the examples.
        saved: a work folder whose vocabularies do instead of the data set, to read inputs only.
    """
    data = (
        TextData.load(saved)
        if saved
        else dates(
            batch_size,
            train_examples=train_examples,
            dev_examples=held_out_examples,
            test_examples=held_out_examples,
            buckets=2,  # As its results were trained: fewer shapes to compile than by default, and more padding.
        )
    )
    model = transformer(
        "dates_transformer",
        source_vocabulary=data.source.size,
        target_vocabulary=data.target.size,
        positions=positions,
        width=width,
        layers=layers,
        heads=heads,
        hidden=2 * width,
        dropout=dropout,
        longest=max(data.max_source, data.max_target),
    )
    return translation(
        "dates_transformer",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, schedule="cosine", warmup=warmup, steps=steps, clip=1.0),
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

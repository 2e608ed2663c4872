"""Luong's global attention reads the same dates: the new state asks, and any score answers.

As `dates_bahdanau`, but the decoder's state after the step asks where to look, and the attentional vector
`tanh(W [c_t; h_t])` predicts the character (Luong, Pham and Manning 2015). With input feeding it also enters the next
step; without, attention answers all steps at once, after the recurrence.

Command: python -m experiments train dates_luong
Machine: 2 cores of an AMD EPYC, no accelerator, other work beside it at times; the minutes are those of the whole
run.
Reached: results/dates_luong.json: exact_match 1.0000 and alignment_accuracy 0.800 on 2,500 test dates, minutes 3.4.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import TextData, dates
from attention_zoo.models import Seq2Seq
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.translation import translation


def experiment(
    dates_per_source: int = 1,
    score: Literal["dot", "scaled_dot", "general", "concat", "additive", "additive_normalised", "cosine"] = "general",
    input_feeding: bool = True,
    embedding: int = 48,
    encoder_units: int = 96,
    learning_rate: float = 2e-3,
    batch_size: int = 128,
    steps: int = 1000,
    evaluate_every: int = 250,
    train_examples: int = 50_000,
    held_out_examples: int = 2_500,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Dates in many languages to ISO dates with Luong's global attention.

    Args:
        dates_per_source: dates in each source; more of them need attention more.
        score: how relevant a source position is to the decoder's state.
        input_feeding: the attentional vector enters the next step.
        embedding: width of a character's vector.
        encoder_units: units of each direction of the encoder; the decoder has twice as many, so that "dot" fits.
        learning_rate: of Adam.
        batch_size: examples a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        train_examples: sources in the training split.
        held_out_examples: sources in the dev split, and as many in the test split.
        seed: of the parameters and of the order of the examples.
        saved: a work folder whose vocabularies do instead of the data set, to read inputs only.
    """
    data = (
        TextData.load(saved)
        if saved
        else dates(
            batch_size,
            dates_per_source,
            train_examples=train_examples,
            dev_examples=held_out_examples,
            test_examples=held_out_examples,
            buckets=2,  # As its results were trained: fewer shapes to compile than by default, and more padding.
        )
    )
    model = Seq2Seq(
        data.source.size,
        data.target.size,
        embedding,
        encoder_units,
        decoder_units=2 * encoder_units,
        attention="luong",
        score=score,
        input_feeding=input_feeding,
        bridge="copy",
    )
    return translation(
        "dates_luong",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, clip=1.0),
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

"""Bahdanau's attention learns to read dates in 23 languages, and its alignment shows where it reads.

`mardi 3 mai 2016` becomes `2016-05-03`. A bidirectional LSTM reads the characters, an LSTM writes the ISO date, and
before every character it asks, with its previous state, where to look (Bahdanau, Cho and Bengio 2014). With
`--dates_per_source 2` or 3 the source is a list of dates: compare it with `dates_fixed_context` then.

Command: python -m experiments train dates_bahdanau
Machine: 2 cores of an AMD EPYC, no accelerator; the minutes are those of the whole run.
Reached: results/dates_bahdanau.json: exact_match 1.0000 and alignment_accuracy 0.992 on 2,500 test dates, minutes
1.5, seconds_to_first_step 13.7. With --dates_per_source 2 --evaluate_every 300: results/dates_bahdanau_2.json:
exact_match 0.9996, alignment_accuracy 0.874. With --dates_per_source 3 --evaluate_every 300:
results/dates_bahdanau_3.json: exact_match 1.0000, alignment_accuracy 0.858, minutes 4.1.
"""

from pathlib import Path

from attention_zoo.data import TextData, dates
from attention_zoo.models import Seq2Seq
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.translation import translation


def experiment(
    dates_per_source: int = 1,
    embedding: int = 48,
    encoder_units: int = 128,
    decoder_units: int = 128,
    learning_rate: float = 2e-3,
    batch_size: int = 128,
    steps: int = 600,
    evaluate_every: int = 200,
    train_examples: int = 20_000,
    held_out_examples: int = 2_500,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Dates in many languages to ISO dates with additive attention.

    Args:
        dates_per_source: dates in each source; more of them need attention more.
        embedding: width of a character's vector.
        encoder_units: units of each direction of the encoder.
        decoder_units: units of the decoder and of the score.
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
        decoder_units=decoder_units,
        attention="bahdanau",
        score="additive",
    )
    return translation(
        "dates_bahdanau",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, clip=1.0),
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

"""One vector for the whole source is enough for one date and not for two: why attention was needed.

The model of `dates_bahdanau` without attention, at the same number of parameters: the decoder knows the source from
the encoder's last state alone, which enters every step (Cho 2014) or, with `--context_every_step False`, only the
decoder's first state (Sutskever 2014). Train both with `--dates_per_source 2` (or 3), then draw figure 2 of
Bahdanau 2014 with `python -m experiments compare`.

Command: python -m experiments train dates_fixed_context --dates_per_source 2
Machine: 2 cores of an AMD EPYC, no accelerator, other work beside it at times; the minutes are those of the whole
run.
Reached: results/dates_fixed_context.json: exact_match 0.996 on 2,500 single test dates, minutes 2.7. With
--dates_per_source 2 --steps 600 --evaluate_every 300 --train_examples 20000: results/dates_fixed_context_2.json:
exact_match 0.314, where dates_bahdanau reaches results/dates_bahdanau_2.json: exact_match 1.000. The same with
--dates_per_source 3: results/dates_fixed_context_3.json: exact_match 0.000, and results/dates_bahdanau_3.json:
exact_match 1.000. As the first state alone (--context_every_step False, on an Intel Xeon):
results/dates_fixed_context_first_state.json: exact_match 0.976, minutes 10.2,
for eight of which it was stopped.
"""

from pathlib import Path

from attention_zoo.data import TextData, dates
from attention_zoo.models import Seq2Seq
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.translation import translation

# Units of encoder and decoder that give the parameters of dates_bahdanau within 1 %, where the context enters every
# step and where it does not.
UNITS = {True: (143, 143), False: (172, 172)}


def experiment(
    dates_per_source: int = 1,
    context_every_step: bool = True,
    embedding: int = 48,
    encoder_units: int | None = None,
    decoder_units: int | None = None,
    learning_rate: float = 2e-3,
    batch_size: int = 128,
    steps: int = 1000,
    evaluate_every: int = 250,
    train_examples: int = 50_000,
    held_out_examples: int = 2_500,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Dates in many languages to ISO dates through one fixed context vector.

    Args:
        dates_per_source: dates in each source; more of them need attention more.
        context_every_step: the context enters every step of the decoder, or its first state only.
        embedding: width of a character's vector.
        encoder_units: units of each direction of the encoder; None: as many as give the parameters of dates_bahdanau.
        decoder_units: units of the decoder; None: likewise.
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
    encoder, decoder = UNITS[context_every_step]
    model = Seq2Seq(
        data.source.size,
        data.target.size,
        embedding,
        encoder_units or encoder,
        decoder_units=decoder_units or decoder,
        attention="context" if context_every_step else "none",
    )
    return translation(
        "dates_fixed_context",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, clip=1.0),
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

"""Writing integers backwards through one vector: right for short sequences, lost on long ones.

The recipe and the number of parameters of `reverse_luong` without attention: the decoder knows the source from the
encoder's last state alone, which enters every step (Cho 2014) or, with `--context_every_step False`, only the
decoder's first state (Sutskever 2014). `python -m experiments compare runs/reverse_luong runs/reverse_fixed_context
--plot length.png` draws where it gives way.

Command: python -m experiments train reverse_fixed_context
Machine: 2 cores of an AMD EPYC, no accelerator, other work beside it at times; the minutes are those of the whole
run.
Reached: results/reverse_fixed_context.json: bleu 11.02 and exact_match 0.214 on the 1,000 sequences of dev, bleu
10.75 on test, minutes 0.7.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import TextData, reverse
from attention_zoo.models import Seq2Seq
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.translation import translation

# Units of encoder and decoder that give the parameters of reverse_luong within 1 %, where the context enters every
# step and where it does not.
UNITS = {True: (66, 64), False: (79, 78)}


def experiment(
    context_every_step: bool = True,
    embedding: int = 16,
    encoder_units: int | None = None,
    decoder_units: int | None = None,
    dropout: float = 0.1,
    learning_rate: float = 2e-3,
    schedule: Literal["constant", "cosine"] = "cosine",
    batch_size: int = 10,
    steps: int = 5000,
    evaluate_every: int = 1000,
    train_examples: int = 50_000,
    held_out_examples: int = 1_000,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Integers to the same integers backwards through one fixed context vector.

    Args:
        context_every_step: the context enters every step of the decoder, or its first state only.
        embedding: width of an integer's vector.
        encoder_units: units of each direction of the encoder; None: as many as give the parameters of reverse_luong.
        decoder_units: units of the decoder; None: likewise.
        dropout: on embeddings and on what the output layer sees.
        learning_rate: of Adam, at its highest.
        schedule: "cosine" falls to zero by the last step, "constant" stays.
        batch_size: examples a step.
        steps: how long to train; 5000 batches of 10 are one epoch.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        train_examples: sequences in the training split.
        held_out_examples: sequences in the dev split, and as many in the test split.
        seed: of the parameters, dropout and the order of the examples.
        saved: a work folder whose vocabularies do instead of the data set, to read inputs only.
    """
    data = (
        TextData.load(saved)
        if saved
        else reverse(
            batch_size,
            train_examples=train_examples,
            dev_examples=held_out_examples,
            test_examples=held_out_examples,
            buckets=4,  # As its results were trained: fewer shapes to compile than by default, and more padding.
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
        dropout=dropout,
    )
    return translation(
        "reverse_fixed_context",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, schedule=schedule, steps=steps, clip=1.0),
        tokenize="none",
        best_metric="bleu",
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

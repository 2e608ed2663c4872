"""Writing integers backwards, with Luong's attention: JoeyNMT's published score, met and passed.

JoeyNMT's `configs/rnn_reverse.yaml`: 50,000 sequences of 1 to 25 integers below 50 (dev and test: 1 to 30), embeddings
of 16, a bidirectional LSTM of 64 units a direction, a decoder of 64 with the score that Luong calls "general" and with
input feeding, dropout 0.1, gradients clipped at norm 1, batches of 10, one epoch, greedy search; 95.42 BLEU on dev
after about 5 minutes on a CPU, as its authors state. What differs here: Adam's rate is 2e-3 and falls to zero along a
cosine (theirs: 1e-3, lowered on plateaus; `--learning_rate 1e-3 --schedule constant` is nearer to it), the decoder's
first state is made from the encoder's last one instead of zeros, and dropout and first values follow `Seq2Seq`.

Command: python -m experiments train reverse_luong
Machine: 2 cores of an AMD EPYC, no accelerator; the minutes are those of the whole run.
Reached: results/reverse_luong.json: bleu 98.17 and exact_match 0.900 on the 1,000 sequences of dev, bleu 98.32 on
test, minutes 0.8.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import TextData, reverse
from attention_zoo.models import Seq2Seq
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.translation import translation


def experiment(
    score: Literal["dot", "scaled_dot", "general", "concat", "additive", "additive_normalised", "cosine"] = "general",
    input_feeding: bool = True,
    embedding: int = 16,
    encoder_units: int = 64,
    decoder_units: int = 64,
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
    """Integers to the same integers backwards with Luong's global attention.

    Args:
        score: how relevant a source position is to the decoder's state; "dot" needs decoder_units twice as many.
        input_feeding: the attentional vector enters the next step.
        embedding: width of an integer's vector.
        encoder_units: units of each direction of the encoder.
        decoder_units: units of the decoder.
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
    model = Seq2Seq(
        data.source.size,
        data.target.size,
        embedding,
        encoder_units,
        decoder_units=decoder_units,
        attention="luong",
        score=score,
        input_feeding=input_feeding,
        dropout=dropout,
    )
    return translation(
        "reverse_luong",
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

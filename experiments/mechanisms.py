"""Any score with any alignment, at one small budget: the experiment behind the table of mechanisms.

`python -m experiments table dates` (and `reverse`) trains every row of docs/mechanisms/ with it, three seeds each.
The decoder is Bahdanau's where the previous state asks, Luong's with input feeding where the new state asks; encoder
and decoder are the same for all rows.

Command: python -m experiments train mechanisms --task dates --score additive --alignment softmax
Machine: 2 cores of an AMD EPYC, no accelerator, other work beside it at times; the minutes are those of the whole
run.
Reached: results/mechanisms.json: exact_match 0.851 and alignment_accuracy 0.990 on 1,000 test dates, minutes 2.0; all
mechanisms: docs/mechanisms/dates.md and reverse.md.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import TextData, dates, reverse
from attention_zoo.models import Seq2Seq
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.translation import translation

Score = Literal["dot", "scaled_dot", "general", "concat", "additive", "additive_normalised", "cosine", "location"]
Alignment = Literal[
    "softmax",
    "tempered",
    "sparsemax",
    "entmax15",
    "top_k",
    "local_m",
    "local_p",
    "local_p_renormalised",
    "monotonic",
    "mocha",
    "gumbel_softmax",
    "straight_through",
]


def experiment(
    task: Literal["dates", "reverse"] = "dates",
    score: Score = "additive",
    alignment: Alignment = "softmax",
    past: Literal["none", "location", "coverage"] = "none",
    query: Literal["previous", "current"] = "previous",
    window: int = 10,
    chunk: int = 3,
    kept: int = 3,
    temperature: float = 1.0,
    guided: float = 0.0,
    coverage: float = 0.0,
    embedding: int = 32,
    encoder_units: int = 32,
    learning_rate: float = 4e-3,
    batch_size: int = 64,
    steps: int = 400,
    train_examples: int = 20_000,
    held_out_examples: int = 1_000,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Dates or reversed integers with one mechanism of the zoo.

    Args:
        task: "dates" (written dates to ISO dates, by characters) or "reverse" (integers backwards, by words).
        score: how relevant a source position is to the decoder's state.
        alignment: how scores become weights.
        past: what the score knows of where attention looked before.
        query: which state asks, Bahdanau's "previous" or Luong's "current" one.
        window: D of the local alignments, in source positions.
        chunk: positions in a chunk of MoChA.
        kept: positions that top_k keeps.
        temperature: of tempered, gumbel_softmax and straight_through.
        guided: weight of the loss that the known alignments give.
        coverage: weight of the coverage penalty.
        embedding: width of a symbol's vector.
        encoder_units: units of each direction of the encoder; the decoder has twice as many, so that "dot" fits.
        learning_rate: of Adam, at its highest; it falls to zero along a cosine.
        batch_size: examples a step.
        steps: how long to train.
        train_examples: sources in the training split.
        held_out_examples: sources in the dev split, and as many in the test split.
        seed: of the parameters, of noise and of the order of the examples.
        saved: a work folder whose vocabularies do instead of the data set, to read inputs only.
    """
    read = dates if task == "dates" else reverse
    data = (
        TextData.load(saved)
        if saved
        else read(
            batch_size,
            train_examples=train_examples,
            dev_examples=held_out_examples,
            test_examples=held_out_examples,
            buckets=1,
        )
    )
    model = Seq2Seq(
        data.source.size,
        data.target.size,
        embedding,
        encoder_units,
        decoder_units=2 * encoder_units,
        attention="bahdanau" if query == "previous" else "luong",
        score=score,
        alignment=alignment,
        past=past,
        window=window,
        chunk=chunk,
        kept=kept,
        temperature=temperature,
    )
    return translation(
        "mechanisms",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, schedule="cosine", steps=steps, clip=1.0),
        guided=guided,
        coverage=coverage,
        pictures=1,
        steps=steps,
        evaluate_every=steps,
        checkpoint_every=steps,
        seed=seed,
    )

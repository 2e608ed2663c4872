"""Writing integers backwards with a Transformer, longer ones than it was trained on too: which positions carry over.

Training sequences have 1 to 20 integers, dev and test 1 to 40 (JoeyNMT's reverse task, made longer). The schemes differ
in `--positions` alone; `python -m experiments compare` draws accuracy against length from their work folders, as
docs/extrapolation.png was drawn from those of sinusoidal, rotary, alibi, relative and none.

Command: python -m experiments train reverse_transformer
Machine: 2 cores of an AMD EPYC, no accelerator, other work beside it at times; the minutes are those of the whole
run.
Reached: results/reverse_transformer.json: exact_match 0.491 with rotary positions on 2,000 test sequences of 1 to 40
integers, minutes 3.8. With --positions sinusoidal, results/reverse_transformer_sinusoidal.json: exact_match 0.475. With
--positions alibi, results/reverse_transformer_alibi.json: exact_match 0.385. With --positions relative,
results/reverse_transformer_relative.json: exact_match 0.343. With --positions none,
results/reverse_transformer_none.json: exact_match 0.052.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import TextData, reverse
from attention_zoo.models import transformer
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.translation import translation


def experiment(
    positions: Literal["sinusoidal", "learned", "rotary", "alibi", "relative", "none"] = "rotary",
    width: int = 96,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
    learning_rate: float = 1e-3,
    warmup: int = 200,
    batch_size: int = 64,
    steps: int = 1500,
    evaluate_every: int = 500,
    train_length: int = 20,
    test_length: int = 40,
    train_examples: int = 50_000,
    held_out_examples: int = 2_000,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Integers to the same integers backwards with a Transformer, longer ones than in training among them.

    Args:
        positions: how the model knows the order of integers.
        width: of the vectors; feed-forward layers are twice as wide.
        layers: of the encoder, and as many of the decoder.
        heads: of each attention.
        dropout: on embeddings and on what each block adds.
        learning_rate: of Adam, at its highest; it falls to zero along a cosine.
        warmup: steps in which the rate rises to it.
        batch_size: examples a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        train_length: integers in the longest training sequence.
        test_length: integers in the longest sequence of dev and test.
        train_examples: sequences in the training split.
        held_out_examples: sequences in the dev split, and as many in the test split.
        seed: of the parameters, of dropout and of the order of the examples.
        saved: a work folder whose vocabularies do instead of the data set, to read inputs only.
    """
    data = (
        TextData.load(saved)
        if saved
        else reverse(
            batch_size,
            train_length=train_length,
            test_length=test_length,
            train_examples=train_examples,
            dev_examples=held_out_examples,
            test_examples=held_out_examples,
            buckets=4,  # As its results were trained: fewer shapes to compile than by default, and more padding.
        )
    )
    model = transformer(
        "reverse_transformer",
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
        "reverse_transformer",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, schedule="cosine", warmup=warmup, steps=steps, clip=1.0),
        tokenize="none",
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

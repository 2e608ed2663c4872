"""One-hot vectors against learned embeddings, in the same encoder: what an embedding brings.

The task of `classify_intents`, by characters. With `--embedding one_hot` these enter as one-hot vectors as wide as the
model, so that the first block's own matrices are all that is learnt of them; everything else is equal.

Command: python -m experiments train embedding_ablation
Machine: 2 cores of an AMD EPYC, no accelerator, other work beside it at times; the minutes are those of the whole
run.
Reached: results/embedding_ablation.json: accuracy 0.742 and macro_f1 0.490 with learned embeddings on fold 0, minutes
5.2. With --embedding one_hot, results/embedding_ablation_one_hot.json: accuracy 0.754, macro_f1 0.500.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from attention_zoo.training import Experiment
from experiments import classify_intents


def experiment(
    embedding: Literal["learned", "one_hot"] = "learned",
    fold: int = 0,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    batch_size: int = 64,
    steps: int = 1000,
    evaluate_every: int = 250,
    sentences_per_template: int = 8,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Sentences to intents, from learned or one-hot characters.

    Args:
        embedding: "learned" vectors of characters, or "one_hot" ones.
        fold: which fifth of the templates is the test split, 0 to 4.
        width: of the vectors, and so the largest vocabulary for one-hot ones.
        layers: of the encoder.
        heads: of each attention.
        dropout: on embeddings, on what each block adds and before the last layer.
        learning_rate: of AdamW, at its highest; it falls to zero along a cosine.
        warmup: steps in which the rate rises to it.
        batch_size: sentences a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        sentences_per_template: drawn from each template, at most.
        seed: of the parameters, of dropout and of the order of the sentences.
        saved: a work folder whose vocabulary does instead of the data set, to read inputs only.
    """
    made = classify_intents.experiment(
        fold,
        tokenizer="characters",
        one_hot=embedding == "one_hot",
        width=width,
        layers=layers,
        heads=heads,
        dropout=dropout,
        learning_rate=learning_rate,
        warmup=warmup,
        batch_size=batch_size,
        steps=steps,
        evaluate_every=evaluate_every,
        sentences_per_template=sentences_per_template,
        seed=seed,
        saved=saved,
    )
    return dataclasses.replace(made, name="embedding_ablation")

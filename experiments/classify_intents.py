"""A small Transformer encoder names the intent of commands to a smart home, from templates it has never seen.

Sentences in six languages, from the templates of Home Assistant: `turn the desk lamp on` is HassTurnOn. The split is by
template, so that no test sentence comes from a template of the training sentences. Words in, the mean of the
encoder's vectors out. `python -m experiments baseline` prints what TF-IDF and logistic regression reach on the same
folds, and beside it the runs of this experiment.

Command: python -m experiments train classify_intents
Machine: 2 cores of an Intel Xeon, no accelerator; the minutes are those of the whole run.
Reached: one fold after the other, results/classify_intents.json: accuracy 0.951, macro_f1 0.866, minutes 0.8;
results/classify_intents_1.json: accuracy 0.949, macro_f1 0.835, minutes 0.7; results/classify_intents_2.json:
accuracy 0.953, macro_f1 0.860, minutes 0.7; results/classify_intents_3.json: accuracy 0.953, macro_f1 0.855, minutes
0.7; results/classify_intents_4.json: accuracy 0.945, macro_f1 0.836, minutes 0.7.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import LabelledText, intents
from attention_zoo.models import Classifier, encoder
from attention_zoo.training import Experiment, optimizer
from attention_zoo.training.classification import classification


def experiment(
    fold: int = 0,
    tokenizer: Literal["characters", "words", "sentencepiece"] = "words",
    one_hot: bool = False,
    positions: Literal["sinusoidal", "learned", "rotary", "alibi", "relative", "none"] = "rotary",
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
    label_smoothing: float = 0.1,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    batch_size: int = 64,
    steps: int = 1000,
    evaluate_every: int = 250,
    sentences_per_template: int = 8,
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Sentences to intents with a Transformer encoder.

    Args:
        fold: which fifth of the templates is the test split, 0 to 4.
        tokenizer: what a symbol is.
        one_hot: symbols enter as one-hot vectors instead of learned embeddings; the width must hold them all.
        positions: how the model knows the order of symbols.
        width: of the vectors; feed-forward layers are twice as wide.
        layers: of the encoder.
        heads: of each attention.
        dropout: on embeddings, on what each block adds and before the last layer.
        label_smoothing: what the loss gives to all intents.
        learning_rate: of AdamW, at its highest; it falls to zero along a cosine.
        warmup: steps in which the rate rises to it.
        batch_size: sentences a step.
        steps: how long to train.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        sentences_per_template: drawn from each template, at most.
        seed: of the parameters, of dropout and of the order of the sentences.
        saved: a work folder whose vocabulary does instead of the data set, to read inputs only.
    """
    data = (
        LabelledText.load(saved)
        if saved
        else intents(batch_size, fold=fold, tokenizer=tokenizer, sentences_per_template=sentences_per_template)
    )
    model = Classifier(
        encoder(
            "intents_encoder",
            vocabulary=data.tokenizer.size,
            one_hot=one_hot,
            positions=positions,
            width=width,
            layers=layers,
            heads=heads,
            hidden=2 * width,
            dropout=dropout,
            longest=data.max_length,
        ),
        len(data.labels),
        pooling="mean",
        pooler=False,
        dropout=dropout,
    )
    return classification(
        "classify_intents",
        model,
        data,
        inputs=("tokens", "lengths"),
        symbols=lambda row: data.tokenizer.tokens(row["tokens"][: int(row["lengths"])]),
        optimizer=optimizer(
            "adamw", learning_rate, schedule="cosine", warmup=warmup, steps=steps, clip=1.0, weight_decay=0.01
        ),
        label_smoothing=label_smoothing,
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        seed=seed,
    )

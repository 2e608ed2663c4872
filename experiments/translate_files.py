"""A translator from your own parallel text: two aligned files or a TSV, and one command.

Line n of `--train_source` is translated in line n of `--train_target`; or `--train_tsv` holds source and target with
a tab between. Dev and test files are optional: what is missing is held out from the training pairs, and said so. The
vocabularies are made from the training text and kept in the work folder, so that `predict` needs no other file.

Command: python -m experiments train translate_files --train_source train.de --train_target train.en
Machine: 2 cores of a CPU, no accelerator; minutes and score depend on the files.
Reached: nothing of its own; it is there for your files.
"""

from pathlib import Path
from typing import Literal

from attention_zoo.data import TextData, parallel_text
from attention_zoo.models import Seq2Seq
from attention_zoo.training import Experiment, UserError, optimizer
from attention_zoo.training.translation import translation

Score = Literal["dot", "scaled_dot", "general", "concat", "additive", "additive_normalised", "cosine"]


def experiment(
    train_source: Path | None = None,
    train_target: Path | None = None,
    train_tsv: Path | None = None,
    dev_source: Path | None = None,
    dev_target: Path | None = None,
    dev_tsv: Path | None = None,
    test_source: Path | None = None,
    test_target: Path | None = None,
    test_tsv: Path | None = None,
    tokenizer: Literal["sentencepiece", "words", "characters"] = "sentencepiece",
    vocabulary_size: int | None = None,
    shared_vocabulary: bool = False,
    max_length: int | None = None,
    attention: Literal["bahdanau", "luong", "context", "none"] = "bahdanau",
    score: Score = "additive",
    input_feeding: bool = True,
    cell: Literal["lstm", "gru", "gru_reset_before"] = "lstm",
    embedding: int = 256,
    units: int = 256,
    layers: int = 1,
    dropout: float = 0.2,
    label_smoothing: float = 0.1,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    steps: int = 20_000,
    evaluate_every: int = 1000,
    patience: int | None = 5,
    best_metric: Literal["bleu", "chrf", "exact_match", "token_accuracy"] = "bleu",
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Your own parallel text, translated by a recurrent encoder-decoder.

    Args:
        train_source: UTF-8 text, one source a line.
        train_target: its translations, line by line.
        train_tsv: instead of both, lines of source, tab, target.
        dev_source: as for train, to choose the best checkpoint by.
        dev_target: as for train.
        dev_tsv: as for train.
        test_source: as for train, to judge the best checkpoint by.
        test_target: as for train.
        test_tsv: as for train.
        tokenizer: what becomes one id.
        vocabulary_size: ids of each side at most; None: 8,000 for sentencepiece, otherwise all there are.
        shared_vocabulary: one vocabulary for both sides.
        max_length: tokens of the longest text that is kept; None: the tokenizer's usual limit.
        attention: how the decoder sees the source.
        score: how relevant a source position is to the decoder's state.
        input_feeding: with "luong", the attentional vector enters the next step.
        cell: of encoder and decoder.
        embedding: width of a token's vector.
        units: units of each direction of the encoder; the decoder has twice as many.
        layers: of the encoder and of the decoder.
        dropout: on embeddings, between layers and on what the output layer sees.
        label_smoothing: the part of the loss that goes to the whole vocabulary.
        learning_rate: of Adam.
        batch_size: pairs a step.
        steps: how long to train at most.
        evaluate_every: steps between evaluations on dev; the best checkpoint is kept.
        patience: evaluations without a new best before training stops; None: never.
        best_metric: what "best" means.
        seed: of the parameters, dropout and the order of the pairs.
        saved: a work folder whose vocabularies do instead of the files, to read inputs only.
    """
    if saved:
        data = TextData.load(saved)
    else:
        train = files("train", train_source, train_target, train_tsv)
        if train[0] is None:
            raise UserError("translate_files needs --train_source and --train_target, or --train_tsv.")
        dev = files("dev", dev_source, dev_target, dev_tsv)
        test = files("test", test_source, test_target, test_tsv)
        data = parallel_text(
            train[0],
            train[1],
            dev_source=dev[0],
            dev_target=dev[1],
            test_source=test[0],
            test_target=test[1],
            tokenizer=tokenizer,
            vocabulary_size=vocabulary_size,
            shared_vocabulary=shared_vocabulary,
            batch_size=batch_size,
            max_source=max_length,
            max_target=max_length,
        )
    model = Seq2Seq(
        data.source.size,
        data.target.size,
        embedding,
        units,
        layers,
        2 * units,
        layers,
        cell,
        attention=attention,
        score=score,
        input_feeding=input_feeding,
        dropout=dropout,
    )
    return translation(
        "translate_files",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, clip=1.0),
        tokenize="13a",
        label_smoothing=label_smoothing,
        best_metric=best_metric,
        steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        patience=patience,
        seed=seed,
    )


def files(split: str, source: Path | None, target: Path | None, tsv: Path | None) -> tuple[Path | None, Path | None]:
    """The source and target file of a split; a TSV stands alone, and both are None where nothing is given."""
    if tsv and (source or target):
        raise UserError(f"--{split}_tsv is given beside --{split}_source or --{split}_target: give one or the other.")
    if bool(source) != bool(target):
        raise UserError(f"--{split}_source and --{split}_target go together: one of them is missing.")
    return tsv or source, target

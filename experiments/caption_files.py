"""A captioner from your own pictures: a folder, a file with a caption a line, and one command.

`captions.tsv` in the folder, or `--captions`, holds a file name, a tab and a caption a line; a picture may have more.
Dev and test pictures are held out, and said so. The vocabulary is made from the training captions and kept in the work
folder, so that `predict` needs no other file.

Command: python -m experiments train caption_files --folder pictures
Machine: 2 cores of a CPU, no accelerator; minutes and score depend on the pictures.
Reached: nothing of its own; it is there for your pictures.
"""

from pathlib import Path
from typing import Any, Literal

from attention_zoo.data import CaptionedImages, image_captions
from attention_zoo.models import Captioner
from attention_zoo.modules import ConvEncoder
from attention_zoo.training import Experiment, UserError, optimizer
from attention_zoo.training.captioning import captioning

SMOOTH = ("soft", "gumbel_softmax", "straight_through")


def experiment(
    folder: Path | None = None,
    captions: Path | None = None,
    attention: Literal["soft", "hard", "marginal", "variational", "gumbel_softmax", "straight_through"] = "soft",
    doubly_stochastic: float = 1.0,
    reduction: Literal["sum", "mean"] = "mean",
    side: int = 64,
    channels: Literal[1, 3] = 3,
    vocabulary_size: int | None = None,
    max_length: int | None = None,
    width: int = 128,
    units: int = 256,
    dropout: float = 0.3,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    steps: int = 20_000,
    evaluate_every: int = 1000,
    patience: int | None = 5,
    best_metric: Literal["bleu", "chrf", "exact_match", "token_accuracy"] = "bleu",
    seed: int = 0,
    saved: Path | None = None,
) -> Experiment:
    """Your own pictures to captions.

    Args:
        folder: the pictures, PNG or what else matplotlib reads.
        captions: lines of file name, tab, caption; `captions.tsv` in the folder unless told.
        attention: what the context of a word is; "marginal" and "variational" write every word from every cell, which
            takes much memory where the vocabulary is large.
        doubly_stochastic: lambda, what looking at some cells more than at others costs in all; for attention that is
            soft or relaxed.
        reduction: of that penalty over the cells of a picture.
        side: every picture is resized to so many pixels a side; the grid has an eighth of them.
        channels: 3 for colours, 1 for grey values.
        vocabulary_size: the most frequent words that are kept; all unless told.
        max_length: the longest caption that is kept, in words.
        width: of the annotations, a multiple of four.
        units: of the LSTM; half as wide are the vectors of words.
        dropout: on embeddings and before the output layer.
        learning_rate: of Adam.
        batch_size: pictures a step.
        steps: how long to train, at most.
        evaluate_every: steps between evaluations on the dev split; the best checkpoint is kept.
        patience: evaluations without a better one before training stops.
        best_metric: what the best checkpoint is chosen by.
        seed: of the parameters and of the order of the pictures.
        saved: a work folder whose vocabulary does instead of the pictures, to read new ones only.
    """
    read: Any = {"size": (side, side), "channels": channels, "vocabulary_size": vocabulary_size}
    if saved:
        data = CaptionedImages.load(saved)
    elif folder is None:
        raise UserError("caption_files needs --folder, with pictures and their captions.tsv.")
    else:
        longest = None if max_length is None else max_length + 1
        data = image_captions(folder, captions, batch_size, max_target=longest, **read)
    encoder = ConvEncoder((width // 4, width // 2, width, width), (2, 2, 2, 1))
    model = Captioner(data.target.size, encoder, attention, embedding=-(-units // 2), units=units, dropout=dropout)
    return captioning(
        "caption_files",
        model,
        data,
        optimizer=optimizer("adam", learning_rate, clip=5.0),
        steps=steps,
        doubly_stochastic=doubly_stochastic if attention in SMOOTH else 0.0,
        reduction=reduction,
        tokenize="13a",
        best_metric=best_metric,
        evaluate_every=evaluate_every,
        checkpoint_every=evaluate_every,
        patience=patience,
        seed=seed,
    )

"""Pictures with a caption each, as batches of one shape."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from attention_zoo.data.pictures import Pictures, Split
from attention_zoo.data.text import Batch
from attention_zoo.data.vocabulary import Tokenizer, load


class CaptionSplit(Split, Protocol):
    """One split of captioned pictures."""

    def captions(self) -> Sequence[Sequence[str]]:
        """Every caption of each picture, in the order of its one pass; the first is the one in the batch."""


class CaptionedImages(Pictures):
    """Pictures and their captions as batches of one shape.

    A batch holds `images` float32 `[B, Y, X, C]` in [0, 1]; `target` int32 `[B, T]`, the ids of the caption, then END,
    then PAD; `target_lengths` int32 `[B]`, END counted; `boxes` float32 `[B, T, 4]`, the (top, left, bottom, right) in
    pixels of what each word names, bottom and right exclusive, zeros for a word that names nothing known, END and PAD;
    and `valid` bool `[B]`. `T` is `max_target`. `target` is the tokenizer.

    Raises:
        ValueError: a number is out of range.
    """

    file = "captioned.json"

    def __init__(self, splits: Mapping[str, CaptionSplit], target: Tokenizer, *, max_target: int, **settings: Any):
        super().__init__(splits, **settings)
        if max_target < 2:
            raise ValueError(f"max_target is at least 2, a word and the end mark; got {max_target}")
        self.target, self.max_target = target, max_target

    def references(self, name: str) -> list[str]:
        """The caption of every picture of a split, in the order in which `split` gives the valid rows."""
        return [captions[0] for captions in self._part(name).captions()]

    def every_reference(self, name: str) -> list[list[str]]:
        """All captions of every picture, in that order: data sets such as COCO have five of each."""
        return [list(captions) for captions in self._part(name).captions()]

    def _blank(self, rows: int) -> Batch:
        return {
            "target": np.zeros((rows, self.max_target), np.int32),
            "target_lengths": np.zeros(rows, np.int32),
            "boxes": np.zeros((rows, self.max_target, 4), np.float32),
        }

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "max_target": self.max_target}

    def _identity(self) -> Any:
        return [self._settings(), self.target.to_dict()]

    def save(self, folder: Path) -> None:
        """Writes the vocabulary and the settings into a folder, for `CaptionedImages.load`."""
        self.target.save(Path(folder) / "target.json")
        super().save(folder)

    @classmethod
    def _stored(cls, folder: Path) -> dict[str, Any]:
        return {"target": load(folder / "target.json")}

"""Floor 2: whole networks, one paper a file."""

from attention_zoo.models.presets import PRESETS, seq2seq
from attention_zoo.models.seq2seq import Cache, Seq2Seq

__all__ = ["PRESETS", "Cache", "Seq2Seq", "seq2seq"]

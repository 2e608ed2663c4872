"""Floor 1: Flax Linen modules; they own parameters and call the functions of floor 0."""

from attention_zoo.modules.attention import (
    Additive,
    Attention,
    Concat,
    Cosine,
    Dot,
    General,
    Location,
    Memory,
    ScaledDot,
)
from attention_zoo.modules.decoder import DecoderState, RecurrentDecoder
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.embedding import Embedding, OneHotEmbedding
from attention_zoo.modules.recurrent import RecurrentEncoder, RecurrentLayer

__all__ = [
    "Additive",
    "Attention",
    "Concat",
    "Cosine",
    "DecoderState",
    "Dense",
    "Dot",
    "Embedding",
    "General",
    "Location",
    "Memory",
    "OneHotEmbedding",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "RecurrentLayer",
    "ScaledDot",
]

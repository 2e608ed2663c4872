"""Floor 1: Flax Linen modules; they own parameters and call the functions of floor 0."""

from attention_zoo.modules.alignment import (
    Aligner,
    GumbelSoftmax,
    LocalM,
    LocalP,
    MoChA,
    Monotonic,
    StraightThrough,
)
from attention_zoo.modules.attention import Attention, AttentionState
from attention_zoo.modules.decoder import DecoderState, RecurrentDecoder
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.embedding import Embedding, OneHotEmbedding
from attention_zoo.modules.memory import Memory
from attention_zoo.modules.past import Coverage, LocationSensitive, Past
from attention_zoo.modules.recurrent import RecurrentEncoder, RecurrentLayer
from attention_zoo.modules.scores import Additive, Concat, Cosine, Dot, General, Location, ScaledDot

__all__ = [
    "Additive",
    "Aligner",
    "Attention",
    "AttentionState",
    "Concat",
    "Cosine",
    "Coverage",
    "DecoderState",
    "Dense",
    "Dot",
    "Embedding",
    "General",
    "GumbelSoftmax",
    "LocalM",
    "LocalP",
    "Location",
    "LocationSensitive",
    "Memory",
    "MoChA",
    "Monotonic",
    "OneHotEmbedding",
    "Past",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "RecurrentLayer",
    "ScaledDot",
    "StraightThrough",
]

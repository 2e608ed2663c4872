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
from attention_zoo.modules.multihead import Asked, Heads, MultiHeadAttention, Sight
from attention_zoo.modules.norms import LayerNorm
from attention_zoo.modules.past import Coverage, LocationSensitive, Past
from attention_zoo.modules.positions import LearnedPositions, RelativeBias
from attention_zoo.modules.recurrent import RecurrentEncoder, RecurrentLayer
from attention_zoo.modules.scores import Additive, Concat, Cosine, Dot, General, Location, ScaledDot
from attention_zoo.modules.transformer import FeedForward, Seen, Stack, TransformerBlock
from attention_zoo.modules.vision import ConvEncoder

__all__ = [
    "Additive",
    "Aligner",
    "Asked",
    "Attention",
    "AttentionState",
    "Concat",
    "ConvEncoder",
    "Cosine",
    "Coverage",
    "DecoderState",
    "Dense",
    "Dot",
    "Embedding",
    "FeedForward",
    "General",
    "GumbelSoftmax",
    "Heads",
    "LayerNorm",
    "LearnedPositions",
    "LocalM",
    "LocalP",
    "Location",
    "LocationSensitive",
    "Memory",
    "MoChA",
    "Monotonic",
    "MultiHeadAttention",
    "OneHotEmbedding",
    "Past",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "RecurrentLayer",
    "RelativeBias",
    "ScaledDot",
    "Seen",
    "Sight",
    "Stack",
    "StraightThrough",
    "TransformerBlock",
]

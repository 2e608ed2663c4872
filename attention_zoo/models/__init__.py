"""Floor 2: whole networks, one paper a file."""

from attention_zoo.models.captioner import CaptionCache, Captioner
from attention_zoo.models.encoder import Classifier, Encoder, MaskedLM, SentenceEmbedding
from attention_zoo.models.glimpse import Glimpses, RecurrentAttention
from attention_zoo.models.language import CausalLM, LanguageCache
from attention_zoo.models.layers import Layers
from attention_zoo.models.presets import PRESETS, seq2seq
from attention_zoo.models.pretrained import from_huggingface, read_tokenizer
from attention_zoo.models.seq2seq import Cache, Seq2Seq
from attention_zoo.models.transformer import Packed, Transformer, TransformerCache
from attention_zoo.models.transformer_presets import ENCODERS, TRANSFORMERS, VISION, encoder, transformer, vision
from attention_zoo.models.vision import ViT

__all__ = [
    "ENCODERS",
    "PRESETS",
    "TRANSFORMERS",
    "VISION",
    "Cache",
    "CaptionCache",
    "Captioner",
    "CausalLM",
    "Classifier",
    "Encoder",
    "Glimpses",
    "LanguageCache",
    "Layers",
    "MaskedLM",
    "Packed",
    "RecurrentAttention",
    "SentenceEmbedding",
    "Seq2Seq",
    "Transformer",
    "TransformerCache",
    "ViT",
    "encoder",
    "from_huggingface",
    "read_tokenizer",
    "seq2seq",
    "transformer",
    "vision",
]

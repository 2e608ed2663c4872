"""Data sets as batches: embedded ones, the user's own files, the TFDS catalogue; tokenizers and special ids."""

from attention_zoo.data.catalogue import tfds_translation
from attention_zoo.data.dates import dates
from attention_zoo.data.parallel import parallel_text
from attention_zoo.data.reverse import reverse
from attention_zoo.data.text import Batch, Pairs, TextData
from attention_zoo.data.vocabulary import (
    END,
    PAD,
    SPECIALS,
    START,
    UNKNOWN,
    Characters,
    SentencePiece,
    Tokenizer,
    Words,
)

__all__ = [
    "END",
    "PAD",
    "SPECIALS",
    "START",
    "UNKNOWN",
    "Batch",
    "Characters",
    "Pairs",
    "SentencePiece",
    "TextData",
    "Tokenizer",
    "Words",
    "dates",
    "parallel_text",
    "reverse",
    "tfds_translation",
]

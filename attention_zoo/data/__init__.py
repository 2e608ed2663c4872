"""Data sets as batches: embedded ones, the user's own files, the TFDS catalogue; tokenizers and special ids."""

from attention_zoo.data.catalogue import tfds_classification, tfds_translation
from attention_zoo.data.dates import dates
from attention_zoo.data.digits import digits, tfds_images
from attention_zoo.data.images import LabelledImages
from attention_zoo.data.intents import intents
from attention_zoo.data.labelled import Labelled, LabelledText
from attention_zoo.data.language import LanguageData, plain_text
from attention_zoo.data.packing import PackedText, packed
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
    "Labelled",
    "LabelledImages",
    "LabelledText",
    "LanguageData",
    "PackedText",
    "Pairs",
    "SentencePiece",
    "TextData",
    "Tokenizer",
    "Words",
    "dates",
    "digits",
    "intents",
    "packed",
    "parallel_text",
    "plain_text",
    "reverse",
    "tfds_classification",
    "tfds_images",
    "tfds_translation",
]

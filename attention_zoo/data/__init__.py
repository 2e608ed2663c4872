"""Data sets as batches: embedded ones, the user's own files, the TFDS catalogue; tokenizers and special ids."""

from attention_zoo.data.captioned import CaptionedImages
from attention_zoo.data.captions import coco_captions, image_captions
from attention_zoo.data.catalogue import tfds_classification, tfds_translation
from attention_zoo.data.dates import dates
from attention_zoo.data.digits import digits, tfds_images
from attention_zoo.data.glimpse_digits import GlimpseImages, cluttered_digits, translated_digits
from attention_zoo.data.images import LabelledImages
from attention_zoo.data.intents import intents
from attention_zoo.data.labelled import Labelled, LabelledText
from attention_zoo.data.language import LanguageData, plain_text
from attention_zoo.data.packing import PackedText, packed
from attention_zoo.data.parallel import parallel_text
from attention_zoo.data.placed_digits import placed_digits
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
    "CaptionedImages",
    "Characters",
    "GlimpseImages",
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
    "cluttered_digits",
    "coco_captions",
    "dates",
    "digits",
    "image_captions",
    "intents",
    "packed",
    "parallel_text",
    "placed_digits",
    "plain_text",
    "reverse",
    "tfds_classification",
    "tfds_images",
    "tfds_translation",
    "translated_digits",
]

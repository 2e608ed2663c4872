"""The Transformers of the papers by name: tables of fields."""

from typing import Any

from attention_zoo.models.encoder import Encoder
from attention_zoo.models.transformer import Transformer
from attention_zoo.models.vision import ViT

# Vaswani 2017, table 3: shared byte pairs of German and English (section 5.1), post-norm, dropout of what blocks add.
_VASWANI = {
    "source_vocabulary": 37_000,
    "target_vocabulary": 37_000,
    "layers": 6,
    "shared": True,
    "norm_first": False,
    "dropout": 0.1,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "transformer_base": {**_VASWANI, "width": 512, "heads": 8, "hidden": 2048},
    "transformer_big": {**_VASWANI, "width": 1024, "heads": 16, "hidden": 4096, "dropout": 0.3},
    # The models of experiments/dates_transformer.py and reverse_transformer.py, with their vocabularies.
    "dates_transformer": {
        "source_vocabulary": 159,
        "target_vocabulary": 15,
        "width": 96,
        "layers": 2,
        "heads": 4,
        "hidden": 192,
    },
    "reverse_transformer": {
        "source_vocabulary": 54,
        "target_vocabulary": 54,
        "width": 96,
        "layers": 2,
        "heads": 4,
        "hidden": 192,
    },
}

# Devlin 2019, section 3: learned positions, post-norm, GELU; their classifier's pooler belongs to `Classifier`.
_BERT = {
    "vocabulary": 30_522,
    "types": 2,
    "embedding_norm": True,
    "positions": "learned",
    "longest": 512,
    "norm_first": False,
    "activation": "gelu",
    "epsilon": 1e-12,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert_base": {**_BERT, "width": 768, "layers": 12, "heads": 12, "hidden": 3072},
    "bert_large": {**_BERT, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
    # Wang 2020; six layers as in sentence-transformers' all-MiniLM-L6-v2.
    "minilm_l6": {**_BERT, "width": 384, "layers": 6, "heads": 12, "hidden": 1536},
    # The encoder of experiments/classify_intents.py and embedding_ablation.py, whose vocabulary the data decide.
    "intents_encoder": {"vocabulary": 2_000, "width": 128, "layers": 2, "heads": 4, "hidden": 256, "dropout": 0.1},
}

# Dosovitskiy 2021, table 1 and section 4.1; S is Touvron 2021's DeiT-S. ImageNet's 1,000 classes.
_VIT = {"classes": 1000, "patch": 16, "image": (224, 224), "layers": 12, "activation": "gelu", "epsilon": 1e-6}
VISION: dict[str, dict[str, Any]] = {
    "vit_s16": {**_VIT, "width": 384, "heads": 6, "hidden": 1536},
    "vit_b16": {**_VIT, "width": 768, "heads": 12, "hidden": 3072},
    # The model of experiments/digits_vit.py.
    "digits_vit": {
        "classes": 10,
        "patch": 2,
        "image": (8, 8),
        "width": 64,
        "layers": 3,
        "heads": 4,
        "hidden": 128,
        "activation": "gelu",
    },
}


def transformer(preset: str, **fields: Any) -> Transformer:
    """A translating Transformer by name, with any field replaced.

    Raises:
        ValueError: no preset has that name.

    >>> transformer("transformer_base", dropout=0.0).width
    512
    """
    return Transformer(**{**_found(TRANSFORMERS, preset), **fields})


def encoder(preset: str, **fields: Any) -> Encoder:
    """A Transformer encoder by name, with any field replaced.

    Raises:
        ValueError: no preset has that name.
    """
    return Encoder(**{**_found(ENCODERS, preset), **fields})


def vision(preset: str, **fields: Any) -> ViT:
    """A Vision Transformer by name, with any field replaced.

    Raises:
        ValueError: no preset has that name.
    """
    return ViT(**{**_found(VISION, preset), **fields})


def _found(table: dict[str, dict[str, Any]], preset: str) -> dict[str, Any]:
    if preset not in table:
        raise ValueError(f"preset is one of {', '.join(table)}; got {preset!r}")
    return table[preset]

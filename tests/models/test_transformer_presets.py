"""The tables of Transformers are whole, and their parameters are as many as arithmetic and the papers say."""

import math

import jax
import jax.numpy as jnp
import pytest

from attention_zoo.models import ENCODERS, TRANSFORMERS, VISION, Classifier, encoder, transformer, vision


def count(model, *inputs) -> int:
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def attention(width: int) -> int:
    return 4 * (width * width + width)


def feed_forward(width: int, hidden: int) -> int:
    return 2 * width * hidden + hidden + width


def norms(width: int, number: int) -> int:
    return 2 * width * number


def translating(source: int, target: int, width: int, layers: int, hidden: int, shared: bool, last_norms: int) -> int:
    """Embeddings (the output layer is tied), blocks of the encoder with 2 norms each, of the decoder with 3."""
    embeddings = (target if shared else source + target) * width
    encoder = attention(width) + feed_forward(width, hidden) + norms(width, 2)
    decoder = 2 * attention(width) + feed_forward(width, hidden) + norms(width, 3)
    return embeddings + layers * (encoder + decoder) + norms(width, last_norms)


TRANSLATORS = {
    # The paper: 65 and 213 million (table 3), with a vocabulary that it gives as "about 37,000".
    "transformer_base": (translating(37_000, 37_000, 512, 6, 2048, True, 0), 63_082_496),
    "transformer_big": (translating(37_000, 37_000, 1024, 6, 4096, True, 0), 214_245_376),
    "dates_transformer": (translating(159, 15, 96, 2, 192, False, 2), None),
    "reverse_transformer": (translating(54, 54, 96, 2, 192, False, 2), None),
}


def bert(vocabulary: int, width: int, layers: int, hidden: int) -> int:
    """Tokens, 512 positions, 2 types and their norm; post-norm blocks."""
    block = attention(width) + feed_forward(width, hidden) + norms(width, 2)
    return (vocabulary + 512 + 2) * width + norms(width, 1) + layers * block


READERS = {
    # Less the pooler, those of Hugging Face's BertModel: 109,482,240, 335,141,888 and 22,713,216.
    "bert_base": (bert(30_522, 768, 12, 3072), 109_482_240 - 768 * 769),
    "bert_large": (bert(30_522, 1024, 24, 4096), 335_141_888 - 1024 * 1025),
    "minilm_l6": (bert(30_522, 384, 6, 1536), 22_713_216 - 384 * 385),
    "intents_encoder": (
        2_000 * 128 + 2 * (attention(128) + feed_forward(128, 256) + norms(128, 2)) + norms(128, 1),
        None,
    ),
}


def vit(patch: int, channels: int, places: int, width: int, layers: int, hidden: int, classes: int) -> int:
    """Patches, class token, positions, pre-norm blocks, the last norm and the classes."""
    block = attention(width) + feed_forward(width, hidden) + norms(width, 2)
    enter = patch * patch * channels * width + width
    return enter + width + (places + 1) * width + layers * block + norms(width, 1) + (width + 1) * classes


SEERS = {
    # timm's vit_small_patch16_224 and vit_base_patch16_224 have these numbers.
    "vit_s16": (vit(16, 3, 196, 384, 12, 1536, 1000), 22_050_664, 224, 3),
    "vit_b16": (vit(16, 3, 196, 768, 12, 3072, 1000), 86_567_656, 224, 3),
    "digits_vit": (vit(2, 1, 16, 64, 3, 128, 10), None, 8, 1),
}


def test_every_preset_is_counted_here() -> None:
    assert (set(TRANSFORMERS), set(ENCODERS), set(VISION)) == (set(TRANSLATORS), set(READERS), set(SEERS))


@pytest.mark.parametrize("preset", TRANSFORMERS)
def test_translators(preset: str) -> None:
    tokens = jnp.ones((2, 3), jnp.int32)
    counted = count(transformer(preset), tokens, jnp.array([3, 2]), tokens)
    expected, published = TRANSLATORS[preset]
    assert counted == expected and published in (None, expected)


@pytest.mark.parametrize("preset", ENCODERS)
def test_encoders(preset: str) -> None:
    counted = count(encoder(preset), jnp.ones((2, 3), jnp.int32), jnp.array([3, 2]))
    expected, published = READERS[preset]
    assert counted == expected and published in (None, expected)


def test_berts_pooler_is_the_classifiers() -> None:
    inputs = jnp.ones((2, 3), jnp.int32), jnp.array([3, 2])
    model = encoder("bert_base")
    assert count(Classifier(model, 2), *inputs) == 109_482_240 + 2 * 768 + 2


@pytest.mark.parametrize("preset", VISION)
def test_vision(preset: str) -> None:
    expected, published, side, channels = SEERS[preset]
    counted = count(vision(preset), jnp.ones((2, side, side, channels)))
    assert counted == expected and published in (None, expected)


def test_fields_are_replaced_and_unknown_names_refused() -> None:
    assert transformer("transformer_base", dropout=0.0).dropout == 0.0
    for make in (transformer, encoder, vision):
        with pytest.raises(ValueError, match=r"preset is one of .*; got 'gpt'"):
            make("gpt")

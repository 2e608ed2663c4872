"""Models trace a batch without examples, forward and with a gradient."""

import jax
import jax.numpy as jnp
import pytest

from attention_zoo.models import CausalLM, Encoder, Seq2Seq, ViT
from tests.models.captioners import captioner, inputs
from tests.models.transformers import SIZES

TOKENS, LENGTHS = jnp.zeros((0, 5), jnp.int32), jnp.zeros(0, jnp.int32)
ANNOTATIONS, WORDS = (jnp.asarray(array)[:0] for array in inputs())


def shapes(model, *arrays):
    """What the model gives for no examples, and the gradient of its sum."""
    whole = [jnp.zeros((2, *array.shape[1:]), array.dtype) for array in arrays]
    variables = jax.eval_shape(lambda: model.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, *whole))

    def total(variables):
        outputs = model.apply(variables, *arrays, rngs={"noise": jax.random.key(1)})
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return first.sum(), first

    (_, first), gradient = jax.eval_shape(jax.value_and_grad(total, has_aux=True), variables)
    assert jax.tree.structure(gradient) == jax.tree.structure(variables)
    return first.shape


@pytest.mark.parametrize(
    "fields", [{}, {"attention": "luong"}, {"score": "general"}, {"attention": "luong", "alignment": "local_p"}]
)
def test_seq2seq(fields):
    model = Seq2Seq(11, 13, embedding=4, encoder_units=3, decoder_units=6, **fields)
    assert shapes(model, TOKENS, LENGTHS, TOKENS[:, :3]) == (0, 3, 13)


@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_captioner(attention):
    assert shapes(captioner(attention), ANNOTATIONS, WORDS) == (0, 6, 17)


@pytest.mark.parametrize("positions", ["learned", "rotary", "relative", "alibi"])
def test_encoder_and_language_model(positions):
    encoder = Encoder(vocabulary=11, **{**SIZES, "positions": positions})
    assert shapes(encoder, TOKENS, LENGTHS) == (0, 5, 8)
    assert shapes(CausalLM(vocabulary=11, **{**SIZES, "positions": positions}), TOKENS) == (0, 5, 11)


def test_vit():
    model = ViT(**{**SIZES, "classes": 5, "patch": 2, "image": (4, 6)})
    assert shapes(model, jnp.zeros((0, 4, 6, 3))) == (0, 5)

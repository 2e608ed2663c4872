"""Packed batches train as their sequences alone would: the same loss and gradient as one pair, or one text, a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.data import LanguageData, Pairs, TextData, packed
from attention_zoo.data.vocabulary import Words
from attention_zoo.models import CausalLM, Transformer
from attention_zoo.training import next_token, packed_teacher_forcing, teacher_forcing
from tests.models.transformers import SIZES, drawn

TEXTS = ["a b c d", "b c", "c", "d a b", "a a c b d"]
REVERSED = [" ".join(text.split()[::-1]) for text in TEXTS]
KEY = jax.random.key(0)


def value_and_gradient(objective, params, batch):
    return jax.jit(jax.value_and_grad(lambda params: objective(params, dict(batch), KEY)[0]))(params)


def same(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6), ours[1], theirs[1])


@pytest.mark.parametrize("positions", ["sinusoidal", "relative"])
def test_packed_pairs_train_as_pairs_alone(positions):
    words = Words.fit(TEXTS)
    splits = {name: Pairs(TEXTS, REVERSED) for name in ("train", "dev", "test")}
    text = TextData(splits, words, words, batch_size=5, max_source=9, max_target=9, buckets=1)
    model = Transformer(source_vocabulary=words.size, target_vocabulary=words.size, positions=positions, **SIZES)
    alone, (together,) = next(iter(text.split("dev"))), list(packed(text, 2, 13).split("dev"))
    assert len(together["source"]) == 2 and together["source_segments"].max() > 1
    tokens = jnp.ones((1, 3), jnp.int32)
    params = drawn(model, tokens, jnp.array([3]), tokens)["params"]
    same(
        value_and_gradient(packed_teacher_forcing(model, 0.1), params, together),
        value_and_gradient(teacher_forcing(model, 0.1), params, alone),
    )


def test_packed_texts_train_as_texts_alone():
    words = Words.fit(TEXTS)
    splits = dict.fromkeys(("train", "dev", "test"), TEXTS)
    model = CausalLM(vocabulary=words.size, positions="learned", **SIZES)
    params = drawn(model, jnp.ones((1, 3), jnp.int32))["params"]
    results = []
    for rows, width in ((2, 13), (5, 6)):
        (batch,) = list(LanguageData(splits, words, batch_size=rows, width=width).split("dev"))
        results.append(value_and_gradient(next_token(model), params, batch))
    same(*results)

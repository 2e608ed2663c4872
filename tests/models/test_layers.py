"""What the fields of a Transformer's layers mean: every alignment in its heads."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.masks import within
from attention_zoo.functional.sparse import entmax15, sparsemax, tempered, top_k
from attention_zoo.models import Transformer
from attention_zoo.models.layers import STATELESS
from attention_zoo.modules import Asked
from tests.models.transformers import N_SOURCE, N_TARGET, SIZES, S, drawn, run, tokens

VOCABULARIES = {"source_vocabulary": N_SOURCE, "target_vocabulary": N_TARGET}
SOURCE, SOURCE_LENGTHS, TARGET = tokens()
FUNCTIONS = {
    "softmax": softmax,
    "tempered": partial(tempered, temperature=0.3),
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "top_k": partial(top_k, k=2),
}


def test_every_stateless_alignment_is_looked_at():
    assert set(FUNCTIONS) == set(STATELESS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_head_aligns_as_its_function_does(name):
    """The logarithms of softmax weights are scores, less a number for each row, which changes no alignment."""
    usual, model = (
        Transformer(**VOCABULARIES, alignment=alignment, temperature=0.3, kept=2, **SIZES)
        for alignment in ("softmax", name)
    )
    variables = drawn(usual, SOURCE, SOURCE_LENGTHS, TARGET)

    def weights(model, variables):
        return model.apply(variables, SOURCE, SOURCE_LENGTHS, asked=Asked(), method="encode")[1][0].own

    def both(variables):
        mask = within(SOURCE_LENGTHS, S)[:, None, None]
        scores = jnp.log(jnp.where(mask, weights(usual, variables), 1))
        return weights(model, variables), FUNCTIONS[name](scores, mask)

    found, expected = run(both, variables)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

"""The loss of the encoder-decoder with products of real rows alone is that with products of all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import rows
from tests.models.small import FAMILIES, T, make
from tests.quick import quick

# Of a step that counts for nothing later ones are read; the last row has none that counts.
MASK = np.array([[True] * T, [True, False, True] + [False] * (T - 3), [False] * T])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_and_its_gradient_are_the_same(monkeypatch, name):
    model, params, source, lengths, target = make(**FAMILIES[name])
    inputs = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=1)

    def loss(params):
        return model.apply(params, source, lengths, inputs, target, MASK, method="loss")[0]

    taken = []
    packed = rows._packed
    monkeypatch.setattr(rows, "_packed", lambda *arguments: taken.append(arguments) or packed(*arguments))
    whole = quick(jax.value_and_grad(loss))(params)
    assert not taken
    monkeypatch.setattr(rows, "LEAST", 0)
    monkeypatch.setattr(rows, "MULTIPLE", 1)
    some = quick(jax.value_and_grad(partial(loss)))(params)
    assert taken
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), some, whole)

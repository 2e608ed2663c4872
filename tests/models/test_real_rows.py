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
def test_a_target_of_no_steps_costs_nothing(name):
    model, params, source, lengths, target = make(**FAMILIES[name])
    nothing = target[:, :0]
    loss, right, _ = quick(partial(model.apply, method="loss"))(
        params, source, lengths, nothing, nothing, nothing.astype(bool)
    )
    assert (float(loss), float(right)) == (0, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_and_its_gradient_are_the_same(monkeypatch, name):
    model, params, source, lengths, target = make(**FAMILIES[name])
    inputs = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=1)

    def loss(params):
        return model.apply(params, source, lengths, inputs, target, MASK, method="loss")[0]

    forth, back = set(), set()
    row_by_row, by_both = rows._row_by_row, rows._by_both

    def going(x, kernel, real):
        forth.add(kernel.shape)
        return row_by_row(x, kernel, real)

    def after(x, kernel, dy, real):
        back.add(kernel.shape)
        return by_both(x, kernel, dy, real)

    monkeypatch.setattr(rows, "_row_by_row", going)
    monkeypatch.setattr(rows, "_by_both", after)
    whole = quick(jax.value_and_grad(loss))(params)
    assert not forth | back
    monkeypatch.setattr(rows, "LEAST", 0)
    monkeypatch.setattr(rows, "MULTIPLE", 1)
    some = quick(jax.value_and_grad(loss))(params)
    parts = {name: part for name, part in params["params"]["decoder"].items() if name != "attention"}
    keys = params["params"]["decoder"].get("attention", {}).get("score", {}).get("key")
    assert (keys is not None) == (model.score in ("additive", "general") and model.attention != "context")
    kernels = {leaf.shape for leaf in jax.tree.leaves((params["params"]["encoder"], parts, keys)) if leaf.ndim == 2}
    assert kernels and kernels <= forth and {shape[::-1] for shape in kernels} & forth and kernels <= back
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), some, whole)

"""The loss of a model that computes real rows alone is that of one that computes all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import ragged, rows
from attention_zoo.models import CausalLM, Classifier, Encoder, Transformer
from tests.models import transformers
from tests.models.small import FAMILIES, T, make
from tests.models.transformers import KINDS
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

    def going(product, x, kernel, real):
        forth.add(kernel.shape)
        return row_by_row(product, x, kernel, real)

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


@pytest.mark.parametrize("kind", KINDS)
def test_those_of_a_transformer_are_the_same(monkeypatch, kind):
    source, lengths, target = transformers.tokens()
    vocabularies = {"source_vocabulary": transformers.N_SOURCE, "target_vocabulary": transformers.N_TARGET}
    model = Transformer(**vocabularies, **{**transformers.SIZES, **KINDS[kind]})
    mask = jnp.asarray(MASK[:, : target.shape[1]])
    loss = lambda params: model.apply(params, source, lengths, target, target, mask, method="loss")[0]  # noqa: E731
    _same_in_parts(monkeypatch, loss, transformers.drawn(model, source, lengths, target), 4)


def test_those_of_a_language_model_are_the_same(monkeypatch):
    _, _, target = transformers.tokens()
    # What the first layer makes of a step that does not count, the second reads for later ones.
    model = CausalLM(vocabulary=transformers.N_TARGET, **{**transformers.SIZES, "layers": 2})
    mask = jnp.asarray(MASK[:, : target.shape[1]])
    loss = lambda params: model.apply(params, target, target[:, ::-1], mask, method="loss")[0]  # noqa: E731
    _same_in_parts(monkeypatch, loss, transformers.drawn(model, target), 4)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_those_of_a_classifier_are_the_same(monkeypatch, pooling):
    source, lengths, _ = transformers.tokens()
    encoder = Encoder(vocabulary=transformers.N_SOURCE, **transformers.SIZES)
    model = Classifier(encoder, 3, pooling=pooling)
    assert 0 in lengths  # whose first position is read nevertheless
    loss = lambda params: model.apply(params, source, lengths)[0][:, 0].sum()  # noqa: E731
    _same_in_parts(monkeypatch, loss, transformers.drawn(model, source, lengths), 2)


def _same_in_parts(monkeypatch, loss, params, loops):
    """Loss and gradient, with feed-forward layers of the real positions; so many loops over their parts."""
    whole = quick(jax.value_and_grad(loss))(params)
    count = lambda: str(jax.make_jaxpr(lambda params: loss(params))(params)).count("while[")  # noqa: E731
    before = count()
    monkeypatch.setattr(ragged, "LEAST", (0, 0))
    monkeypatch.setattr(ragged, "SIZES", (8, 2))
    assert count() >= before + loops
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), quick(jax.value_and_grad(loss))(params), whole
    )

"""The encoder-decoder under JAX's transformations, for one model of every family, sources without tokens included."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.models.small import FAMILIES, LENGTHS, MECHANISMS, N_SOURCE, B, S, make

every_family = pytest.mark.parametrize("name", FAMILIES)
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@cache
def family(name: str):
    """A model of `make`, and compiled: (params, source, lengths, target) -> logits and alignment."""
    model, *arguments = make(**FAMILIES[name])
    return model, tuple(arguments), jax.jit(model.apply)


def loss(model, params, *inputs):
    """A number that every logit and every weight moves differently."""
    leaves = jax.tree.leaves(model.apply(params, *inputs))
    return sum(jnp.sum(jnp.sin(leaf + jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves)


@every_family
def test_batch_equals_single_examples(name):
    model, (params, *inputs), run = family(name)
    single = jax.jit(jax.vmap(lambda *one: model.apply(params, *[leaf[None] for leaf in one])))
    jax.tree.map(lambda one, batch: close(one[:, 0], batch), single(*inputs), run(params, *inputs))


@every_family
def test_values_and_gradients_with_checkpoint_and_exported(name):
    model, (params, *inputs), _ = family(name)
    gradient = jax.jit(jax.value_and_grad(partial(loss, model)))
    expected = gradient(params, *inputs)
    again = jax.jit(jax.value_and_grad(jax.checkpoint(partial(loss, model))))(params, *inputs)
    jax.tree.map(close, again, expected)
    exported = jax.export.export(gradient)(params, *inputs)
    restored = jax.export.deserialize(exported.serialize(vjp_order=0))
    jax.tree.map(close, restored.call(params, *inputs), expected)


@every_family
def test_the_forward_pass_exported(name):
    model, (params, *inputs), run = family(name)
    call = jax.jit(lambda params, *inputs: model.apply(params, *inputs)[0])
    close(jax.export.export(call)(params, *inputs).call(params, *inputs), run(params, *inputs)[0])


@every_family
def test_as_an_nnx_module(name):
    model, (_, *inputs), run = family(name)
    wrapped = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(params=0)).lazy_init(*inputs)
    state = nnx.to_pure_dict(nnx.state(wrapped, nnx.Param))
    close(wrapped(*inputs)[0], run({"params": state}, *inputs)[0])


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_parameter_learns_and_an_empty_source_is_harmless(name):
    model, params, *inputs = make(**MECHANISMS[name])
    (value, (logits, alignment)), gradients = jax.jit(
        jax.value_and_grad(lambda params: (loss(model, params, *inputs), model.apply(params, *inputs)), has_aux=True)
    )(params)
    assert LENGTHS[2] == 0 and np.isfinite(value) and np.isfinite(logits).all()
    assert alignment is None or not alignment.weights[2].any()
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-5, jax.tree_util.keystr(path)


@every_family
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, S), min_size=B, max_size=B).map(np.int32),
    padding=arrays(np.int32, (B, S), elements=st.integers(0, N_SOURCE - 1)),
)
def test_what_padding_holds_changes_nothing(name, lengths, padding):
    _, (params, source, _, target), run = family(name)
    other = np.where(np.arange(S) < lengths[:, None], source, padding)
    jax.tree.map(
        np.testing.assert_array_equal, run(params, other, lengths, target), run(params, source, lengths, target)
    )

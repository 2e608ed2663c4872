"""The encoder-decoder under JAX's transformations, for one model of every family, sources without tokens included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.models.small import FAMILIES, LENGTHS, MECHANISMS, N_SOURCE, B, S, family, make
from tests.quick import quick

every_family = pytest.mark.parametrize("name", FAMILIES)
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def loss(model, params, *inputs, **options):
    """A number that every logit and every weight moves differently, and the logits and weights."""
    results = model.apply(params, *inputs, **options)
    leaves = jax.tree.leaves(results)
    return sum(jnp.vdot(leaf, jnp.cos(jnp.arange(leaf.size)).astype(leaf.dtype)) for leaf in leaves), results


@every_family
def test_batch_equals_single_examples(name):
    model, (params, *inputs), run = family(name)
    single = quick(jax.vmap(lambda *one: model.apply(params, *[leaf[None] for leaf in one])))
    jax.tree.map(lambda one, batch: close(one[:, 0], batch), single(*inputs), run(params, *inputs))


@every_family
def test_exported_values_and_gradients_with_checkpoint(name, float64):
    model, (params, *inputs), _ = family(name)
    params = jax.tree.map(np.float64, params)
    gradient = jax.value_and_grad(partial(loss, model), has_aux=True)
    remade = jax.value_and_grad(jax.checkpoint(partial(loss, model)), has_aux=True)
    found = jax.export.export(jax.jit(remade))(params, *inputs).call(params, *inputs)
    exact = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    jax.tree.map(exact, found, quick(gradient)(params, *inputs))


@every_family
def test_as_an_nnx_module(name):
    model, (params, *inputs), run = family(name)
    wrapped = nnx.eval_shape(lambda: nnx.bridge.ToNNX(model).lazy_init(*inputs, rngs=jax.random.key(0)))
    state = nnx.state(wrapped, nnx.Param)
    nnx.replace_by_pure_dict(state, params["params"])
    nnx.update(wrapped, state)
    jax.tree.map(close, nnx.jit(lambda wrapped: wrapped(*inputs))(wrapped), run(params, *inputs))


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_parameter_learns_and_an_empty_source_is_harmless(name):
    model, params, *inputs = make(**MECHANISMS[name])
    # In training: what is decided at inference is an expectation or a sample then, which has a gradient.
    training = {"deterministic": False, "rngs": {"alignment": jax.random.key(0)}}
    gradient = quick(jax.value_and_grad(partial(loss, model, **training), has_aux=True))
    (_, (logits, alignment)), gradients = gradient(params, *inputs)
    assert LENGTHS[2] == 0 and np.isfinite(logits).all()
    assert alignment is None or not alignment.weights[2].any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-5, jax.tree_util.keystr(path)


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

"""What the fields of the encoder-decoder mean: bridges, the fixed context, tied output, attention at once, NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.models.small import N_TARGET, B, S, T, make
from tests.quick import quick


def start(model, params, source, lengths):
    return quick(lambda params: model.apply(params, source, lengths, method="start"))(params)


def first_and_last(model, params, source, lengths):
    """The first states of the decoder's layers, and the last ones of the encoder's."""

    @quick
    def both(params):
        read = lambda model: model.encoder(model.source_embedding(source), lengths)[1]  # noqa: E731
        return model.apply(params, source, lengths, method="start").decoder.layers, model.apply(params, method=read)

    return jax.device_get(both(params))


@pytest.mark.parametrize("bridge", ["dense", "backward"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_bridge_is_tanh_of_the_last_state(bridge, cell):
    model, params, source, lengths, _ = make(bridge=bridge, cell=cell, encoder_layers=2, decoder_layers=2)
    first, last = first_and_last(model, params, source, lengths)
    hidden = last[-1].hidden
    read = hidden[:, 3:] if bridge == "backward" else hidden  # 3 units forward, then 3 backward
    for number, state in enumerate(first):
        weights = jax.device_get(params["params"][f"bridges_{number}"])
        expected = np.tanh(read @ weights["kernel"] + weights["bias"][None])
        np.testing.assert_allclose(np.concatenate(state, -1), expected, rtol=1e-5, atol=1e-6)
    assert weights["kernel"].shape == (read.shape[1], 6 * len(state))


def test_bridge_copies_layer_by_layer():
    model, params, source, lengths, _ = make(bridge="copy", encoder_layers=2, decoder_layers=2)
    first, last = first_and_last(model, params, source, lengths)
    jax.tree.map(np.testing.assert_array_equal, first, last)
    assert np.abs(first[0].hidden - first[1].hidden).max() > 1e-2


def test_a_decoder_may_start_from_zeros():
    model, params, source, lengths, _ = make(bridge="zeros", decoder_layers=2)
    first = start(model, params, source, lengths).decoder.layers
    assert [leaf.shape for leaf in jax.tree.leaves(first)] == [(len(source), 6)] * 4
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(first))
    assert not [name for name in params["params"] if name.startswith("bridges")]


def test_a_shared_embedding_is_read_by_both():
    shared, params, source, lengths, target = make(attention="none", shared=True, source_vocabulary=N_TARGET)
    assert "source_embedding" not in params["params"]
    embedding = params["params"]["target_embedding"]
    twice = {"params": {**params["params"], "source_embedding": embedding}}
    inputs = source % N_TARGET, lengths, target
    both = quick(lambda one, two: (shared.apply(one, *inputs)[0], shared.clone(shared=False).apply(two, *inputs)[0]))
    np.testing.assert_array_equal(*both(params, twice))


@pytest.mark.parametrize("attention", ["bahdanau", "luong"])
def test_tied_output_is_the_target_embedding(attention):
    model, params, source, lengths, target = make(attention=attention, tied=True)
    assert "output" not in params["params"]
    call = quick(lambda params: model.apply(params, source, lengths, target)[0])
    # Token 3 is never read (targets are 4 and above): its embedding can only move its own logit.
    changed = jax.tree.map(lambda leaf: leaf, params)
    embedding = params["params"]["target_embedding"]["embedding"]
    changed["params"]["target_embedding"]["embedding"] = embedding.at[3].multiply(3)
    before, after = np.asarray(call(params)), np.asarray(call(changed))
    np.testing.assert_allclose(after[..., 3], 3 * before[..., 3], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.delete(after, 3, -1), np.delete(before, 3, -1))
    assert np.abs(before[..., 3]).max() > 1e-3


def test_the_fixed_context_enters_every_step():
    model, params, source, lengths, target = make(attention="context")
    cache = start(model, params, source, lengths)

    @quick
    def moved(cache, context):
        """The logits of every step, and those of the same steps if at each the context alone were another."""

        def step(cache, tokens):
            other = model.apply(params, cache._replace(context=context), tokens, method="step")[0]
            logits, cache, _ = model.apply(params, cache, tokens, method="step")
            return cache, jnp.abs(logits - other).max()

        return jax.lax.scan(step, cache, target.T)[1]

    assert moved(cache, -cache.context).min() > 1e-3
    model, *inputs = make(attention="none")
    assert jax.eval_shape(partial(model.apply, method="start"), *inputs[:3]).context is None


def scanned_shapes(jaxpr, inside=False) -> set[tuple[int, ...]]:
    """The shapes of everything computed inside a scan of a jaxpr."""
    found = {variable.aval.shape for equation in jaxpr.eqns for variable in equation.outvars} if inside else set()
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= scanned_shapes(inner, inside or equation.primitive.name == "scan")
    return found


@pytest.mark.parametrize("score", ["general", "additive"])
def test_without_input_feeding_attention_answers_all_steps_at_once(score):
    def scores_in_the_loop(**fields):
        model, params, *inputs = make(**{"attention": "luong", "score": score, **fields})
        shapes = scanned_shapes(jax.make_jaxpr(model.apply)(params, *inputs).jaxpr)
        return {shape for shape in shapes if shape[:1] == (B,) and shape[-1:] == (S,)}

    assert not scores_in_the_loop(input_feeding=False)
    assert scores_in_the_loop(input_feeding=True) and scores_in_the_loop(attention="bahdanau")


@pytest.mark.parametrize("readout", ["state", "both"])
def test_a_readout_without_pairs_takes_an_odd_number_of_units(readout):
    model, *inputs = make(decoder_units=7, readout=readout)
    assert jax.eval_shape(model.apply, *inputs)[0].shape == (B, T, model.target_vocabulary)


def test_arrays_of_numpy_are_taken_without_jit():
    model, params, *inputs = make(attention="luong", score="general")
    arrays = [np.asarray(array) for array in inputs]
    jax.tree.map(np.testing.assert_array_equal, model.apply(params, *arrays), model.apply(params, *inputs))


@pytest.mark.parametrize("attention", ["none", "context", "bahdanau", "luong"])
def test_tokens_of_fewer_rows_than_the_cache_are_refused(attention):
    model, params, source, lengths, target = make(attention=attention)
    cache = jax.eval_shape(partial(model.apply, method="start"), params, source, lengths)
    with pytest.raises(TypeCheckError, match="parameter 'hidden'"):
        jax.eval_shape(partial(model.apply, method="extend"), params, cache, target[:1])


def test_wrong_ranks_name_the_argument():
    model, params, source, lengths, target = make(attention="none")
    cache = jax.eval_shape(partial(model.apply, method="start"), params, source, lengths)
    with pytest.raises(TypeCheckError, match="parameter 'tokens'"):
        jax.eval_shape(partial(model.apply, method="step"), params, cache, target)
    with pytest.raises(TypeCheckError, match="parameter 'tokens'"):
        jax.eval_shape(partial(model.apply, method="extend"), params, cache, np.float32(target))
    with pytest.raises(TypeCheckError, match="parameter 'source'"):
        model.apply(params, source[0], lengths, method="start")

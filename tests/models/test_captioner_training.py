"""The captioner in training: noise, temperature, dropout, and half precision."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from tests.models.captioners import B, S, captioner, close, inputs, parameters
from tests.quick import quick

IMAGES, TOKENS = inputs()
KEY = jax.random.key(5)


@cache
def make(kind, **fields):
    model = captioner(kind, **fields)
    return model, parameters(model, IMAGES, TOKENS)


def test_relaxed_samples_have_the_models_temperature():
    """Of the first word, whose scores are the same at any temperature: `softmax((e + g) / theta)` of one noise g."""
    target = np.random.default_rng(3).normal(size=(B, S)).astype(np.float32)

    params = make("gumbel_softmax")[1]

    def first(score, kind, temperature):
        model, tree = captioner(kind, temperature=temperature), {"params": {**params, "score": score}}
        weights = model.apply(tree, IMAGES, TOKENS[:, :1], False, rngs={"alignment": KEY})[1].weights[:, 0]
        return jnp.vdot(target, weights), weights

    look = jax.grad(first, has_aux=True)
    kinds = ("gumbel_softmax", "straight_through")
    looks = quick(lambda score: [[look(score, kind, theta) for theta in (1.0, 0.5)] for kind in kinds])
    ((_, warm), (relaxed, cool)), ((other, _), (through, _)) = jax.device_get(looks(params["score"]))
    close(cool, warm**2 / np.sum(warm**2, -1, keepdims=True), rtol=1e-4)
    # What looks at one location has the temperature in its gradient alone.
    close(through, relaxed, rtol=1e-4, atol=1e-6)
    assert np.abs(through["energy"] - other["energy"]).max() > 1e-3


@pytest.mark.parametrize("kind", ["soft", "hard", "marginal"])
def test_bfloat16_computes_in_bfloat16_from_float32_parameters(kind):
    model, params = make(kind)
    half = model.clone(dtype=jnp.bfloat16)
    logits, alignment = quick(half.apply)({"params": params}, IMAGES, TOKENS)
    # A mixture is formed in float32, as every log-sum-exp.
    assert logits.dtype == (jnp.float32 if kind == "marginal" else jnp.bfloat16)
    assert alignment.weights.dtype == jnp.bfloat16
    shapes = jax.eval_shape(half.init, jax.random.key(0), IMAGES, TOKENS)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shapes)} == {"float32"}
    expected, looked = quick(model.apply)({"params": params}, IMAGES, TOKENS)
    # Rows that look at the same places with eight bits too.
    same = np.all(np.abs(looked.weights - alignment.weights) < 0.1, (1, 2))
    assert same.any() and np.abs(logits - expected)[same].max() < 0.02 * np.ptp(expected)


def test_noise_and_dropout_need_keys_in_training_alone():
    for kind in ("hard", "gumbel_softmax", "straight_through"):
        model, params = make(kind)
        with pytest.raises(InvalidRngError, match='needs PRNG for "alignment"'):
            jax.eval_shape(partial(model.apply, deterministic=False), {"params": params}, IMAGES, TOKENS)
    model, params = make("marginal", dropout=0.5)
    call = quick(lambda key: model.apply({"params": params}, IMAGES, TOKENS, False, rngs={"dropout": key})[0])
    first, again, other = (call(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    with pytest.raises(InvalidRngError, match='needs PRNG for "dropout"'):
        jax.eval_shape(partial(model.apply, deterministic=False), {"params": params}, IMAGES, TOKENS)


def test_a_word_is_written_by_one_thinned_network_wherever_it_looks():
    model, params = make("variational", dropout=0.5)
    same = np.broadcast_to(IMAGES[:, :1, :1], IMAGES.shape)  # at every location

    @quick
    def likelihoods(params):
        apply = partial(model.apply, {"params": params}, rngs={"dropout": jax.random.key(2)})
        cache = apply(same, method="start")
        return apply(cache, TOKENS, TOKENS, False, method="variational").log_likelihoods

    found = likelihoods(params)
    close(found, np.broadcast_to(found[..., :1], found.shape))
    assert np.ptp(found[..., 0]) > 0.1

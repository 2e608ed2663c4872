"""The predictive distribution of a latent location, by hand and by force. (The rest of `latent` is in test_hard.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jaxtyping import TypeCheckError
from scipy.special import log_softmax, logsumexp, softmax

from attention_zoo.functional import latent

B, T, S, N = 2, 3, 5, 7
RANDOM = np.random.default_rng(0)
SCORES, LOGITS = RANDOM.normal(size=(B, T, S)), 2 * RANDOM.normal(size=(B, T, S, N))
MASK = np.array([[True] * S, [True, False, True, True, False]])[:, None]
WEIGHTS = softmax(np.where(MASK, SCORES, -np.inf), -1)
mixture, marginal = (jax.jit(function, static_argnames="best") for function in (latent.mixture, latent.marginal))
hiding = jax.jit(latent.log_softmax)


def log_weights(scores=SCORES):
    return hiding(scores, MASK)


def test_a_mixture_by_hand():
    weights, chances = np.array([[0.25, 0.75]]), np.array([[[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]])
    found = mixture(np.log(weights), np.log(chances) + np.array([[[3.0], [-5.0]]]))
    np.testing.assert_allclose(np.exp(found), [[0.35, 0.175, 0.475]], rtol=1e-5)
    # Of the best one alone.
    np.testing.assert_allclose(np.exp(mixture(np.log(weights), np.log(chances), best=1)), chances[:, 1], rtol=1e-5)


@pytest.mark.parametrize("best", [None, 1, 2, S, 11])
def test_a_mixture_by_force(best, float64):
    weights = WEIGHTS.copy()
    if best is not None and best < S:
        weights[weights < np.sort(weights, -1)[..., -best, None]] = 0
    weights /= weights.sum(-1, keepdims=True)
    expected = np.log(np.sum(weights[..., None] * softmax(LOGITS, -1), 2))
    found = np.asarray(mixture(log_weights(), LOGITS, best=best))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(logsumexp(found, -1), np.zeros((B, T)), atol=1e-12)
    # The likelihood of a word is that of `marginal`.
    one = marginal(log_weights(), log_softmax(LOGITS, -1)[..., 4], best=best)
    np.testing.assert_allclose(found[..., 4], one, rtol=1e-12)


def test_gradients_are_exact_and_reach_no_hidden_location(float64):
    @jax.jit
    def mix(scores, logits):
        return latent.mixture(log_weights(scores), logits)

    check_grads(mix, (SCORES, LOGITS), 1, modes=["rev"], rtol=1e-6)
    hidden = ~np.broadcast_to(MASK, SCORES.shape)
    garbage = np.where(hidden, 1e9, SCORES), np.where(hidden[..., None], 1e5 * LOGITS, LOGITS)
    total = jax.jit(jax.value_and_grad(lambda *inputs: jnp.sum(jnp.sin(mix(*inputs))), (0, 1)))
    (loss, gradients), (same, others) = total(*garbage), total(SCORES, LOGITS)
    np.testing.assert_allclose(loss, same, rtol=1e-12)
    for found, expected in zip(gradients, others, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        assert not np.asarray(found)[hidden].any() and np.abs(np.asarray(found)[~hidden]).min() > 0


def test_the_best_locations_err_as_they_explain_better_or_worse_than_the_others():
    weights, likelihoods = np.array([[0.6, 0.3, 0.1]]), np.array([[0.5, 0.2, 0.3], [0.1, 0.4, 0.2]])
    exact, best = (marginal(np.log(np.tile(weights, (2, 1))), np.log(likelihoods), best=k) for k in (None, 1))
    np.testing.assert_allclose(np.exp(exact), [0.39, 0.2], rtol=1e-5)
    np.testing.assert_allclose(np.exp(best), [0.5, 0.1], rtol=1e-5)


@pytest.mark.parametrize("best", [None, 2])
def test_what_is_impossible_everywhere_has_a_gradient_of_zero(best):
    log_likelihoods = np.array([[-np.inf] * 3, [-np.inf, -1.0, -2.0], [9.0, -np.inf, -np.inf]])
    hidden = np.array([[False] * 3, [False] * 3, [True, False, False]])

    def total(scores, log_likelihoods):
        found = latent.marginal(latent.log_softmax(scores, ~hidden), log_likelihoods, best)
        return jnp.sum(jnp.where(jnp.isfinite(found), found, 0)), found

    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (_, found), gradients = jax.device_get(run(np.zeros((3, 3)), log_likelihoods))
    assert np.isneginf(found).tolist() == [True, False, True]
    for gradient in gradients:
        assert np.isfinite(gradient).all() and not gradient[::2].any() and np.abs(gradient[1]).max() > 0.1


def test_vmap_more_axes_and_half_precision():
    weights, logits = np.float32(log_weights()), np.float32(LOGITS)
    expected = mixture(weights, logits)
    np.testing.assert_allclose(jax.jit(jax.vmap(latent.mixture))(weights, logits), expected, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(mixture(weights[None], logits[None]))[0], expected, rtol=1e-6)
    half = mixture(weights.astype(jnp.bfloat16), logits.astype(jnp.bfloat16))
    assert half.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, atol=0.05)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="k_best keeps at least 1 location; got 0"):
        latent.mixture(log_weights(), jnp.asarray(LOGITS), 0)
    with pytest.raises(TypeCheckError, match="logits"):
        latent.mixture(log_weights(), jnp.asarray(LOGITS[:, :, 0]))

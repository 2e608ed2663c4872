"""Relaxed samples of a location: their distribution, their limits, their values and gradients, their masks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.stats import chi2, entropy

from attention_zoo.functional.loop import scan
from attention_zoo.functional.relaxed import gumbel_softmax, log_prob_and_entropy, straight_through
from attention_zoo.functional.sparse import tempered
from tests.quick import quick

NAN, INF = np.nan, np.inf
# A row that sees all, one that sees some, one that sees nothing.
B, T, S = 2, 3, 7
MASK = np.array([[[True] * S, [True, False, True, True, False, True, False], [False] * S]] * B)
DRAWS = 20011
KEY = jax.random.key(5)
both = pytest.mark.parametrize("align", [gumbel_softmax, straight_through])


@partial(jax.jit, static_argnums=0)
def compiled(align, scores, mask, cotangents, key, temperature):
    weights, pull_back = jax.vjp(lambda scores: align(scores, mask, key, temperature=temperature), scores)
    return weights, pull_back(cotangents)[0]


def compute(align, scores, mask, cotangents, key=KEY, temperature=0.7):
    """Weights and the gradient by the scores, as NumPy's arrays, of which an index is no program of its own."""
    return jax.device_get(compiled(align, scores, mask, cotangents, key, temperature))


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and cotangents, [B, T, S]."""
    return tuple(np.random.default_rng(seed).normal(size=(2, B, T, S)).astype(np.float32))


@both
def test_the_largest_weight_falls_as_softmax_says(align):
    # Probabilities 0.1, 0.4, 0.2, 0.3 of the allowed; what is hidden would win nearly always.
    scores = np.log(np.array([[1.0, 4.0, 1e6, 2.0, 3.0]], np.float32))
    mask = np.array([[True, True, False, True, True]])
    many = np.broadcast_to(scores, (DRAWS, 1, 5))
    weights = np.asarray(jax.jit(partial(align, temperature=3.0))(many, mask, KEY))[:, 0]
    counts, expected = np.bincount(weights.argmax(-1), minlength=5), DRAWS * np.array([0.1, 0.4, 0, 0.2, 0.3])
    assert counts[2] == 0
    statistic = np.sum((counts - expected)[[0, 1, 3, 4]] ** 2 / expected[[0, 1, 3, 4]])
    assert statistic < chi2.ppf(0.99, df=3)


def test_gumbel_softmax_is_the_softmax_of_scores_with_gumbel_noise(float64):
    # exp(-g) of a Gumbel variable is exponential, so each weight is (w_s / x_s)^(1 / theta) up to a factor.
    scores = np.random.default_rng(0).normal(size=(T, S))
    exponential = np.exp(-np.asarray(jax.random.gumbel(KEY, (T, S), np.float64)))
    expected = (np.exp(scores) / exponential) ** 2
    found = jax.jit(gumbel_softmax)(scores, None, KEY, temperature=0.5)
    np.testing.assert_allclose(found, expected / expected.sum(-1, keepdims=True), rtol=1e-10)


def test_a_low_temperature_gives_one_hot_and_a_high_one_spreads():
    scores, cotangents = draw()
    cold, _ = compute(gumbel_softmax, scores, MASK, cotangents, temperature=1e-6)
    np.testing.assert_array_equal(cold, compute(straight_through, scores, MASK, cotangents)[0])
    hot, _ = compute(gumbel_softmax, scores, MASK, cotangents, temperature=1e8)
    np.testing.assert_allclose(hot, MASK / np.maximum(MASK.sum(-1, keepdims=True), 1), rtol=1e-6)


def test_keys_decide():
    scores, cotangents = draw()
    one, again, other = (
        compute(gumbel_softmax, scores, MASK, cotangents, key)[0] for key in (KEY, KEY, jax.random.key(6))
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1
    # Every row and every example has noise of its own.
    alike, _ = compute(gumbel_softmax, np.zeros_like(scores), MASK, cotangents)
    assert np.abs(alike[0, 0] - alike[1, 0]).max() > 0.1 and np.abs(alike[0, 0] - alike[0, 1]).max() > 0.1


def test_straight_through_by_hand():
    scores = np.log([[1.0, 5.0, 2.0], [4.0, 1.0, 4.0], [9.0, 9.0, 9.0]])
    mask = np.array([[True] * 3, [True] * 3, [False] * 3])
    weights, gradient = compute(straight_through, scores, mask, np.array([[8.0, 0.0, 0.0]] * 3), None, 1.0)
    np.testing.assert_array_equal(weights, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    # Softmax (1/8, 5/8, 2/8) and (4/9, 1/9, 4/9): p_s ([s = 0] - p_0), eight times.
    np.testing.assert_allclose(gradient[0], np.array([7, -5, -2]) / 8, rtol=1e-6)
    np.testing.assert_allclose(gradient[1], np.array([20, -4, -16]) * 8 / 81, rtol=1e-6)
    np.testing.assert_array_equal(gradient[2], 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_straight_through_is_exactly_one_hot_with_the_gradient_of_the_relaxed_sample(dtype):
    scores, cotangents = (array.astype(dtype) for array in draw())
    weights, gradient = compute(straight_through, scores, MASK, cotangents)
    relaxed, expected = compute(gumbel_softmax, scores, MASK, cotangents)
    assert weights.dtype == gradient.dtype == relaxed.dtype == dtype
    first = np.arange(S) == np.asarray(relaxed, np.float32).argmax(-1)[..., None]
    np.testing.assert_array_equal(weights, first & MASK)
    np.testing.assert_array_equal(gradient, expected)


def test_without_a_key_the_gradient_is_that_of_the_tempered_softmax():
    scores, cotangents = draw()
    _, gradient = compute(straight_through, scores, MASK, cotangents, None)
    _, pull_back = jax.vjp(jax.jit(lambda scores: tempered(scores, MASK, temperature=0.7)), scores)
    np.testing.assert_allclose(gradient, pull_back(cotangents)[0], rtol=1e-5, atol=1e-7)


def test_gradients_equal_finite_differences(float64):
    # For fixed noise; of the straight-through estimator, whose gradient is not that of its values, the second.
    scores, cotangents = np.random.default_rng(0).normal(size=(2, B, T, S))
    relaxed = jax.jit(lambda scores, theta: gumbel_softmax(scores, MASK, KEY, temperature=theta))
    check_grads(relaxed, (scores, np.array(0.7)), order=1, atol=1e-6, rtol=1e-6)
    second = jax.jit(jax.grad(lambda scores: jnp.sum(cotangents * straight_through(scores, MASK, KEY))))
    check_grads(second, (scores,), order=1, atol=1e-6, rtol=1e-6)


@both
def test_the_gradient_is_biased_of_a_linear_function_too(align):
    """In each entry beyond 5 standard errors; at a lower temperature less so, and noisier."""
    scores, values = np.float32([[1.0, -0.5, 0.3]]), np.float32([0.7, -1.1, 0.4])
    p = np.exp(scores[0]) / np.exp(scores).sum()
    exact = p * (values - p @ values)  # of sum_s p_s f_s, the mean of f of exact samples
    many, cotangents = (np.broadcast_to(array, (DRAWS, 1, 3)) for array in (scores, values))
    everything = np.ones((1, 3), bool)
    found = [np.asarray(compute(align, many, everything, cotangents, KEY, theta)[1])[:, 0] for theta in (1.0, 0.2)]
    errors = [sample.std(0) / np.sqrt(DRAWS) for sample in found]
    bias, lower = (sample.mean(0) - exact for sample in found)
    assert np.all(np.abs(bias) > 5 * errors[0])
    assert np.all(np.abs(lower) < np.abs(bias) / 2) and np.all(errors[1] > errors[0])


@pytest.mark.parametrize(("align", "key"), [(gumbel_softmax, KEY), (straight_through, KEY), (straight_through, None)])
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3e38])
def test_what_stands_in_masked_scores_matters_neither_forward_nor_backward(align, key, garbage):
    scores, cotangents = draw()
    clean = compute(align, scores, MASK, cotangents, key)
    dirty = compute(align, np.where(MASK, scores, np.float32(garbage)), MASK, cotangents, key)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    np.testing.assert_array_equal(dirty[0][~MASK], 0)
    np.testing.assert_array_equal(dirty[1][~MASK], 0)
    assert np.all(np.abs(dirty[1]).max(-1)[:, :2] > 0.01)


@both
def test_a_score_of_minus_infinity_hides_a_position(align):
    scores, cotangents = draw()
    hidden = compute(align, np.where(MASK, scores, np.float32(-INF)), np.ones_like(MASK), cotangents)
    jax.tree.map(np.testing.assert_array_equal, hidden, compute(align, scores, MASK, cotangents))


@both
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_huge_scores_give_finite_weights_and_gradients(align, dtype):
    for seed in range(10):
        scores, cotangents = draw(seed)
        huge = np.where(np.random.default_rng(seed).random(scores.shape) < 0.5, np.sign(scores) * 1e4, scores)
        found = compute(align, huge.astype(dtype), MASK, cotangents.astype(dtype))
        weights, gradient = (np.asarray(array, np.float32) for array in found)
        assert np.all(np.isfinite(gradient)) and np.all(weights >= 0)
        np.testing.assert_allclose(weights.sum(-1), MASK.any(-1), atol=S * jnp.finfo(dtype).eps)


@both
def test_masks_broadcast_and_wide_numbers_are_taken(align):
    scores, cotangents = draw()
    broadcast = compute(align, scores, MASK[0, 1:2], cotangents)
    whole = compute(align, scores, np.broadcast_to(MASK[0, 1:2], scores.shape), cotangents)
    jax.tree.map(np.testing.assert_array_equal, broadcast, whole)
    assert jax.eval_shape(lambda: align(np.zeros((T, S)), MASK[0], KEY)).dtype == jnp.float32


@both
def test_inside_scan_vmap_and_checkpoint_and_exported(align):
    (scores, cotangents), keys = draw(), jax.random.split(KEY, (T, B))

    def step(constants: jax.Array, count: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return count + 1, jax.vmap(jax.checkpoint(align))(row[0][:, None] + constants, row[1][:, None], row[2])[:, 0]

    @jax.jit
    def stepwise(scores: jax.Array, keys: jax.Array) -> jax.Array:
        rows = [jnp.moveaxis(array, 1, 0) for array in (scores, jnp.asarray(MASK))]
        return jnp.moveaxis(scan(step, jnp.zeros(()), jnp.zeros(()), (*rows, keys))[1], 0, 1)

    weights, pull_back = jax.vjp(lambda scores: stepwise(scores, keys), scores)
    weights, (gradient,) = jax.device_get((weights, pull_back(cotangents)))
    for b, t in np.ndindex(B, T):
        row = compute(align, scores[b, t][None], MASK[b, t][None], cotangents[b, t][None], keys[t, b], 1.0)
        np.testing.assert_allclose(weights[b, t], row[0][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[b, t], row[1][0], rtol=1e-5, atol=1e-6)
    exported = jax.export.export(stepwise)(scores, keys).call(scores, keys)
    np.testing.assert_allclose(exported, weights, rtol=1e-5, atol=1e-6)


@both
def test_refuses_a_temperature_that_is_not_above_zero(align):
    with pytest.raises(ValueError, match=r"temperature is above zero; got 0\.0"):
        align(jnp.zeros((T, S)), None, KEY, temperature=0.0)


# Compiling is most of the time of these tests, and their code need not be fast.


@quick
def report(scores, mask, weights, cotangents):
    """Log-probability and entropy, and the gradient of both by the scores, from cotangents [2, ..., T]."""
    found, pull_back = jax.vjp(lambda scores: log_prob_and_entropy(scores, mask, weights), scores)
    return *found, pull_back((cotangents[0], cotangents[1]))[0]


def sample(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Scores, one-hot samples of them, and cotangents [2, B, T]."""
    scores, cotangents = draw(seed)
    return scores, compute(straight_through, scores, MASK, cotangents)[0], np.stack([cotangents[..., 0]] * 2)


def test_log_prob_and_entropy_by_hand():
    # Softmax (1/8, 5/8, 2/8), (4/9, 1/9, 4/9) and, of what is seen, (1/4, 3/4); a row that sees nothing.
    scores = np.log(np.float32([[1, 5, 2], [4, 1, 4], [1, 9, 3], [9, 9, 9]]))
    mask = np.array([[True] * 3, [True] * 3, [True, False, True], [False] * 3])
    weights = np.float32([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    log_prob, found, gradient = jax.device_get(report(scores, mask, weights, np.float32([[8] * 4, [0] * 4])))
    np.testing.assert_allclose(log_prob, [np.log(5 / 8), np.log(4 / 9), np.log(3 / 4), 0], rtol=1e-6)
    expected = [entropy(row) for row in ([1, 5, 2], [4, 1, 4], [1, 3])]
    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-6)
    # [k = s] - p_k, eight times.
    np.testing.assert_allclose(gradient[0], [-1, 3, -2], rtol=1e-6)
    np.testing.assert_allclose(gradient[2], [-2, 0, 2], rtol=1e-6)
    np.testing.assert_array_equal(gradient[3], 0)


def test_the_score_function_estimator_is_unbiased():
    # sum_s p_s r_s d log p_s, over all samples s, is the gradient of sum_s p_s r_s: p_k (r_k - sum_s p_s r_s).
    scores, rewards = np.random.default_rng(0).normal(size=(2, S)).astype(np.float32)
    p = np.exp(scores) / np.exp(scores).sum()
    every, all_seen = np.broadcast_to(scores, (S, S)), np.ones((S, S), bool)
    gradient = report(every, all_seen, np.eye(S, dtype=np.float32), np.stack([p * rewards, np.zeros_like(p)]))[2]
    np.testing.assert_allclose(gradient.sum(0), p * (rewards - p @ rewards), rtol=1e-5, atol=1e-6)


def test_log_prob_and_entropy_have_the_gradients_of_finite_differences(float64):
    scores, weights = np.random.default_rng(0).normal(size=(B, T, S)), np.broadcast_to(np.eye(T, S), (B, T, S))
    check_grads(jax.jit(lambda scores: log_prob_and_entropy(scores, MASK, weights)), (scores,), order=1, rtol=1e-6)


def test_the_straight_through_gradient_stays_out_of_the_log_prob():
    scores, weights, _ = sample()

    @quick
    @jax.grad
    def gradient(scores):
        weights = straight_through(scores, MASK, KEY, temperature=0.7)
        return log_prob_and_entropy(scores, MASK, weights)[0].sum()

    zeros, ones = np.zeros((B, T), np.float32), np.ones((B, T), np.float32)
    np.testing.assert_array_equal(gradient(scores), report(scores, MASK, weights, np.stack([ones, zeros]))[2])


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3e38])
def test_what_stands_in_masked_scores_matters_not_to_log_prob_and_entropy(garbage):
    scores, weights, cotangents = sample()
    clean = report(scores, MASK, weights, cotangents)
    dirty = jax.device_get(report(np.where(MASK, scores, np.float32(garbage)), MASK, weights, cotangents))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    np.testing.assert_array_equal(dirty[2][~MASK], 0)
    assert not np.any(dirty[0][:, 2]) and not np.any(dirty[1][:, 2]) and np.all(dirty[0][:, :2] < 0)
    hidden = report(np.where(MASK, scores, np.float32(-INF)), np.ones_like(MASK), weights, cotangents)
    jax.tree.map(np.testing.assert_array_equal, hidden, clean)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_huge_scores_give_finite_log_probs_and_entropies(dtype):
    for seed in range(5):
        scores, weights, cotangents = sample(seed)
        huge = np.where(np.random.default_rng(seed).random(scores.shape) < 0.5, np.sign(scores) * 1e4, scores)
        log_prob, found, gradient = report(huge.astype(dtype), MASK, weights.astype(dtype), cotangents)
        assert log_prob.dtype == found.dtype == jnp.float32 and gradient.dtype == dtype
        assert np.all(np.isfinite(log_prob)) and np.all(np.isfinite(np.asarray(gradient, np.float32)))
        assert np.all(log_prob <= 0) and np.all(found >= 0) and np.all(found <= np.log(S) + 1e-6)


def test_log_prob_and_entropy_inside_scan_vmap_and_checkpoint_and_exported():
    scores, weights, cotangents = sample()
    rows = tuple(np.moveaxis(array, 1, 0)[:, :, None] for array in (scores, MASK, weights))

    @quick
    def stepwise(rows):
        one = jax.vmap(jax.checkpoint(log_prob_and_entropy))
        return scan(lambda _, count, row: (count + 1, one(*row)), jnp.zeros(()), jnp.zeros(()), rows)[1]

    found, expected = jax.export.export(stepwise)(rows).call(rows), report(scores, MASK, weights, cotangents)[:2]
    for part, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(np.asarray(part)[..., 0], 0, 1), whole, rtol=1e-5, atol=1e-6)
    broadcast = report(scores, MASK[0, 1:2], weights, cotangents)
    whole = report(scores, np.broadcast_to(MASK[0, 1:2], scores.shape), weights, cotangents)
    jax.tree.map(np.testing.assert_array_equal, broadcast, whole)

"""Hard attention: what is sampled, with which probability; losses, baselines and bounds solved by hand or by force."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import log_softmax
from scipy.stats import chi2, entropy

from attention_zoo.functional import hard, latent
from attention_zoo.functional.alignment import softmax
from attention_zoo.training.step import KEYS

NAN, INF = np.nan, np.inf
T, S, DRAWS = 3, 5, 100_003
# A row that sees all, one that sees some, one that sees nothing.
MASK = np.array([[True] * S, [True, False, True, True, False], [False] * S])
# The second would win always, but is masked; the score of the fifth is -inf.
CHANCES = np.array([0.1, 0.0, 0.4, 0.2, 0.0, 0.3])
SCORES = np.array([np.log(0.1), 50.0, np.log(0.4), np.log(0.2), -INF, np.log(0.3)])
SEEN = np.array([[True, False, True, True, True, True]])
marginal = jax.jit(latent.marginal, static_argnames="best")
hiding, bound, likeliest = map(jax.jit, (latent.log_softmax, latent.variational_bound, hard.likeliest_location))


def one_place(key: jax.Array) -> jax.Array:
    return jnp.argmax(hard.sample_location(jnp.asarray(SCORES, jnp.float32)[None], SEEN, key).weights[0])


def places(key: jax.Array) -> jax.Array:
    many = jnp.broadcast_to(jnp.asarray(SCORES, jnp.float32), (DRAWS, 1, 6))
    return jnp.argmax(hard.sample_location(many, SEEN, key).weights[:, 0], -1)


def one_by_one(transform, impl: str) -> jax.Array:
    return transform(jax.random.split(jax.random.key(7, impl=impl), DRAWS))


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: places(jax.random.key(7)),
        lambda: jax.jit(places)(jax.random.key(7)),
        lambda: jax.jit(places)(jax.random.key(7, impl=KEYS)),
        lambda: one_by_one(jax.jit(jax.vmap(one_place)), "threefry2x32"),
        lambda: one_by_one(jax.jit(jax.vmap(one_place)), KEYS),
        lambda: one_by_one(jax.jit(partial(jax.lax.map, one_place)), KEYS),
    ],
    ids=["eager", "jit", "jit, training's keys", "vmap", "vmap, training's keys", "map, training's keys"],
)
def test_locations_are_drawn_as_softmax_says(drawn):
    counts, wanted = np.bincount(np.asarray(drawn()), minlength=6), DRAWS * CHANCES
    assert counts[1] == counts[4] == 0
    allowed = CHANCES > 0
    assert np.sum((counts - wanted)[allowed] ** 2 / wanted[allowed]) < chi2.ppf(0.999, df=3)


def test_each_row_draws_for_itself():
    drawn = jax.jit(hard.sample_location)(np.zeros((DRAWS // 2, 2, 2), np.float32), None, jax.random.key(1)).weights
    together = np.bincount(np.asarray(np.asarray(drawn)[..., 0] @ [1, 2], int), minlength=4)
    assert chi2.sf(np.sum((together - DRAWS // 2 / 4) ** 2 / (DRAWS // 2 / 4)), df=3) > 1e-3


def random_scores() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, T, S)).astype(np.float32)


@pytest.mark.parametrize("choose", [partial(hard.sample_location, key=jax.random.key(2)), hard.likeliest_location])
def test_the_choice_reports_its_probability_and_entropy(choose):
    scores = random_scores()
    weights, log_prob, uncertainty = jax.device_get(jax.jit(choose)(np.where(MASK, scores, np.float32(NAN)), MASK))
    assert set(np.unique(weights).tolist()) == {0, 1}
    np.testing.assert_array_equal(weights.sum(-1), [[1, 1, 0]] * 2)
    assert not np.any(weights[:, ~MASK])
    expected = log_softmax(np.where(MASK, scores, -INF)[:, :2].astype(np.float64), -1)
    np.testing.assert_allclose(log_prob[:, :2], expected[weights[:, :2] == 1].reshape(2, 2), rtol=1e-5)
    np.testing.assert_allclose(uncertainty[:, :2], entropy(np.exp(expected), axis=-1), rtol=1e-5)
    assert not np.any(log_prob[:, 2]) and not np.any(uncertainty[:, 2])


@pytest.mark.parametrize("hidden", ["mask", "-inf"])
def test_gradients_flow_through_probability_and_entropy_alone(hidden, float64):
    scores = random_scores().astype(np.float64)
    mask = MASK if hidden == "mask" else None
    scores = scores if hidden == "mask" else np.where(MASK, scores, -INF)

    @jax.jit
    def choose(scores: jax.Array) -> tuple[jax.Array, ...]:
        return hard.sample_location(scores, mask, jax.random.key(2, impl=KEYS))

    gradients = jax.jit(jax.jacrev(lambda scores: [jnp.sum(leaf) for leaf in choose(scores)]))(scores)
    assert not np.any(gradients[0])
    chance = np.asarray(jax.jit(softmax)(scores, MASK))
    np.testing.assert_allclose(gradients[1], np.asarray(choose(scores).weights) - chance, atol=1e-12)
    surprise = np.log(np.where(chance > 0, chance, 1))
    surprise -= np.sum(chance * surprise, -1, keepdims=True)
    np.testing.assert_allclose(gradients[2], -chance * surprise, atol=1e-12)


def test_the_likeliest_is_the_first_of_equals():
    scores = np.array([[1.0, 5.0, 5.0], [9.0, 0.0, 3.0], [-INF, -INF, -INF]])
    mask = np.array([[True, True, True], [False, True, True], [True, True, True]])
    np.testing.assert_array_equal(likeliest(scores, mask).weights, [[0, 1, 0], [0, 0, 1], [0, 0, 0]])


def test_half_precision_stays_and_its_probabilities_are_wide():
    table = jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
    for function, count in ((latent.log_softmax, 1), (latent.marginal, 2), (latent.variational_bound, 3)):
        assert jax.eval_shape(function, *[table] * count).dtype == jnp.float32
    sample = partial(hard.sample_location, mask=None, key=jax.random.PRNGKey(0))
    weights, log_prob, uncertainty = jax.eval_shape(sample, table)
    assert weights.dtype == jnp.bfloat16 and log_prob.dtype == uncertainty.dtype == jnp.float32


def test_score_function_loss_by_hand():
    log_prob, reward = np.array([-0.5, -1.0, -2.0, NAN]), np.array([3.0, -1.0, 2.0, NAN])
    arguments = log_prob, reward, np.array([1.0])
    compute = jax.jit(jax.value_and_grad(partial(hard.score_function_loss, weight=0.3), (0, 1, 2)))
    loss, gradients = compute(*arguments, np.array([True, True, True, False]))
    # Advantages 2, -2, 1 times -0.5, -1, -2 are -1, 2, -2.
    np.testing.assert_allclose(loss, 0.3 * 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(gradients[0], -0.3 * np.array([2, -2, 1, 0]) / 3, rtol=1e-6)
    assert not np.any(gradients[1]) and not np.any(gradients[2])
    assert compute(*arguments, np.zeros(4, bool))[0] == 0


def test_entropy_loss_by_hand():
    compute = jax.jit(jax.value_and_grad(partial(hard.entropy_loss, weight=0.2)))
    loss, gradient = compute(np.array([1.0, 4.0, NAN]), np.array([True, True, False]))
    np.testing.assert_allclose(loss, -0.5, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.1, -0.1, 0], rtol=1e-6)


def test_reward_to_go_by_hand():
    likelihoods = np.array([[-1.0, -2.0, -4.0], [-1.0, -2.0, NAN]])
    mask = np.array([[True, True, True], [True, True, False]])
    np.testing.assert_array_equal(jax.jit(hard.reward_to_go)(likelihoods, mask), [[-7, -6, -4], [-3, -2, 0]])


def test_leave_one_out_by_hand():
    found = jax.jit(hard.leave_one_out)(np.array([[1.0, 0.0], [2.0, 3.0], [6.0, 9.0]]))
    np.testing.assert_allclose(found, [[4, 6], [3.5, 4.5], [1.5, 1.5]])
    with pytest.raises(ValueError, match="needs at least 2; got 1"):
        hard.leave_one_out(jnp.zeros((1, 3)))


def test_the_moving_average_is_of_earlier_batches():
    average = jax.jit(hard.moving_average, static_argnames="decay")
    baseline, state = average(np.array([-2.0, -4.0]), np.zeros(()))
    np.testing.assert_allclose((*baseline, state), [0, 0, -0.3], rtol=1e-6)
    baseline, state = average(np.array([-1.0, NAN]), state, np.array([True, False]), decay=0.5)
    np.testing.assert_allclose((*baseline, state), [-0.3, -0.3, -0.65], rtol=1e-6)
    assert average(np.array([NAN]), state, np.array([False]))[1] == state


def test_learned_baseline_loss_by_hand():
    arguments = np.array([1.0, 5.0, NAN]), np.array([4.0, 4.0, NAN]), np.array([True, True, False])
    loss, gradients = jax.jit(jax.value_and_grad(hard.learned_baseline_loss, (0, 1)))(*arguments)
    np.testing.assert_allclose(loss, 5.0)
    np.testing.assert_allclose(gradients[0], [-3, 1, 0])
    assert not np.any(gradients[1])


def test_the_coin_is_tossed_for_the_batch_or_for_each_example():
    keys = jax.random.split(jax.random.key(0), 4001)
    for per, within in (("batch", {0, 7}), ("example", set(range(8)))):
        heads = np.asarray(jax.jit(jax.vmap(partial(hard.coin, rows=7, probability=0.3, per=per)))(keys)).sum(-1)
        assert set(heads.tolist()) <= within and abs(heads.mean() / 7 - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4001)
    assert len(set(heads.tolist()) - {0, 7}) > 1
    assert not hard.coin(keys[0], 7, 0).any() and hard.coin(keys[0], 7, 1, "example").all()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"per": "row"}, "per is batch or example; got 'row'"), ({"probability": 1.5}, r"\[0, 1\]; got 1.5")],
)
def test_the_coin_refuses_what_it_does_not_know(options, said):
    with pytest.raises(ValueError, match=said):
        hard.coin(jax.random.key(0), 3, **options)


@pytest.mark.parametrize("hidden", ["mask", "-inf"])
def test_log_softmax_hides_and_is_even_where_there_is_nothing(hidden, float64):
    scores = np.where(MASK, random_scores().astype(np.float64) - 1e5, NAN if hidden == "mask" else -INF)
    mask = MASK if hidden == "mask" else None
    found, pull_back = jax.vjp(jax.jit(lambda scores: latent.log_softmax(scores, mask)), scores)
    expected = log_softmax(np.where(MASK, scores, -INF)[:, :2], -1)
    np.testing.assert_allclose(np.asarray(found)[:, :2], expected, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(found)[:, 2], -np.log(S))
    cotangents = np.random.default_rng(1).normal(size=scores.shape) * MASK
    expected = cotangents - np.asarray(jax.jit(softmax)(scores, MASK)) * cotangents.sum(-1, keepdims=True)
    np.testing.assert_allclose(pull_back(cotangents)[0], expected, atol=1e-12)


# Locations are hidden from the weights, from q, or from both; the last row is whole.
TABLE = np.random.default_rng(3).normal(size=(3, T, S))
ALLOWED = np.array([[True, False, True, True, True], [False, False, True, False, False], [True] * S])


def tables() -> tuple[np.ndarray, ...]:
    """Scores of q, scores of the weights and log-likelihoods, [T, S]; what is hidden is not a number."""
    inference, scores, likelihoods = TABLE
    return inference, scores, np.where(ALLOWED, -np.exp(likelihoods), NAN)


def exact_marginal(scores: jax.Array, likelihoods: jax.Array) -> jax.Array:
    return latent.marginal(latent.log_softmax(scores, ALLOWED), likelihoods)


def test_the_marginal_and_its_gradient_equal_brute_force(float64):
    _, scores, likelihoods = tables()
    found, pull_back = jax.vjp(jax.jit(exact_marginal), scores, likelihoods)
    chance = np.where(ALLOWED, np.exp(TABLE[1]), 0)
    chance /= chance.sum(-1, keepdims=True)
    given = np.where(ALLOWED, np.exp(np.nan_to_num(likelihoods)), 0)
    # All S^T paths: the likelihood of the words together is the product of the marginals.
    paths = product(range(S), repeat=T)
    together = sum(np.prod([chance[t, s] * given[t, s] for t, s in enumerate(path)]) for path in paths)
    np.testing.assert_allclose(np.sum(found), np.log(together), rtol=1e-10)
    posterior = chance * given / (chance * given).sum(-1, keepdims=True)
    by_scores, by_likelihoods = pull_back(np.ones(T))
    np.testing.assert_allclose(by_scores, posterior - chance, atol=1e-10)
    np.testing.assert_allclose(by_likelihoods, posterior, atol=1e-10)


def test_k_best_by_hand():
    log_weights, given = np.log([[0.1, 0.4, 0.2, 0.3]]), np.log([[0.9, 0.5, 0.9, 0.1]])
    kept, where = jax.jit(latent.k_best, static_argnums=1)(log_weights, 2)
    np.testing.assert_array_equal(where, [[1, 3]])
    np.testing.assert_allclose(np.exp(kept), [[4 / 7, 3 / 7]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(marginal(log_weights, given, best=2)), [2.3 / 7], rtol=1e-5)
    with pytest.raises(ValueError, match="at least 1 location; got 0"):
        latent.marginal(log_weights, log_weights, best=0)


def test_the_k_best_are_biased_and_leave_the_others_without_gradient(float64):
    _, scores, likelihoods = tables()
    log_weights = hiding(scores, ALLOWED)
    exact = np.asarray(marginal(log_weights, likelihoods))
    by_count = {count: marginal(log_weights, likelihoods, best=count) for count in (2, S, 99)}
    assert abs(np.asarray(by_count[2]) - exact)[0] > 0.01
    for whole in (S, 99):
        np.testing.assert_allclose(by_count[whole], exact, rtol=1e-12)
    two = lambda scores: latent.marginal(latent.log_softmax(scores, ALLOWED), likelihoods, 2).sum()  # noqa: E731
    gradient = np.asarray(jax.jit(jax.grad(two))(scores))
    moved = np.flatnonzero(np.abs(gradient[2]) > 1e-15)  # two halves cancel, but for the last bit in another order
    np.testing.assert_array_equal(np.sort(np.argsort(TABLE[1, 2])[-2:]), moved)
    assert np.all(np.isfinite(gradient)) and np.abs(gradient[2][moved]).min() > 1e-3


def test_the_bound_by_brute_force_and_its_gradient(float64):
    inference, scores, likelihoods = tables()

    @jax.jit
    def of_scores(inference: jax.Array, scores: jax.Array) -> jax.Array:
        return latent.variational_bound(*(latent.log_softmax(e, ALLOWED) for e in (inference, scores)), likelihoods)

    q, chance = (np.where(ALLOWED, np.exp(e), 0) for e in TABLE[:2])
    q, chance = q / q.sum(-1, keepdims=True), chance / chance.sum(-1, keepdims=True)
    term = [
        [q[t, s] * (likelihoods[t, s] + np.log(chance[t, s] / q[t, s])) if q[t, s] else 0 for s in range(S)]
        for t in range(T)
    ]
    np.testing.assert_allclose(of_scores(inference, scores), np.sum(term, -1), rtol=1e-10)
    check_grads(of_scores, (inference, scores), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_the_bound_is_below_the_marginal_and_meets_it_at_the_posterior(float64):
    inference, scores, likelihoods = tables()
    log_weights = np.asarray(hiding(scores, ALLOWED))
    exact = np.asarray(marginal(log_weights, likelihoods))
    for log_q in (hiding(inference, ALLOWED), log_weights):
        gap = exact - np.asarray(bound(log_q, log_weights, likelihoods))
        # A row with one location to look at leaves nothing to be wrong about.
        assert gap[0] > 0.01 and abs(gap[1]) < 1e-12 and gap[2] > 0.01
    posterior = hiding(log_weights + likelihoods, ALLOWED)
    np.testing.assert_allclose(bound(posterior, log_weights, likelihoods), exact, rtol=1e-12)


def test_kl_divergence_by_hand():
    log_q, log_p = np.array([[np.log(0.5), np.log(0.5), -INF]]), np.log([[0.25, 0.5, 0.25]])
    there, back = jax.jit(lambda q, p: (latent.kl_divergence(q, p), latent.kl_divergence(p, q)))(log_q, log_p)
    np.testing.assert_allclose((*there, *back), [0.5 * np.log(2), INF], rtol=1e-6)


def test_soft_hard_and_marginal_coincide_where_the_alignment_is_one_hot(float64):
    _, _, likelihoods = tables()
    scores = np.where(np.eye(T, S, 2) > 0, 0.0, -INF)
    log_weights = hiding(scores)
    drawn = jax.jit(hard.sample_location)(scores, None, jax.random.key(0))
    np.testing.assert_array_equal(drawn.weights, jax.jit(softmax)(scores))
    np.testing.assert_array_equal(drawn.weights, likeliest(scores).weights)
    assert not np.any(drawn.log_prob) and not np.any(drawn.entropy)
    seen = np.diagonal(likelihoods, 2)
    np.testing.assert_allclose(marginal(log_weights, likelihoods), seen)
    np.testing.assert_allclose(bound(log_weights, log_weights, likelihoods), seen)

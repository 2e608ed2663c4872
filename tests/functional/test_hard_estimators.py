"""The estimators of a sampled location's gradient against the exact one, by enumeration of all that may be sampled.

Each must agree with the truth within its confidence bound, at every parameter; what is wrong or biased must not.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import hard, latent
from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.relaxed import gumbel_softmax, straight_through
from attention_zoo.training.step import KEYS
from tests.functional import chain

K = 4  # samples an estimate
ESTIMATES = 5003
BOUND = 4.5  # standard errors; there are about 150 parameters
Drawn = dict[str, jax.Array]


def draw(p: chain.Parameters, key: jax.Array) -> Drawn:
    """K sampled chains, each leaf [K, T], and beside them soft attention's and the most probable one."""

    keys = jax.random.split(key, chain.T)
    sampled = chain.run(p, lambda t, scores: hard.sample_location(scores, chain.MASK, keys[t]), K)
    greedy = chain.run(p, lambda t, scores: hard.likeliest_location(scores, chain.MASK))
    return sampled | {"soft": chain.run(p, chain.expected)["likelihood"], "greedy": greedy["likelihood"]}


def estimate(of: Drawn, baseline: jax.Array | float = 0.0, reward: jax.Array | None = None, weight=1.0) -> jax.Array:
    """The loss whose gradient is the estimate: REINFORCE beside the likelihood of what was sampled."""
    reward = hard.reward_to_go(of["likelihood"]) if reward is None else reward
    return hard.score_function_loss(of["log_prob"], reward, baseline, weight=weight) - of["likelihood"].mean()


def whole(of: Drawn) -> jax.Array:
    """All of a chain's reward at each of its steps."""
    return jnp.broadcast_to(of["likelihood"].sum(-1, keepdims=True), of["likelihood"].shape)


def over_samples(likelihoods: jax.Array) -> jax.Array:
    return jnp.broadcast_to(hard.reward_to_go(likelihoods), (K, chain.T))


def moving_average(of: Drawn) -> jax.Array:
    """The first half of the samples is an earlier batch, the second half the present one."""
    before, now = jax.tree.map(lambda leaf: leaf[: K // 2], of), jax.tree.map(lambda leaf: leaf[K // 2 :], of)
    _, state = hard.moving_average(hard.reward_to_go(before["likelihood"]), jnp.zeros(()), decay=0.3)
    baseline, _ = hard.moving_average(hard.reward_to_go(now["likelihood"]), state)
    return estimate(now, baseline)


def settled(of: Drawn) -> jax.Array:
    """A moving average that has arrived at the mean reward, which is -8.8."""
    return estimate(of, hard.moving_average(hard.reward_to_go(of["likelihood"]), jnp.asarray(-8.8))[0])


def learned(of: Drawn) -> jax.Array:
    fit = hard.learned_baseline_loss(of["value"], hard.reward_to_go(of["likelihood"]))
    return estimate(of, of["value"]) + fit


def leave_one_out(of: Drawn) -> jax.Array:
    return estimate(of, hard.leave_one_out(hard.reward_to_go(of["likelihood"])))


UNBIASED = {
    "none": estimate,
    "none, whole reward": lambda of: estimate(of, reward=whole(of)),
    "moving average": moving_average,
    "settled moving average": settled,
    "learned": learned,
    "soft": lambda of: estimate(of, over_samples(of["soft"])),
    "self-critical": lambda of: estimate(of, over_samples(of["greedy"])),
    "leave-one-out": leave_one_out,
    "leave-one-out, whole reward": lambda of: estimate(of, hard.leave_one_out(whole(of)), whole(of)),
}


def own_mean(of: Drawn) -> jax.Array:
    return estimate(of, jnp.broadcast_to(whole(of).mean(0, keepdims=True), (K, chain.T)), whole(of))


def tossed(of: Drawn) -> jax.Array:
    """Xu's coin: the expected context in some rows, which choose nothing there."""
    heads = jnp.broadcast_to(of["coin"][:, None], (K, chain.T))
    soft = jnp.broadcast_to(of["soft"], heads.shape)
    log_prob, likelihood = jnp.where(heads, 0, of["log_prob"]), jnp.where(heads, soft, of["likelihood"])
    return estimate(of | {"log_prob": log_prob, "likelihood": likelihood})


WRONG = {
    "without the likelihood's own gradient": lambda of: estimate(of) + of["likelihood"].mean(),
    "without the score function": lambda of: estimate(of, weight=0.0),
    "a baseline that knows its sample": own_mean,
    "a reward of the present word alone": lambda of: estimate(of, reward=of["likelihood"]),
    "entropy bonus": lambda of: leave_one_out(of) + hard.entropy_loss(of["entropy"], weight=0.5),
    "coin": tossed,
}
LOSSES = UNBIASED | WRONG


def gradients(key: jax.Array) -> dict[str, jax.Array]:
    """Every loss's gradient by all parameters [P], from the same samples."""
    sampling, tossing = jax.random.split(key)
    of, pull_back = jax.vjp(lambda p: draw(p, sampling), chain.parameters())
    coin = {"coin": hard.coin(tossing, K, per="example")}
    by_drawn = {name: jax.grad(lambda of, loss=loss: loss(of | coin))(of) for name, loss in LOSSES.items()}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *by_drawn.values())
    pulled = jax.vmap(lambda cotangents: chain.flat(pull_back(cotangents)[0]))(stacked)
    return dict(zip(by_drawn, pulled, strict=True))


def vmapped(seed: int, count: int, impl: str) -> dict[str, np.ndarray]:
    return jax.jit(jax.vmap(gradients))(jax.random.split(jax.random.key(seed, impl=impl), count))


def trained(seed: int, count: int, impl: str) -> dict[str, np.ndarray]:
    """One after the other, with keys that are split as a run splits them."""

    def step(key: jax.Array, _: None) -> tuple[jax.Array, dict[str, jax.Array]]:
        key, drawn = jax.random.split(key)
        return key, gradients(drawn)

    return jax.jit(lambda key: jax.lax.scan(step, key, length=count)[1])(jax.random.key(seed, impl=impl))


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        return jax.device_get(chain.exact(chain.parameters()))


@pytest.fixture(scope="module")
def found() -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        return jax.device_get(vmapped(0, ESTIMATES, "threefry2x32"))


@pytest.fixture(scope="module")
def found_in_training() -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        return jax.device_get(trained(0, ESTIMATES, KEYS))


def aim(name: str, truth: dict[str, np.ndarray]) -> np.ndarray:
    """The gradient that an unbiased estimator estimates; a learned baseline's fit has one of its own beside it."""
    return truth["bound"] + (truth["fit"] if name == "learned" else 0)


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_at_every_parameter(name, found, truth):
    within_bound(found[name], aim(name, truth))


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_with_the_keys_of_a_training_run(name, found_in_training, truth):
    within_bound(found_in_training[name], aim(name, truth))


def within_bound(estimates: np.ndarray, truth: np.ndarray) -> None:
    assert np.linalg.norm(chain.standard_error(estimates)) < 0.05 * np.linalg.norm(truth)
    assert chain.deviation(estimates, truth) < BOUND


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_or_biased_fails_the_same_check(name, found, truth):
    assert chain.deviation(found[name], truth["bound"]) > 2 * BOUND


def test_what_chooses_has_a_gradient_through_the_score_function_alone(found, truth):
    exact, through_likelihood = (chain.by_name(truth[part])["query"] for part in ("bound", "pathwise"))
    assert np.linalg.norm(exact) > 0.5 and not np.any(through_likelihood)
    for name in UNBIASED:
        mean = chain.by_name(found[name].mean(0))["query"]
        assert np.linalg.norm(mean - exact) < 0.2 * np.linalg.norm(exact)


def test_a_baseline_that_knows_its_sample_shrinks_the_score_function(found, truth):
    shrunk = truth["pathwise"] + (1 - 1 / K) * truth["score"]
    assert chain.deviation(found["a baseline that knows its sample"], shrunk) < BOUND


def test_the_entropy_bonus_is_biased_towards_even_attention(found, truth):
    biased = found["entropy bonus"]
    assert chain.deviation(biased, truth["bound"] - 0.5 * truth["own_entropy"]) < BOUND
    # A step down the loss adds to the entropy, also to what later choices have of it.
    assert (biased.mean(0) - truth["bound"]) @ truth["entropy"] < 0


def test_the_coin_is_biased_towards_soft_attention(found, truth):
    assert chain.deviation(found["coin"], (truth["bound"] + truth["soft"]) / 2) < BOUND


def test_baselines_differ_in_variance(found):
    spread = {name: chain.variance(found[name]) for name in UNBIASED}
    for better in ("leave-one-out", "soft", "self-critical"):
        assert spread[better] < 0.6 * spread["settled moving average"]
    assert spread["settled moving average"] < 0.3 * spread["none"]
    assert spread["none"] < 0.8 * spread["none, whole reward"]
    assert spread["leave-one-out"] < 0.9 * spread["leave-one-out, whole reward"]


def test_the_same_keys_give_the_same_estimates_eagerly_and_compiled(float64):
    def one(key: jax.Array) -> jax.Array:
        return leave_one_out(draw(chain.parameters(), key))

    keys = jax.random.split(jax.random.key(3), 2)
    compiled = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    np.testing.assert_allclose(one(keys[0]), compiled[0], rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(keys), compiled, rtol=1e-12)


def relaxed(align, temperature, key: jax.Array) -> jax.Array:
    """The gradient [P] of one relaxed chain's loss, which needs no score function."""
    keys = jax.random.split(key, chain.T)

    def look(t: int, scores: jax.Array) -> Alignment:
        nothing = jnp.zeros(1)
        return Alignment(align(scores, chain.MASK, keys[t], temperature=temperature), nothing, nothing)

    return chain.flat(jax.grad(lambda p: -chain.run(p, look)["likelihood"].mean())(chain.parameters()))


@pytest.mark.parametrize("align", [gumbel_softmax, straight_through])
def test_relaxed_samples_trade_bias_for_variance(align, truth, found, float64):
    many = jax.jit(lambda theta, keys: jax.vmap(partial(relaxed, align, theta))(keys))
    keys = jax.random.split(jax.random.key(1), ESTIMATES)
    cold, warm = (np.asarray(many(jnp.asarray(theta), keys)) for theta in (0.1, 1.0))
    for gradients in (cold, warm):
        assert chain.deviation(gradients, truth["bound"]) > 2 * BOUND
    near, far = (np.linalg.norm(gradients.mean(0) - truth["bound"]) for gradients in (cold, warm))
    assert near < 0.7 * far
    # One relaxed sample beside a mean of K exact ones.
    assert chain.variance(warm) < 0.2 * chain.variance(cold) < 0.2 * K * chain.variance(found["none"])


def variational(p: dict[str, jax.Array], key: jax.Array, baseline: float = -2.0, prior: bool = False) -> jax.Array:
    """The sampled loss of locations that nothing later depends on; the last step is padding."""
    log_q, log_weights = (latent.log_softmax(p[name], chain.MASK) for name in ("inference", "prior"))
    drawn = hard.sample_location(p["prior" if prior else "inference"], chain.MASK, key)
    likelihood = jnp.sum(drawn.weights * jax.nn.log_sigmoid(p["likelihood"]), -1)
    return hard.sampled_variational_loss(log_q, log_weights, likelihood, drawn.log_prob, baseline, COUNTED)


COUNTED = np.array([True, True, False])


def test_the_sampled_variational_loss_is_unbiased_of_the_enumerated_one(float64):
    random = np.random.default_rng(2)
    p = {name: jnp.asarray(random.normal(size=(chain.T, chain.S))) for name in ("inference", "prior", "likelihood")}

    def enumerated(p: dict[str, jax.Array]) -> jax.Array:
        log_q, log_weights = (latent.log_softmax(p[name], chain.MASK) for name in ("inference", "prior"))
        bound = latent.variational_bound(log_q, log_weights, jax.nn.log_sigmoid(p["likelihood"]))
        return -jnp.mean(bound, where=COUNTED)

    truth = np.asarray(jax.jit(lambda p: chain.flat(jax.grad(enumerated)(p)))(p))
    keys = jax.random.split(jax.random.key(4), 20011)
    cases = [({}, False), ({"baseline": 0.0}, False), ({"prior": True}, True)]

    def estimate_each(key: jax.Array) -> list[jax.Array]:
        return [chain.flat(jax.grad(partial(variational, **options))(p, key)) for options, _ in cases]

    for estimates, (_, wrong) in zip(jax.device_get(jax.jit(jax.vmap(estimate_each))(keys)), cases, strict=True):
        assert np.linalg.norm(chain.standard_error(estimates)) < 0.05 * np.linalg.norm(truth)
        assert (chain.deviation(estimates, truth) > 2 * BOUND) if wrong else (chain.deviation(estimates, truth) < BOUND)

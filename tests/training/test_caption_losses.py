"""The losses of captioners: by hand, by enumeration of all that may be looked at, and what padding must not change."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from attention_zoo.functional import hard
from attention_zoo.models import caption_attention as models
from attention_zoo.modules.vision import ConvEncoder
from attention_zoo.training.caption_losses import BASELINES, Sampling, likelihood, reinforce, variational
from attention_zoo.training.objectives import shifted
from attention_zoo.training.step import KEYS
from tests.functional.chain import deviation
from tests.models.captioners import (
    B,
    N,
    S,
    T,
    by_hand,
    captioner,
    close,
    inputs,
    is_zero,
    likeliest,
    log_softmax,
    parameters,
    soft,
)
from tests.quick import quick

IMAGES, TOKENS = inputs()
LENGTHS = np.array([T, 4, 1], np.int32)
REAL = np.arange(T) < LENGTHS[:, None]
BATCH = {"images": IMAGES, "target": np.where(REAL, TOKENS, 0), "target_lengths": LENGTHS}
EVERYWHERE = np.ones((B, S), bool)
KEY, NOTHING = jax.random.key(3), jnp.zeros(())


@cache
def drawn(kind="soft", sharpness=1.0, **fields):
    return parameters(captioner(kind, **fields), IMAGES, TOKENS, sharpness=sharpness)


def log_likelihoods(params, choose):
    written = by_hand(params, IMAGES, np.asarray(shifted(BATCH["target"])), choose)
    return np.take_along_axis(log_softmax(written.logits), BATCH["target"][..., None], -1)[..., 0], written


def latent(params):
    """By force: `p(y_t | s)` and the weights of each location."""
    _, written = log_likelihoods(params, soft(EVERYWHERE))
    wanted = np.broadcast_to(BATCH["target"][:, :, None, None], (B, T, S, 1))
    return np.exp(np.take_along_axis(log_softmax(written.everywhere), wanted, -1)[..., 0]), written.weights


@cache
def marginal_loss():
    return quick(likelihood(captioner("marginal")))


@pytest.mark.parametrize(("reduction", "count"), [("sum", 1), ("mean", S)])
def test_likelihoods_and_the_penalty_by_hand(reduction, count):
    params = drawn()
    likelihoods, written = log_likelihoods(params, soft(EVERYWHERE))
    objective = likelihood(captioner(), doubly_stochastic=0.7, reduction=reduction)
    total, metrics = quick(objective)(params, BATCH, KEY)
    missing = [np.square(1 - written.weights[row, :size].sum(0)).sum() / count for row, size in enumerate(LENGTHS)]
    close(metrics["loss"], -likelihoods[REAL].mean(), rtol=1e-5)
    close(metrics["token_accuracy"], (written.logits.argmax(-1) == TOKENS)[REAL].mean(), rtol=1e-5)
    close(metrics["doubly_stochastic"], np.mean(missing), rtol=1e-4)
    close(total, metrics["loss"] + 0.7 * np.mean(missing), rtol=1e-4)
    chances, weights = latent(params)
    marginal = np.log(np.sum(weights * chances, -1))
    close(marginal_loss()(params, BATCH, KEY)[0], -marginal[REAL].mean(), rtol=1e-5)


def test_the_bound_by_hand_lies_below_the_marginal():
    params = drawn("variational")
    loss, metrics = quick(variational(captioner("variational")))(params, BATCH, KEY)
    (chances, weights), before = latent(params), log_likelihoods(params, soft(EVERYWHERE))[1].before
    query = np.concatenate([before, params["embed"]["embedding"][BATCH["target"]]], -1)
    layer = params["posterior"]
    query = query @ layer["query"]["kernel"]
    keys = IMAGES.reshape(B, 1, S, -1) @ layer["key"]["kernel"] + layer["key"]["bias"]
    log_q = log_softmax(np.tanh(query[:, :, None] + keys) @ layer["energy"])
    divergence = np.sum(np.exp(log_q) * (log_q - np.log(weights)), -1)
    bound = np.sum(np.exp(log_q) * np.log(chances), -1) - divergence
    close((loss, metrics["loss"]), (-bound[REAL].mean(),) * 2, rtol=1e-5)
    close(metrics["divergence"], divergence[REAL].mean(), rtol=1e-5)
    assert loss > -np.log(np.sum(weights * chances, -1))[REAL].mean()


def test_a_coin_of_one_gives_softs_loss_and_gradient(float64):
    """Xu's coin: where the expected context always stands in, nothing of the estimator is left."""
    params = jax.tree.map(np.float64, drawn())
    always = reinforce(captioner("hard"), Sampling(2, "moving_average", coin=1.0, entropy=0.1))
    found = quick(jax.value_and_grad(always, has_aux=True))(params, BATCH, KEY, jnp.asarray(-1.3))
    expected = quick(jax.value_and_grad(likelihood(captioner()), has_aux=True))(params, BATCH, KEY)
    close((found[0][0], found[1]), (expected[0][0], expected[1]), rtol=1e-11, atol=1e-13)
    metrics, carry = found[0][1]
    assert carry == -1.3 and metrics["entropy"] == metrics["advantage"] == 0


@pytest.mark.parametrize("per", ["batch", "example"])
def test_the_moving_average_is_of_what_was_sampled(per):
    """Of sharp scores every sample is the likeliest location, so that the rewards are known."""
    params, state = drawn(sharpness=1e4), -2.3
    objective = quick(reinforce(captioner("hard"), Sampling(2, "moving_average", 0.5, per)))
    likelihoods = np.where(REAL, log_likelihoods(params, likeliest(EVERYWHERE))[0], 0)
    rewards = np.cumsum(likelihoods[:, ::-1], -1)[:, ::-1]
    seen = set()
    for seed in range(5):
        key = jax.random.key(seed)
        tossed = np.asarray(hard.coin(jax.random.split(key, 3)[0], B, 0.5, per))
        _, (metrics, carry) = objective(params, BATCH, key, jnp.asarray(state))
        counted = REAL & ~tossed[:, None]
        mean = rewards[counted].mean() if counted.any() else state
        close(carry, 0.9 * state + 0.1 * mean, rtol=1e-4)
        squares = np.square(rewards - state)[counted]
        close(metrics["advantage"], np.sqrt(squares.mean()) if counted.any() else 0.0, rtol=1e-4)
        close(metrics["loss"], -likelihoods[REAL].mean(), rtol=1e-4)
        seen.add(counted.any(1).sum())
    assert seen == ({0, B} if per == "batch" else seen) and len(seen) > 1


@pytest.mark.parametrize("baseline", ["none", "soft", "self_critical", "leave_one_out"])
def test_the_baselines_by_hand(baseline, monkeypatch):
    """Where the samples are the likeliest locations: of one picture alike, of others different."""
    monkeypatch.setattr(models, "sample_location", lambda scores, mask, key: hard.likeliest_location(scores, mask))

    def rewards(choose):
        likelihoods = np.where(REAL, log_likelihoods(drawn(), choose)[0], 0)
        return np.cumsum(likelihoods[:, ::-1], -1)[:, ::-1]

    own = rewards(likeliest(EVERYWHERE))
    advantage = own - {"none": 0, "soft": rewards(soft(EVERYWHERE))}.get(baseline, own)
    found = quick(reinforce(captioner("hard"), Sampling(2, baseline, 0.0)))(drawn(), BATCH, KEY, NOTHING)[1][0]
    close(found["advantage"], np.sqrt(np.square(advantage[REAL]).mean()), rtol=1e-4, atol=1e-5)
    assert np.ptp(own[:, 0]) > 1 and np.abs(own - rewards(soft(EVERYWHERE))).max() > 0.1


def test_the_entropy_bonus_is_the_mean_entropy_of_real_words():
    plain, with_bonus = (
        quick(reinforce(captioner("hard"), Sampling(2, coin=0.0, entropy=weight)))(drawn(), BATCH, KEY, NOTHING)
        for weight in (0.0, 0.3)
    )
    entropy = with_bonus[1][0]["entropy"]
    assert entropy > 0.1
    close(with_bonus[0], plain[0] - 0.3 * entropy, rtol=1e-5)


def test_what_padding_holds_changes_nothing():
    """Nor does a row of filler, whatever its picture is."""
    models = {kind: captioner(kind, baseline=kind == "hard") for kind in ("marginal", "hard", "variational")}
    params = {kind: parameters(model, IMAGES, TOKENS) for kind, model in models.items()}
    sampled = variational(models["variational"], 2)  # whose metrics are the exact ones
    estimate = reinforce(models["hard"], Sampling(2, "learned", coin=0.5, per="example", entropy=0.1))

    def total(params, images, target):
        batch = {**BATCH, "images": images, "target": target, "target_lengths": LENGTHS * np.array([1, 1, 0])}
        found = likelihood(models["marginal"])(params["marginal"], batch, KEY)[0]
        loss, metrics = sampled(params["variational"], batch, KEY)
        return found + loss + metrics["loss"] + estimate(params["hard"], batch, KEY, NOTHING)[0]

    gradient = quick(jax.value_and_grad(total, (0, 1)))
    real = REAL & (np.arange(B) < 2)[:, None]
    loss, found = gradient(params, IMAGES, np.where(real, TOKENS, 0))
    others = IMAGES * np.array([1, 1, -3], np.float32).reshape(B, 1, 1, 1)
    close(gradient(params, others, np.where(real, TOKENS, N - 1)), (loss, found), rtol=1e-5, atol=1e-6)
    assert is_zero(found[1][2]) and np.abs(found[1][:2]).min() > 0


OTHERS = [(kind, "") for kind in ("soft", "gumbel_softmax", "straight_through", "marginal", "variational")]


@pytest.mark.parametrize(("kind", "baseline"), [*OTHERS, ("hard", "learned")])
def test_every_parameter_learns(kind, baseline):
    """What decides where to look too, the encoder and a learned baseline."""
    encoder = ConvEncoder((3, 4), (1, 1)) if kind == "hard" else None  # what goes back to annotations is alike in all
    model = captioner(kind, encoder=encoder, baseline=baseline == "learned")
    params = parameters(model, IMAGES, TOKENS)
    if kind == "hard":
        objective = partial(reinforce(model, Sampling(2, baseline, coin=0.0)), carry=NOTHING)
    else:
        objective = variational(model) if kind == "variational" else likelihood(model)
    gradient = quick(jax.grad(objective, has_aux=True))(params, BATCH, KEY)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


# So small that all paths can be enumerated: two words at three locations, of two pictures with captions of 2 and 1.
TINY = {"vocabulary": 3, "embedding": 2, "units": 2, "attention_units": 2}
FEW, WORDS = 3, 2
SMALL = inputs(2, WORDS, 3, (1, FEW, 2))
SMALL_BATCH = {"images": np.float64(SMALL[0]), "target": SMALL[1], "target_lengths": np.array([2, 1])}
PATHS = np.eye(FEW)[list(product(range(FEW), repeat=WORDS))]  # [9, T, S]
ESTIMATES, BOUND = 5003, 4.5  # standard errors; there are about 80 parameters


@cache
def tiny():
    params = parameters(captioner("hard", baseline=True, **TINY), *SMALL, seed=7)
    return jax.tree.map(np.float64, params)


def fixed(params):
    """Without the learned baseline, which is fitted, and fitted alone."""
    return {name: leaf for name, leaf in params.items() if name != "value"}


@cache
def exact_gradient():
    """Of `-E[sum_t log p(y_t | s)]`, a word, by a sum over all paths of locations."""
    count, target = len(PATHS), SMALL_BATCH["target"]
    tiled = jax.tree.map(lambda leaf: np.repeat(leaf, count, 0), SMALL_BATCH)
    paths = np.tile(PATHS, (len(target), 1, 1))
    real = np.arange(WORDS) < tiled["target_lengths"][:, None]

    def loss(params):
        inputs = shifted(tiled["target"])
        written = by_hand(params, tiled["images"], inputs, lambda t, scores: paths[:, t], xp=jnp)
        chances = jnp.exp(jnp.sum(paths * log_softmax(written.scores, jnp), (1, 2)))
        log_probs = log_softmax(written.logits, jnp)
        likelihoods = jnp.take_along_axis(log_probs, tiled["target"][..., None], -1)[..., 0]
        return -chances @ jnp.sum(likelihoods, -1, where=real) / SMALL_BATCH["target_lengths"].sum()

    return ravel_pytree(jax.jit(jax.grad(loss))(fixed(tiny())))[0]


def estimates(sampling):
    model = captioner("hard", baseline=sampling.baseline == "learned", **TINY)
    params = tiny() if model.baseline else fixed(tiny())

    def estimate(key):
        gradient = jax.grad(reinforce(model, sampling), has_aux=True)(params, SMALL_BATCH, key, jnp.asarray(-1.3))[0]
        return ravel_pytree(fixed(gradient))[0]

    return np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(11, impl=KEYS), ESTIMATES)))


@pytest.mark.parametrize("baseline", BASELINES)
def test_reinforce_is_unbiased_of_the_exact_gradient_of_the_bound(baseline, float64):
    assert deviation(estimates(Sampling(2, baseline, coin=0.0)), exact_gradient()) < BOUND


@pytest.mark.parametrize("fault", ["no score", "own reward", "coin"])
def test_what_is_wrong_or_biased_is_found_out(fault, float64, monkeypatch):
    sampling = Sampling(2, coin=0.5 if fault == "coin" else 0.0, weight=0.0 if fault == "no score" else 1.0)
    if fault == "own reward":  # the mean of all samples, its own among them
        monkeypatch.setattr(hard, "leave_one_out", lambda rewards: jnp.broadcast_to(rewards.mean(0), rewards.shape))
    assert deviation(estimates(sampling), exact_gradient()) > BOUND


def test_samples_of_the_inference_network_agree_with_enumeration(float64):
    model = captioner("variational", **TINY)
    params = jax.tree.map(np.float64, parameters(model, *SMALL, seed=7))
    key = jax.random.key(0)
    exact, enumerated = jax.jit(jax.value_and_grad(variational(model), has_aux=True))(params, SMALL_BATCH, key)

    def estimate(key):
        (_, metrics), gradient = jax.value_and_grad(variational(model, 2), has_aux=True)(params, SMALL_BATCH, key)
        return ravel_pytree(gradient)[0], metrics["loss"]

    found, losses = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(11, impl=KEYS), ESTIMATES))
    assert deviation(np.asarray(found), np.asarray(ravel_pytree(enumerated)[0])) < BOUND
    close(losses, np.full(ESTIMATES, exact[0]), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (partial(Sampling, baseline="best"), "baseline is one of none, moving_average, .*; got 'best'"),
        (partial(Sampling, 1), "baseline 'leave_one_out' cannot do with 1 samples a picture"),
        (partial(Sampling, 0, "none"), "baseline 'none' cannot do with 0 samples a picture"),
        (partial(Sampling, coin=1.5), r"the probability of the coin lies in \[0, 1\]; got 1.5"),
        (partial(Sampling, per="row"), "the coin is tossed per batch or example; got 'row'"),
        (lambda: variational(captioner("variational"), 1), "0 samples enumerate, at least 2 estimate; got 1"),
        (lambda: variational(captioner()), "for attention 'variational'; the model's is 'soft'"),
        (lambda: reinforce(captioner(), Sampling()), "for attention 'hard'; the model's is 'soft'"),
        (lambda: reinforce(captioner("hard"), Sampling(1, "learned")), "needs a model with one: .*baseline=True"),
        (lambda: likelihood(captioner("hard")), "attention 'hard' has an objective of its own"),
    ],
)
def test_what_cannot_be_trained_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

"""Every estimator of a hard attention's gradient, on a captioner so small that all its paths can be enumerated.

The model writes T words y about S annotations a [S, D]: it scores them by its state, looks at one, writes the word and
takes word and context into its next state, so that a location changes all that comes after it. Estimators are
objectives `(params, batch, key) -> (loss, metrics)`, losses in nats a word.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.functional import hard
from attention_zoo.functional.alignment import Alignment, softmax
from attention_zoo.functional.latent import log_softmax, marginal, variational_bound
from attention_zoo.functional.relaxed import gumbel_softmax, straight_through
from attention_zoo.training.objectives import Objective

Tree = dict[str, Any]
Exact = Callable[[Tree, Tree], jax.Array]
Look = Callable[[int, jax.Array, jax.Array], Alignment]  # (step, scores [B, S], key) -> where each row looks
Baseline = Callable[[Tree, Tree, jax.Array], jax.Array]  # rewards [K, B, T] -> as wide, or a 1 in front
STATE, WIDTH, WORDS = 7, 5, 11


class Path(NamedTuple):
    """What was written while looking somewhere, all [B, T]; the last two None without samples."""

    log_likelihood: jax.Array
    log_prob: jax.Array | None
    entropy: jax.Array | None


class Estimator(NamedTuple):
    """An objective, what its mean gradient is measured by, and whether it claims to be unbiased of that."""

    objective: Objective
    exact: str
    unbiased: bool


def model(batch: int, steps: int, locations: int, seed: int = 0) -> tuple[Tree, Tree]:
    """Random parameters, and a batch of annotations [B, S, D] and words [B, T]."""
    random = np.random.default_rng(seed)

    def kernel(*shape: int) -> jax.Array:
        return jnp.float32(random.normal(size=shape) * 1.5 / shape[0] ** 0.5)

    def scorer(queries: int) -> Tree:
        return {"query": kernel(queries, STATE), "key": kernel(WIDTH, STATE), "energy": kernel(STATE)}

    decoder = {"start": kernel(WIDTH, STATE), "state": kernel(STATE, STATE), "context": kernel(WIDTH, STATE)}
    writer = {"state": kernel(STATE, STATE), "context": kernel(WIDTH, STATE), "word": kernel(STATE, WORDS)}
    params = {"attention": scorer(STATE), "decoder": decoder, "writer": writer, "inference": scorer(STATE)}
    params["words"] = kernel(WORDS, STATE)
    annotations = jnp.float32(random.normal(size=(batch, locations, WIDTH)))
    return params, {"annotations": annotations, "target": jnp.int32(random.integers(0, WORDS, (batch, steps)))}


def _scores(params: Tree, queries: jax.Array, annotations: jax.Array) -> jax.Array:
    hidden = (queries @ params["query"])[:, None] + annotations @ params["key"]
    return jnp.tanh(hidden) @ params["energy"]  # [B, S]


def _writing(params: Tree, state: jax.Array, contexts: jax.Array, words: jax.Array) -> jax.Array:
    """log p(y) [B, S] of each row's word under each of its contexts [B, S, D]."""
    hidden = jnp.tanh((state @ params["state"])[:, None] + contexts @ params["context"])
    logits = jax.nn.log_softmax(hidden @ params["word"])
    return jnp.take_along_axis(logits, words[:, None, None], -1)[..., 0]


def _next(params: Tree, state: jax.Array, context: jax.Array, words: jax.Array) -> jax.Array:
    decoder = params["decoder"]
    return jnp.tanh(state @ decoder["state"] + context @ decoder["context"] + params["words"][words])


def _start(params: Tree, batch: Tree) -> jax.Array:
    return jnp.tanh(batch["annotations"].mean(1) @ params["decoder"]["start"])


def _read(weights: jax.Array, batch: Tree) -> jax.Array:
    return jnp.einsum("bs,bsd->bd", weights, batch["annotations"])


def follow(params: Tree, batch: Tree, look: Look, key: jax.Array) -> Path:
    """Writes the batch's words, looking where `look` says."""
    state, found = _start(params, batch), []
    for step, drawn in enumerate(jax.random.split(key, batch["target"].shape[1])):
        words = batch["target"][:, step]
        alignment = look(step, _scores(params["attention"], state, batch["annotations"]), drawn)
        context = _read(alignment.weights, batch)
        found.append((_writing(params["writer"], state, context[:, None], words)[:, 0], *alignment[1:]))
        state = _next(params, state, context, words)
    return Path(*(None if parts[0] is None else jnp.stack(parts, 1) for parts in zip(*found, strict=True)))


def latent(params: Tree, batch: Tree) -> tuple[jax.Array, ...]:
    """Locations that change nothing but their word: the next state takes the expected context (Deng 2018).

    Returns:
        `log alpha`, `log p(y | s)` and the inference network's scores, all [B, T, S], and `log p(y)` under the expected
        context [B, T].
    """
    state, annotations, found = _start(params, batch), batch["annotations"], []
    for words in batch["target"].T:
        scores = _scores(params["attention"], state, annotations)
        context = _read(softmax(scores), batch)
        guesses = _scores(params["inference"], params["words"][words], annotations)
        soft = _writing(params["writer"], state, context[:, None], words)[:, 0]
        found.append((log_softmax(scores), _writing(params["writer"], state, annotations, words), guesses, soft))
        state = _next(params, state, context, words)
    return tuple(jnp.stack(parts, 1) for parts in zip(*found, strict=True))


def _soft(step: int, scores: jax.Array, key: jax.Array) -> Alignment:
    return Alignment(softmax(scores))


def _sampled(step: int, scores: jax.Array, key: jax.Array) -> Alignment:
    return hard.sample_location(scores, None, key)


def _likeliest(step: int, scores: jax.Array, key: jax.Array) -> Alignment:
    return hard.likeliest_location(scores)


def _forced(path: jax.Array) -> Look:
    def look(step: int, scores: jax.Array, key: jax.Array) -> Alignment:
        one_hot = jax.nn.one_hot(jnp.broadcast_to(path[step], scores.shape[:1]), scores.shape[1])
        log_prob = jax.nn.log_softmax(scores)[:, path[step]]
        return Alignment(one_hot, log_prob, log_prob)

    return look


def paths(batch: Tree) -> jax.Array:
    """Every sequence of locations, [S^T, T]."""
    steps, locations = batch["target"].shape[1], batch["annotations"].shape[1]
    return jnp.asarray(np.indices((locations,) * steps).reshape(steps, -1).T)


def exact_bound(params: Tree, batch: Tree) -> jax.Array:
    """Minus Xu's bound, `sum_path p(path) log p(y | path)`."""
    found = jax.vmap(lambda path: follow(params, batch, _forced(path), jax.random.key(0)))(paths(batch))
    return -jnp.mean(jnp.exp(found.log_prob.sum(-1)) * found.log_likelihood.sum(-1), 1).sum() / batch["target"].shape[1]


def expected_rewards(params: Tree, batch: Tree) -> jax.Array:
    """The mean of what comes after each step, [T]: where a learned baseline that knows the step alone ends up."""
    found = jax.vmap(lambda path: follow(params, batch, _forced(path), jax.random.key(0)))(paths(batch))
    rewards = hard.reward_to_go(found.log_likelihood)  # [S^T, B, T]
    return jnp.einsum("pb,pbt->t", jnp.exp(found.log_prob.sum(-1)), rewards) / rewards.shape[1]


def exact_marginal(params: Tree, batch: Tree) -> jax.Array:
    """Minus `log sum_path p(path) p(y | path)` of the latent locations."""
    log_weights, log_likelihoods, *_ = latent(params, batch)
    joint = _along(log_weights, batch) + _along(log_likelihoods, batch)
    return -jnp.mean(jax.nn.logsumexp(joint, 0)) / batch["target"].shape[1]


def exact_variational(params: Tree, batch: Tree) -> jax.Array:
    """Minus `sum_path q(path) (log p(path) p(y | path) - log q(path))`."""
    log_weights, log_likelihoods, guesses, _ = latent(params, batch)
    log_q = _along(jax.nn.log_softmax(guesses), batch)
    gain = _along(log_weights, batch) + _along(log_likelihoods, batch) - log_q
    return -jnp.mean(jnp.sum(jnp.exp(log_q) * gain, 0)) / batch["target"].shape[1]


def _along(values: jax.Array, batch: Tree) -> jax.Array:
    """The sum of values [B, T, S] along every path, [S^T, B]."""
    return jax.vmap(lambda path: sum(values[:, step, path[step]] for step in range(values.shape[1])))(paths(batch))


EXACT: dict[str, Exact] = {"bound": exact_bound, "marginal": exact_marginal, "variational": exact_variational}


def _looking(look: Look) -> Objective:
    """The likelihood of what is seen, and no more."""

    def objective(params: Tree, batch: Tree, key: jax.Array) -> tuple[jax.Array, Tree]:
        return -jnp.mean(follow(params, batch, look, key).log_likelihood), {}

    return objective


def _score_function(baseline: Baseline, samples: int = 1, entropy: float = 0.0) -> Objective:
    def objective(params: Tree, batch: Tree, key: jax.Array) -> tuple[jax.Array, Tree]:
        found = jax.vmap(lambda one: follow(params, batch, _sampled, one))(jax.random.split(key, samples))
        rewards = hard.reward_to_go(found.log_likelihood)
        loss = hard.score_function_loss(found.log_prob, rewards, baseline(params, batch, rewards))
        loss -= jnp.mean(found.log_likelihood)
        return loss + (hard.entropy_loss(found.entropy, weight=entropy) if entropy else 0), {}

    return objective


def _coined(heads: Objective, tails: Objective) -> Objective:
    """Xu's coin, one toss a batch."""

    def objective(params: Tree, batch: Tree, key: jax.Array) -> tuple[jax.Array, Tree]:
        toss, key = jax.random.split(key)
        return jax.lax.cond(hard.coin(toss, 1)[0], heads, tails, params, batch, key)

    return objective


def _none(params: Tree, batch: Tree, rewards: jax.Array) -> jax.Array:
    return jnp.zeros_like(rewards)


def _moving(params: Tree, batch: Tree, rewards: jax.Array) -> jax.Array:
    """Where the moving average ends up."""
    return hard.moving_average(rewards, batch["expected_rewards"].mean())[0]


def _learned(params: Tree, batch: Tree, rewards: jax.Array) -> jax.Array:
    return jnp.broadcast_to(batch["expected_rewards"][None, None], rewards.shape)


def _leave_one_out(params: Tree, batch: Tree, rewards: jax.Array) -> jax.Array:
    return hard.leave_one_out(rewards)


def _rewards_of(look: Look) -> Baseline:
    """The rewards of another run, which looks where `look` says."""

    def baseline(params: Tree, batch: Tree, rewards: jax.Array) -> jax.Array:
        path = follow(jax.lax.stop_gradient(params), batch, look, jax.random.key(0))
        return hard.reward_to_go(path.log_likelihood)[None]

    return baseline


def _marginal(params: Tree, batch: Tree, key: jax.Array) -> tuple[jax.Array, Tree]:
    return -jnp.mean(marginal(*latent(params, batch)[:2])), {}


def _variational(params: Tree, batch: Tree, key: jax.Array) -> tuple[jax.Array, Tree]:
    log_weights, log_likelihoods, guesses, _ = latent(params, batch)
    return -jnp.mean(variational_bound(log_softmax(guesses), log_weights, log_likelihoods)), {}


def _sampled_variational(with_baseline: bool) -> Objective:
    def objective(params: Tree, batch: Tree, key: jax.Array) -> tuple[jax.Array, Tree]:
        log_weights, log_likelihoods, guesses, soft = latent(params, batch)
        drawn = hard.sample_location(guesses, None, key)
        seen = jnp.sum(drawn.weights * log_likelihoods, -1)
        baseline = soft if with_baseline else jnp.zeros_like(soft)
        log_q = log_softmax(guesses)
        return hard.sampled_variational_loss(log_q, log_weights, seen, drawn.log_prob, baseline), {}

    return objective


def _relaxed(align: Callable[..., jax.Array], temperature: float) -> Objective:
    return _looking(lambda step, scores, key: Alignment(align(scores, None, key, temperature=temperature)))


ESTIMATORS: dict[str, Estimator] = {
    "soft attention": Estimator(_looking(_soft), "bound", False),
    "sampled, likelihood alone": Estimator(_looking(_sampled), "bound", False),
    "no baseline": Estimator(_score_function(_none), "bound", True),
    "moving average": Estimator(_score_function(_moving), "bound", True),
    "learned": Estimator(_score_function(_learned), "bound", True),
    "soft attention's reward": Estimator(_score_function(_rewards_of(_soft)), "bound", True),
    "self-critical": Estimator(_score_function(_rewards_of(_likeliest)), "bound", True),
    "moving average, K = 4": Estimator(_score_function(_moving, 4), "bound", True),
    "leave-one-out, K = 4": Estimator(_score_function(_leave_one_out, 4), "bound", True),
    "leave-one-out, entropy 0.1": Estimator(_score_function(_leave_one_out, 4, 0.1), "bound", False),
    "moving average, Xu's coin": Estimator(_coined(_looking(_soft), _score_function(_moving)), "bound", False),
    "Gumbel-softmax, 1.0": Estimator(_relaxed(gumbel_softmax, 1.0), "bound", False),
    "Gumbel-softmax, 0.3": Estimator(_relaxed(gumbel_softmax, 0.3), "bound", False),
    "straight-through, 1.0": Estimator(_relaxed(straight_through, 1.0), "bound", False),
    "exact marginal": Estimator(_marginal, "marginal", True),
    "variational, enumerated": Estimator(_variational, "variational", True),
    "variational, sampled": Estimator(_sampled_variational(False), "variational", True),
    "variational, soft's reward": Estimator(_sampled_variational(True), "variational", True),
}

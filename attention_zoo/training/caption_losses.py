"""Objectives of captioners: soft and marginal attention by likelihood, hard attention by samples, latent by bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention_zoo.functional import hard, latent
from attention_zoo.functional.alignment_losses import doubly_stochastic_penalty
from attention_zoo.functional.losses import cross_entropy, log_likelihood
from attention_zoo.functional.masks import within
from attention_zoo.functional.metrics import token_accuracy
from attention_zoo.models.captioner import Captioner, Writing
from attention_zoo.modules.alignment import NOISE
from attention_zoo.training.objectives import Objective, shifted

BASELINES = ("none", "moving_average", "learned", "soft", "self_critical", "leave_one_out")
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How hard attention is trained, see `functional.hard`.

    samples: K runs over each picture, whose annotations are made once. baseline: a name of `BASELINES`.
    coin: with what probability the expected context stands in for the samples; per "batch" or "example".
    entropy: lambda_e, of the entropy bonus. weight: lambda_r, of the score-function loss beside the likelihood.

    Raises:
        ValueError: a name or number is out of range, or leave-one-out has no other sample.
    """

    samples: int = 4
    baseline: str = "leave_one_out"
    coin: float = 0.5
    per: str = "batch"
    entropy: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.per not in ("batch", "example"):
            raise ValueError(f"the coin is tossed per batch or example; got {self.per!r}")
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline is one of {', '.join(BASELINES)}; got {self.baseline!r}")
        if self.samples < 1 + (self.baseline == "leave_one_out"):
            raise ValueError(f"baseline {self.baseline!r} cannot do with {self.samples} samples a picture")
        if not 0 <= self.coin <= 1:
            raise ValueError(f"the probability of the coin lies in [0, 1]; got {self.coin}")


def likelihood(model: Captioner, *, doubly_stochastic: float = 0.0, reduction: str = "sum") -> Objective:
    """The mean cross-entropy of every word, given those before it: for attention that needs no estimator.

    For "marginal" it is the exact marginal likelihood; for relaxed samples, the likelihood under them.

    Args:
        doubly_stochastic: lambda of `functional.alignment_losses.doubly_stochastic_penalty`, with its `reduction`.

    Returns:
        an objective whose metrics are `loss` (nats a word), `token_accuracy` and, with a lambda, the penalty.

    Raises:
        ValueError: the model's attention is hard or variational, so that a part of it would learn nothing here.
    """
    if model.attention in ("hard", "variational"):
        raise ValueError(f"likelihood: attention {model.attention!r} has an objective of its own")

    def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs, targets, real = _captions(batch)
        cache = _start(model, params, key, batch)
        logits, _, alignment = _apply(model, params, key, cache, inputs, deterministic=False, method="extend")
        loss = cross_entropy(logits, targets, real)
        metrics = {"loss": loss, "token_accuracy": token_accuracy(logits.argmax(-1), targets, real)}
        if not doubly_stochastic:
            return loss, metrics
        penalty = doubly_stochastic_penalty(alignment.weights, real, cache.memory.mask, reduction=reduction)
        return loss + doubly_stochastic * penalty, {**metrics, "doubly_stochastic": penalty}

    return objective


def reinforce(model: Captioner, sampling: Sampling) -> Any:
    """Hard attention by samples: the likelihood of what was sampled, and the score-function loss of where (Xu 2015).

    The reward of a location is the log-likelihood of the word and those after it. With a coin of 0, a weight of 1 and
    no entropy bonus the gradient is an unbiased estimate of that of the bound `E[sum_t log p(y_t | s)]`, a word.

    Returns:
        an objective with a carry, the moving average (a scalar that starts at 0, whichever baseline there is); its
        metrics are `loss` (nats a word under the samples), `token_accuracy`, `entropy` and `advantage`, the root mean
        square of reward minus baseline.

    Raises:
        ValueError: the model's attention is not hard, or it has no learned baseline where that is asked for.
    """
    _expect(model, "hard")
    if sampling.baseline == "learned" and not model.baseline:
        raise ValueError("a learned baseline needs a model with one: Captioner(..., baseline=True)")

    def objective(params: Any, batch: Batch, key: jax.Array, carry: jax.Array) -> Any:
        captions = _captions(batch)
        toss, draw, other = jax.random.split(key, 3)
        cache = _start(model, params, other, batch)
        expected = hard.coin(toss, len(captions.inputs), sampling.coin, sampling.per)
        runs = _runs(model, params, draw, cache, captions, expected, sampling.samples)
        if sampling.baseline in ("soft", "self_critical"):
            baseline = _other_run(model, params, cache, captions, sampling)
        else:
            baseline, carry = _baseline(sampling, runs, carry)
        loss = -jnp.sum(runs.log_likelihoods, where=runs.real) / jnp.maximum(runs.real.sum(), 1)
        # Where the expected context stood in, log-probability and entropy are constants, and nothing is learned here.
        score = hard.score_function_loss(runs.log_prob, runs.rewards, baseline, runs.real, sampling.weight)
        total = loss + score + hard.entropy_loss(runs.entropy, runs.real, sampling.entropy)
        if runs.values is not None:
            total += hard.learned_baseline_loss(runs.values, runs.rewards, runs.chosen)
        squares = jnp.square(runs.rewards - baseline)
        count = jnp.maximum(runs.chosen.sum(), 1)
        metrics = {
            "loss": loss,
            "token_accuracy": runs.accuracy,
            "entropy": jnp.sum(runs.entropy, where=runs.chosen) / count,
            "advantage": jnp.sqrt(jnp.sum(squares, where=runs.chosen) / count),
        }
        return total, (metrics, carry)

    return objective


def variational(model: Captioner, samples: int = 0) -> Objective:
    """Latent attention by the evidence lower bound, with an inference network that sees each word (Deng 2018).

    Args:
        samples: locations drawn from the inference network for each word, with leave-one-out baselines; at least 2. 0
            enumerates all, which is exact.

    Returns:
        an objective whose metrics are `loss` (minus the bound, nats a word) and `divergence` (of the inference network
        from the attention, nats a word).

    Raises:
        ValueError: there is one sample, or fewer than none; or the model's attention is not variational.
    """
    _expect(model, "variational")
    if samples < 0 or samples == 1:
        raise ValueError(f"variational: 0 samples enumerate, at least 2 estimate; got {samples}")

    def objective(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs, targets, real = _captions(batch)
        draw, other = jax.random.split(key)
        cache = _start(model, params, other, batch)
        found = _apply(model, params, other, cache, inputs, targets, deterministic=False, method="variational")
        log_q = latent.log_softmax(found.scores, cache.memory.mask[:, None])
        count = jnp.maximum(real.sum(), 1)
        bound = jnp.sum(latent.variational_bound(log_q, found.log_weights, found.log_likelihoods), where=real) / count
        divergence = jnp.sum(latent.kl_divergence(log_q, found.log_weights), where=real) / count
        metrics = {"loss": -bound, "divergence": divergence}
        if not samples:
            return -bound, metrics

        several = [_broadcast(leaf, samples) for leaf in (real, log_q, *found)]
        every, log_q, scores, log_weights, everywhere = several
        choice: Any = hard.sample_location(scores, cache.memory.mask[None, :, None], draw)
        likelihoods = jnp.sum(choice.weights * everywhere, -1)  # [K, B, T]
        baselines = hard.leave_one_out(likelihoods)
        loss = hard.sampled_variational_loss(log_q, log_weights, likelihoods, choice.log_prob, baselines, every)
        return loss, metrics

    return objective


class _Captions(NamedTuple):
    """Inputs and targets [B, T], and which targets are real."""

    inputs: jax.Array
    targets: jax.Array
    real: jax.Array


class _Runs(NamedTuple):
    """K runs over the captions, [K B, T]: how likely each word was, what came of each choice, where there was one."""

    log_likelihoods: jax.Array
    rewards: jax.Array
    log_prob: jax.Array
    entropy: jax.Array
    values: jax.Array | None
    real: jax.Array
    chosen: jax.Array
    accuracy: jax.Array


def _expect(model: Captioner, attention: str) -> None:
    if model.attention != attention:
        raise ValueError(f"this objective is for attention {attention!r}; the model's is {model.attention!r}")


def _captions(batch: Batch) -> _Captions:
    targets = jnp.asarray(batch["target"])
    return _Captions(shifted(targets), targets, within(jnp.asarray(batch["target_lengths"]), targets.shape[1]))


def _apply(model: Captioner, params: Any, key: jax.Array, *inputs: Any, **options: Any) -> Any:
    rngs = dict(zip(("dropout", NOISE), jax.random.split(key), strict=True))
    return model.apply({"params": params}, *inputs, rngs=rngs, **options)


def _start(model: Captioner, params: Any, key: jax.Array, batch: Batch) -> Any:
    """The cache before the first word; a batch may have a `mask` [B, S] of the locations that may be seen."""
    return _apply(model, params, key, batch["images"], batch.get("mask"), deterministic=False, method="start")


def _tiled(tree: Any, samples: int) -> Any:
    """Rows [B, ...] as K runs of them, [K B, ...]."""
    return jax.tree.map(lambda leaf: jnp.tile(leaf, (samples,) + (1,) * (leaf.ndim - 1)), tree)


def _broadcast(leaf: jax.Array, samples: int) -> jax.Array:
    return jnp.broadcast_to(leaf, (samples, *leaf.shape))


def _runs(
    model: Captioner, params: Any, key: jax.Array, cache: Any, captions: _Captions, expected: jax.Array, samples: int
) -> _Runs:
    cache, captions, expected = (_tiled(tree, samples) for tree in (cache, captions, expected))
    found: Writing = _apply(model, params, key, cache, captions.inputs, expected, method="write")
    log_likelihoods = log_likelihood(found.logits, captions.targets)
    choice: Any = found.alignment
    return _Runs(
        log_likelihoods,
        jax.lax.stop_gradient(hard.reward_to_go(log_likelihoods, captions.real)),
        choice.log_prob,
        choice.entropy,
        found.values,
        captions.real,
        captions.real & ~expected[:, None],
        token_accuracy(found.logits.argmax(-1), captions.targets, captions.real),
    )


def _baseline(sampling: Sampling, runs: _Runs, carry: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The baselines [K B, T] that follow from the runs themselves, and the next moving average."""
    rewards = runs.rewards
    if sampling.baseline == "leave_one_out":
        by_sample = rewards.reshape(sampling.samples, -1, rewards.shape[-1])
        return hard.leave_one_out(by_sample).reshape(rewards.shape), carry
    if sampling.baseline == "moving_average":
        return hard.moving_average(rewards, carry, runs.chosen)
    if sampling.baseline == "learned":
        assert runs.values is not None  # `reinforce` has seen to it
        return jax.lax.stop_gradient(runs.values), carry
    return jnp.zeros_like(rewards), carry


def _other_run(model: Captioner, params: Any, cache: Any, captions: _Captions, sampling: Sampling) -> jax.Array:
    """The rewards [K B, T] of a run without samples: with expected contexts, or with the most probable locations."""
    expected = jnp.full(len(captions.inputs), sampling.baseline == "soft")
    run: Any = model.apply({"params": params}, cache, captions.inputs, expected, True, method="write")
    rewards = hard.reward_to_go(log_likelihood(run.logits, captions.targets), captions.real)
    return _tiled(jax.lax.stop_gradient(rewards), sampling.samples)

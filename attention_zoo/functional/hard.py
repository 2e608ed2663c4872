"""Hard attention: look at one sampled location, and estimate the gradient that the sampling hides.

A word y is written after looking at location s, drawn with probability alpha_s. What may be maximised:

- the bound `E_alpha[log p(y | s)]` of Xu 2015, section 4.1, by samples: `score_function_loss` beside the likelihood of
  what was sampled, with one of the baselines below;
- the likelihood itself, `log sum_s alpha_s p(y | s)`, where locations can be enumerated: `latent.marginal` (Deng 2018);
- a tighter bound, with samples from an inference network q that has seen y: `latent.variational_bound` (Deng 2018).

What is enumerated is in `latent`.

Baselines. Each is a function of rewards [K, ...] of K samples and gives one number a reward. They differ in variance
alone: none depends on the sample that it is the baseline of, so that the estimate stays unbiased.

- none: 0.
- `moving_average`: of the rewards of earlier batches; state in, state out (Xu 2015).
- learned: a number that the model predicts before it samples, fitted by `learned_baseline_loss` (Mnih 2014).
- soft: the reward under the expected context, `sum_s alpha_s a_s` (Deng 2018); it costs a run without samples.
- self-critical: the reward of the most probable locations (Rennie 2017, for words); likewise.
- `leave_one_out`: the mean reward of the K - 1 other samples (Mnih and Rezende 2016; Kool 2019).

Biased relatives, which need no estimator at all, are in `relaxed`: Gumbel-softmax and straight-through.
"""

import jax
import jax.numpy as jnp

from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.latent import kl_divergence
from attention_zoo.functional.relaxed import largest, log_prob_and_entropy, perturbed
from attention_zoo.notation import Array, Bool, Float, checked


@checked
def sample_location(scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None, key: jax.Array) -> Alignment:
    """One location a row, s ~ Multinoulli(softmax(e)) (Xu 2015, eq. 8), exactly, by the largest of `e + Gumbel noise`.

    Args:
        scores, mask: as in `alignment.softmax`; a masked location, or one with score -inf, is never drawn.
        key: one random key; the noise is drawn per element of `scores`.

    Returns:
        one-hot weights [..., T, S], through which no gradient flows; log-probability and entropy of the choice
        [..., T], in nats, through which gradients flow. All are zero in rows with nothing to attend to.
    """
    return _chosen(largest(perturbed(scores, key), mask), scores, mask)


@checked
def likeliest_location(scores: Float[Array, "*b T S"], mask: Bool[Array, "*#b #T S"] | None = None) -> Alignment:
    """The most probable location a row, the first of equals; results as in `sample_location`.

    >>> likeliest_location(jnp.array([[0.0, 2.0, 1.0]])).weights
    Array([[0., 1., 0.]], dtype=float32)
    """
    return _chosen(largest(scores, mask), scores, mask)


def _chosen(one_hot: jax.Array, scores: Array, mask: Array | None) -> Alignment:
    weights = one_hot.astype(jnp.asarray(scores).dtype)
    return Alignment(weights, *log_prob_and_entropy(scores, mask, weights))


@checked
def score_function_loss(
    log_prob: Float[Array, "*b"],
    reward: Float[Array, "*b"],
    baseline: Float[Array, "*#b"] | float | int = 0.0,
    mask: Bool[Array, "*b"] | None = None,
    weight: float | int = 1.0,
) -> Float[Array, ""]:
    """REINFORCE, `-w (r - b) log alpha_s`, whose gradient is the score-function estimate (Williams 1992; Xu 2015, 4.1).

    Unbiased of the gradient of `-w E[r]` by what log_prob depends on, for rewards that do not depend on it and
    baselines that do not depend on the sample. Rewards and baselines get no gradient here. Where the reward depends on
    parameters too, as a log-likelihood does, its own loss stands beside this one.

    Args:
        log_prob: log-probability of each sampled location, [...].
        reward: what came of it, [...]; for a chain of locations, what came after it (`reward_to_go`) is enough.
        baseline: see the head of this file, [...] or of that rank.
        mask: True = count, [...]; what is not counted may hold anything. None counts all.
        weight: w, lambda_r in Xu 2015.

    Returns:
        the mean over what is counted, 0 if that is nothing.

    >>> score_function_loss(jnp.log(jnp.array([0.5])), jnp.array([3.0]), jnp.array([1.0]))
    Array(1.3862944, dtype=float32)
    """
    advantage = jax.lax.stop_gradient(_wide(reward) - baseline)
    return -weight * _mean(advantage, log_prob, mask)


@checked
def entropy_loss(
    entropy: Float[Array, "*b"], mask: Bool[Array, "*b"] | None = None, weight: float | int = 0.002
) -> Float[Array, ""]:
    """Entropy bonus, `-lambda_e H[s]`, which keeps a policy from settling too early (Xu 2015, section 4.1).

    The mean over what is counted. Its gradient is that of the entropies given what was sampled before: of one choice
    exact; in a chain, what a choice does to the entropies of later ones is left out. What is maximised then is
    no longer the bound: an estimator of the bound's gradient is biased by it, towards attention spread more evenly.
    """
    return -weight * _mean(jnp.ones_like(_wide(entropy)), entropy, mask)


@checked
def reward_to_go(
    log_likelihoods: Float[Array, "*b T"], mask: Bool[Array, "*b T"] | None = None
) -> Float[Array, "*b T"]:
    """What came of each choice: `r_t = sum_{t' >= t} log p(y_t')` over the real steps.

    Earlier words cannot depend on a later location; leaving them out changes no mean and lowers the variance.

    >>> reward_to_go(jnp.array([-1.0, -2.0, -4.0]))
    Array([-7., -6., -4.], dtype=float32)
    """
    real = log_likelihoods if mask is None else jnp.where(mask, log_likelihoods, 0)
    return jnp.flip(jnp.cumsum(jnp.flip(_wide(real), -1), -1), -1)


@checked
def leave_one_out(rewards: Float[Array, "K *b"]) -> Float[Array, "K *b"]:
    """The baseline of each of K samples is the mean reward of the others, `b_k = sum_{j != k} r_j / (K - 1)`.

    Unbiased: the others were drawn independently (Mnih and Rezende 2016; Kool 2019).

    Raises:
        ValueError: there are fewer than two samples.

    >>> leave_one_out(jnp.array([1.0, 2.0, 6.0]))
    Array([4. , 3.5, 1.5], dtype=float32)
    """
    if len(rewards) < 2:
        raise ValueError(f"leave_one_out compares samples with each other: it needs at least 2; got {len(rewards)}")
    wide = _wide(rewards)
    return (wide.sum(0, keepdims=True) - wide) / (len(rewards) - 1)


@checked
def moving_average(
    rewards: Float[Array, "*b"],
    state: Float[Array, ""],
    mask: Bool[Array, "*b"] | None = None,
    decay: float | int = 0.9,
) -> tuple[Float[Array, "*b"], Float[Array, ""]]:
    """The rewards of earlier batches as a baseline, `b <- 0.9 b + 0.1 r` (Xu 2015, section 4.1).

    Unbiased: b is what it was before this batch.

    Args:
        rewards: of this batch, [...].
        state: b, a scalar; 0 before the first batch.
        mask: True = count. decay: of b, in [0, 1).

    Returns:
        baselines [...], all b; and the next b, in which the mean of the counted rewards has its share.
    """
    wide = _wide(rewards)
    counted = jnp.ones(wide.shape, bool) if mask is None else mask
    mean = jnp.sum(wide, where=counted) / jnp.maximum(jnp.sum(counted), 1)
    after = jnp.where(jnp.any(counted), decay * state + (1 - decay) * mean, state)
    return jnp.broadcast_to(state, wide.shape), jax.lax.stop_gradient(after)


@checked
def learned_baseline_loss(
    values: Float[Array, "*b"], rewards: Float[Array, "*b"], mask: Bool[Array, "*b"] | None = None
) -> Float[Array, ""]:
    """What fits a learned baseline, `(r - b)^2` (Mnih 2014, section 3.1); the rewards get no gradient.

    Unbiased as a baseline: the values are predicted before the location is drawn. Predict them from features behind a
    `stop_gradient`, so that the fit does not pull at the policy.
    """
    error = jax.lax.stop_gradient(_wide(rewards)) - _wide(values)
    return _mean(error, error, mask)


@checked
def coin(key: jax.Array, rows: int, probability: float | int = 0.5, per: str = "batch") -> Bool[Array, "{rows}"]:
    """Xu's coin: for which rows the expected context stands in for the sample (Xu 2015, section 4.1, end).

    With the coin what is maximised is a mixture of the soft objective and the bound: as an estimator of the bound's
    gradient alone it is biased, towards the gradient of soft attention.

    Args:
        probability: of True, the expected context.
        per: "batch" tosses once for all rows, as the authors' code does; "example" once a row.

    Raises:
        ValueError: the probability is outside [0, 1], or `per` is neither.
    """
    if per not in ("batch", "example"):
        raise ValueError(f"coin: per is batch or example; got {per!r}")
    if not 0 <= probability <= 1:
        raise ValueError(f"coin: the probability lies in [0, 1]; got {probability}")
    tossed = jax.random.bernoulli(key, float(probability), (rows if per == "example" else 1,))
    return jnp.broadcast_to(tossed, (rows,))


@checked
def sampled_variational_loss(
    log_q: Float[Array, "*b T S"],
    log_weights: Float[Array, "*b T S"],
    log_likelihood: Float[Array, "*b T"],
    log_prob: Float[Array, "*b T"],
    baseline: Float[Array, "*#b #T"] | float | int = 0.0,
    mask: Bool[Array, "*b T"] | None = None,
) -> Float[Array, ""]:
    """Minus the evidence lower bound from one sample s ~ q a step; the divergence is exact (Deng 2018, algorithm 1).

    Unbiased of the gradient of `-variational_bound`: `-(log p(y | s) + (r - b) log q_s - KL(q || alpha))`, where
    the reward r is `log p(y | s)`. So each location may matter for its own word alone: it has no `reward_to_go`.

    Args:
        log_q, log_weights: as in `variational_bound`.
        log_likelihood: `log p(y_t | s_t)` of what was sampled, [..., T].
        log_prob: `log q(s_t)`, [..., T], from `sample_location` of q's scores.
        baseline: see the head of this file. mask: True = count.

    Returns:
        the mean over the counted steps. (Its value is the bound's estimate plus a term of mean zero.)
    """
    ones = jnp.ones_like(_wide(log_likelihood))
    bound = _mean(ones, log_likelihood, mask) - _mean(ones, kl_divergence(log_q, log_weights), mask)
    return score_function_loss(log_prob, log_likelihood, baseline, mask) - bound


def _wide(values: Array) -> jax.Array:
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _mean(factor: jax.Array, values: Array, mask: Array | None) -> jax.Array:
    """The mean of `factor * values` over what is counted; nothing else reaches the sum or its gradient."""
    wide = _wide(values)
    counted = jnp.ones(wide.shape, bool) if mask is None else mask
    product = jnp.where(counted, factor, 0) * jnp.where(counted, wide, 0)
    return jnp.sum(product) / jnp.maximum(jnp.sum(counted), 1)

"""Alignments as modules: equal to their functions; noise and expectations in training alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from attention_zoo.functional import local, monotonic
from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.mocha import mocha
from attention_zoo.functional.relaxed import straight_through
from attention_zoo.modules import (
    Attention,
    Coverage,
    Dot,
    General,
    GumbelSoftmax,
    LocalM,
    LocalP,
    LocationSensitive,
    MoChA,
    Monotonic,
    StraightThrough,
)

B, T, S, V = 2, 3, 7, 5
MASK = np.arange(S) < np.array([[7], [4]])
NOISY = {"monotonic": Monotonic(), "mocha": MoChA(chunk_score=Dot()), "gumbel": GumbelSoftmax(0.5)}
NOISY["straight_through"] = StraightThrough(0.5)


def draw(*shape, seed=0):
    return np.float32(np.random.default_rng((seed, *shape)).normal(size=shape))


QUERIES, VALUES = 2 * draw(B, T, V), draw(B, S, V)
SCORES = np.einsum("btv,bsv->bts", QUERIES, VALUES)


@partial(jax.jit, static_argnames=("alignment", "score"))
def apply(alignment, *, key=None, score=None):
    """Variables moved away from where they start, and the weights of an attention with dot scores over SCORES."""
    attention = Attention(score or Dot(), alignment)
    variables = attention.init(jax.random.key(0), QUERIES, VALUES, MASK, method="over")
    variables = jax.tree.map(lambda leaf: leaf + 0.3, variables)
    memory = attention.apply(variables, VALUES, MASK, method="remember")
    state = attention.apply(variables, memory, method="start")
    rngs = None if key is None else {"alignment": jax.random.key(key)}
    found = attention.apply(variables, QUERIES, memory, state, key is None, rngs=rngs)
    return variables.get("params", {}), found[1].weights


@jax.jit
def modules_and_functions():
    """Weights at inference by name, each as the module gives them and as the functions do; a learned bias and gain."""
    mask, first, lengths = MASK[:, None], monotonic.first(MASK), MASK.sum(1)
    steps = np.broadcast_to(np.arange(T), (B, T))
    learned, local_p = apply(LocalP(2, renormalise=True))
    centers = local.predicted_centers(QUERIES, *(learned["alignment"][part] for part in ("weight", "energy")), lengths)
    params, weights = apply(Monotonic(bias=-0.5))
    bias = params["alignment"]["bias"]
    hard = monotonic.hard(SCORES + bias, mask, first)[0]
    soft = monotonic.monotonic(SCORES + bias, mask, first)[0]
    gained, walked = apply(Monotonic(gain=0.1))
    rescaled = gained["alignment"]["gain"] * SCORES + gained["alignment"]["bias"]
    return jnp.stack([bias, gained["alignment"]["gain"]]), {
        "gain": (walked, monotonic.hard(rescaled, mask, first)[0]),
        "local_m": (apply(LocalM(2))[1], local.local_m(SCORES, mask, steps, window=2)),
        "local_p": (local_p, local.local_p(SCORES, mask, centers, window=2, renormalise=True)),
        "hard": (weights, hard),
        "monotonic": (apply(Monotonic(bias=-0.5, hard=False))[1], soft),
        "mocha": (apply(MoChA(bias=-0.5, width=2, chunk_score=Dot()))[1], mocha(hard, SCORES, mask, 2)),
        "gumbel_softmax": (apply(GumbelSoftmax(0.5))[1], softmax(SCORES, mask)),
        "straight_through": (apply(StraightThrough(0.5))[1], straight_through(SCORES, mask, None)),
    }


def test_inference_equals_the_functions():
    learned, pairs = modules_and_functions()
    np.testing.assert_allclose(learned, [-0.2, 0.4], rtol=1e-6)
    assert pairs["hard"][1].any() and np.any(pairs["gain"][1] != pairs["hard"][1])
    for name in ("hard", "gain", "straight_through"):
        np.testing.assert_array_equal(*pairs.pop(name))
    for found, expected in pairs.values():
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_drawn_in_training_alone_and_from_the_key(name):
    first, again, other = (np.asarray(apply(NOISY[name], key=key)[1]) for key in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - apply(NOISY[name])[1]).max() > 1e-3
    assert not np.any(first[1, :, 4:])
    attention = Attention(Dot(), NOISY[name])

    def without_key():
        variables = attention.init(jax.random.key(0), QUERIES, VALUES, method="over")
        memory = attention.apply(variables, VALUES, method="remember")
        state = attention.apply(variables, memory, method="start")
        return attention.apply(variables, QUERIES, memory, state, deterministic=False)

    with pytest.raises(InvalidRngError, match='needs PRNG for "alignment"'):
        jax.eval_shape(without_key)


def test_without_noise_training_is_the_expectation():
    params, weights = apply(Monotonic(noise=0.0), key=1)
    expect = jax.jit(lambda bias: monotonic.monotonic(SCORES + bias, MASK[:, None], monotonic.first(MASK))[0])
    expected = expect(params["alignment"]["bias"])
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)


def attend(alignment, deterministic=False, mask=MASK):
    """The whole alignment, of dot scores over SCORES."""
    attention, rngs = Attention(Dot(), alignment), {"alignment": jax.random.key(1)}
    memory = attention.apply({}, VALUES, mask, method="remember")
    return attention.apply({}, QUERIES, memory, None, deterministic, rngs=rngs)[1]


def probabilities(scores, mask):
    """The softmax over positions of which each row has one."""
    raised = np.where(mask, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return raised / raised.sum(-1, keepdims=True)


def test_a_sample_tells_its_log_prob_and_the_entropy_it_was_drawn_from():
    # At any temperature: that of the estimator's gradient is not that of the choice.
    both = jax.jit(lambda: [attend(StraightThrough(temperature)) for temperature in (0.5, 3.0)])
    found, other = jax.device_get(both())
    jax.tree.map(np.testing.assert_array_equal, found, other)
    log_probs = np.log(np.maximum(probabilities(SCORES, MASK[:, None]), 1e-30))
    chosen = found.weights.argmax(-1)[..., None]
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(found.log_prob, np.take_along_axis(log_probs, chosen, -1)[..., 0])
    close(found.entropy, -np.sum(np.exp(log_probs) * log_probs, -1))
    assert found.log_prob.shape == (B, T) and np.ptp(found.log_prob) > 0.1
    # Nothing to attend to: zeros, beside examples that have something.
    partly = np.array([[True] * S, [False] * S])
    empty = jax.device_get(jax.jit(partial(attend, StraightThrough(0.5)))(mask=partly))
    assert not empty.log_prob[1].any() and not empty.entropy[1].any() and empty.entropy[0].all()


def test_where_no_position_is_sampled_there_is_no_log_prob():
    for alignment, deterministic in (
        (StraightThrough(0.5), True),
        (GumbelSoftmax(0.5), False),
        (GumbelSoftmax(), True),
    ):
        found = jax.eval_shape(partial(attend, alignment, deterministic))
        assert found.log_prob is None and found.entropy is None


def by_steps(params, features):
    """Softmax of `q^T W (k + P f)`, one query after another, with features of all weights before."""
    general, past, before = params["score"]["score"]["key"]["kernel"], params["score"]["past"], []
    for t in range(T):
        keys = VALUES @ general + features(before) @ past
        before.append(probabilities(np.einsum("bv,bsv->bs", QUERIES[:, t], keys), MASK))
    return np.stack(before, 1)


def test_scores_that_know_the_past_equal_a_plain_loop():
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    params, weights = jax.device_get(apply(softmax, score=LocationSensitive(General(V), filters=2, width=3)))
    filters = params["score"]["filters"]

    def nearby(before):
        last = np.pad(before[-1] if before else np.zeros((B, S)), ((0, 0), (1, 1)))
        return sum(last[:, r : r + S, None] * filters[r] for r in range(3))

    close(weights, by_steps(params, nearby))
    for fertility in (0.0, 2.0):
        params, weights = jax.device_get(apply(softmax, score=Coverage(General(V), fertility=fertility)))
        share = 2 / (1 + np.exp(-VALUES @ params["score"]["expected"]["weight"])) if fertility else 1.0
        close(weights, by_steps(params, lambda before, n=share: (sum(before, np.zeros((B, S))) / n)[..., None]))


@pytest.mark.parametrize(
    ("alignment", "sentence"),
    [
        (MoChA(), "MoChA needs a chunk_score"),
        (Monotonic(method="xx"), "method is one of parallel, recursive; got 'xx'"),
        (GumbelSoftmax(0.0), "temperature is above zero; got 0.0"),
        (StraightThrough(-1.0), "temperature is above zero; got -1.0"),
    ],
)
def test_what_does_not_fit_is_refused_also_at_inference(alignment, sentence):
    with pytest.raises(ValueError, match=sentence):
        apply(alignment)


def test_a_negative_fertility_is_refused():
    with pytest.raises(ValueError, match="fertility is 0, for none, or above; got -1"):
        apply(softmax, score=Coverage(Dot(), fertility=-1.0))


@pytest.mark.parametrize("implementation", ["nonsense", "chunked"])
def test_an_alignment_that_reads_in_its_own_way_takes_no_implementation(implementation):
    attention = Attention(Dot(), LocalM(2), implementation)
    with pytest.raises(ValueError, match=f"LocalM reads in its own way: .* got '{implementation}'"):
        attention.init(jax.random.key(0), QUERIES, VALUES, method="over")


@pytest.mark.parametrize("attention", [Attention(Dot(), LocalM(2)), Attention(Coverage(Dot()))])
def test_a_bare_array_is_no_state(attention):
    state = jnp.zeros(B, jnp.int32)

    def ask():
        variables = attention.init(jax.random.key(0), QUERIES, VALUES, method="over")
        memory = attention.apply(variables, VALUES, method="remember")
        return attention.apply(variables, QUERIES, memory, state)

    with pytest.raises(TypeError, match="is one from `start` or the last call; got ArrayImpl"):
        jax.eval_shape(ask)

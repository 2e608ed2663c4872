"""Sampling: its distribution by chi-squared tests and support, its scores, its key."""

import jax
import numpy as np
import pytest
import scipy.stats

from attention_zoo.functional.search import sample
from tests.functional.history import Model, all_sequences, check, model, run, same_at_every_step, written


def draws(probabilities, count: int = 4001, seed: int = 0, temperature: float = 1.0, **options) -> np.ndarray:
    """How often each symbol came first, of `count` rows of one batch."""
    of = same_at_every_step(np.log(probabilities), batch=count)
    decoded = run(sample, of, jax.random.key(seed), max_length=1, temperature=temperature, **options)
    return np.bincount(decoded.tokens[:, 0], minlength=len(probabilities))


CHANCE = 1e-3  # of a right sampler failing one of the chi-squared tests below; there are about fifteen
FOUR = np.array([0.15, 0.5, 0.05, 0.3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, FOUR),
        ({"temperature": 0.5}, FOUR**2),
        ({"temperature": 3.0}, FOUR ** (1 / 3)),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 0.5, 0, 0.3]),
        ({"top_k": 99}, FOUR),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 0.49}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 0.5, 0, 0.3]),  # the symbol that crosses p is kept
        ({"top_p": 0.81}, [0.15, 0.5, 0, 0.3]),
        ({"top_p": 0.96}, FOUR),
        ({"top_p": 1.0}, FOUR),
        # First top_k: 0.5 and 0.3 become 0.625 and 0.375, so that 0.6 is reached by one symbol, not two.
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.6}, [0, 0.5, 0, 0.3]),
        # First temperature: the squares are 0.0225, 0.25, 0.0025, 0.09 of 0.365, so that 0.6 is reached by one.
        ({"temperature": 0.5, "top_p": 0.6}, [0, 1, 0, 0]),
        ({"temperature": 1e-3}, [0, 1, 0, 0]),
    ],
)
def test_sampling_draws_from_the_stated_distribution(options, expected):
    counts = draws(FOUR, **options)
    expected = np.asarray(expected) / np.sum(expected)
    assert not np.any(counts[expected == 0])  # never outside the nucleus
    inside = expected > 0
    if np.sum(inside) > 1:
        assert scipy.stats.chisquare(counts[inside], expected[inside] * counts.sum()).pvalue > CHANCE


def test_of_equally_probable_symbols_the_lower_ids_are_kept():
    equal = np.full(4, 0.25)
    assert (draws(equal, top_k=2) > 0).tolist() == [True, True, False, False]
    assert (draws(equal, top_p=0.6) > 0).tolist() == [True, True, True, False]


def test_sampled_sequences_have_the_probability_of_the_model():
    of = model(batch=1, vocabulary=4, seed=6, spread=0.7)
    many = Model(of.table, np.tile(of.bias, (9001, 1)), np.tile(of.state, 9001))
    decoded = run(sample, many, jax.random.key(3), max_length=3)
    sequences = all_sequences(vocabulary=4, length=3)
    counts = dict.fromkeys(sequences, 0)
    for tokens, length in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True):
        counts[tuple(tokens[:length])] += 1
    expected = np.exp([of.log_prob(0, s) for s in sequences])
    np.testing.assert_allclose(expected.sum(), 1)
    assert scipy.stats.chisquare(list(counts.values()), expected * 9001 / expected.sum()).pvalue > CHANCE


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9}])
def test_samples_are_scored_under_the_model_and_decided_by_their_key(options):
    of = model(batch=11, ends=-1.0)
    decoded, again = (run(sample, of, jax.random.key(1), max_length=7, **options) for _ in range(2))
    check(decoded, of)
    for example in range(11):
        np.testing.assert_allclose(decoded.scores[example], of.log_prob(example, written(decoded, example)), rtol=1e-5)
    np.testing.assert_array_equal(decoded.tokens, again.tokens)
    other = run(sample, of, jax.random.key(2), max_length=7, **options)
    assert np.any(decoded.tokens != other.tokens)
    longer = run(sample, of, jax.random.key(1), max_length=11, **options)
    np.testing.assert_array_equal(decoded.tokens, longer.tokens[:, :7])
    assert len(set(decoded.tokens[:, 1:].reshape(-1).tolist())) > 2  # each step draws anew

"""What holds for every search: endings, neighbours, compilation, alignments, dtypes, refusals; and greedy decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.search import beam, gnmt, greedy, sample
from tests.functional.history import END, PAD, SOURCE, START, Model, check, model, run, steps_taken, written


def test_greedy_takes_the_most_probable_symbol_and_sums_its_log_probabilities():
    of = model(batch=19)
    decoded = run(greedy, of, max_length=7, pad=29)
    assert np.any(decoded.lengths < 7) and np.any(decoded.lengths == 7)
    check(decoded, of, pad=29)
    for example in range(19):
        tokens = written(decoded, example)
        assert tokens == tuple(int(np.argmax(of.replay(example, tokens[:t])[0])) for t in range(len(tokens)))
        np.testing.assert_allclose(decoded.scores[example], of.log_prob(example, tokens), rtol=1e-5)
    assert decoded.tokens.dtype == decoded.lengths.dtype == np.int32 and decoded.scores.dtype == np.float32


METHODS = {
    "greedy": greedy,
    "sample": lambda step, cache, start, **options: sample(step, cache, start, jax.random.key(5), **options),
    "beam": functools.partial(beam, width=7),
}
by_method = pytest.mark.parametrize("method", METHODS)
# Sampling is greedy decoding with another choice: what does not depend on the choice needs no third compilation.
by_path = pytest.mark.parametrize("method", ["greedy", "beam"])


@by_method
def test_all_may_end_at_the_first_step(method):
    of = model(ends=500.0)
    decoded = run(METHODS[method], of, max_length=11)
    first = (slice(None), 0) if decoded.tokens.ndim == 3 else (slice(None),)
    assert np.all(decoded.lengths[first] == 1)
    np.testing.assert_array_equal(decoded.tokens[first], [[END] + 10 * [PAD]] * 3)


@by_method
def test_end_may_never_come(method):
    of = model(ends=-np.inf)
    decoded = run(METHODS[method], of, max_length=11)
    assert np.all(decoded.lengths == 11) and not np.any(decoded.tokens == END)
    assert np.all(np.isfinite(decoded.scores))
    check(decoded, of)


@by_path
def test_one_example_and_one_step(method):
    of = model(batch=1)
    decoded = run(METHODS[method], of, max_length=1)
    if method == "beam":  # there are five sequences of one symbol for its seven places
        assert sorted(decoded.tokens[0, :5, 0].tolist()) == [0, 1, 2, 3, 4] and np.all(decoded.lengths[0, 5:] == 0)
        decoded = jax.tree.map(lambda leaf: leaf[:, :5], decoded)
    assert decoded.tokens.shape[0] == 1 and decoded.tokens.shape[-1] == 1 and np.all(decoded.lengths == 1)
    check(decoded, of)


@by_method
def test_an_example_does_not_depend_on_its_neighbours(method):
    of = model(batch=3, seed=2)
    together = run(METHODS[method], of, max_length=11)
    assert len(set(together.lengths.reshape(3, -1)[:, 0].tolist())) > 1
    first = run(METHODS[method], of._replace(bias=of.bias[:2], state=of.state[:2]), max_length=11)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(one[:2], other)


@by_path
def test_compiled_and_not_give_the_same(method):
    of = model(batch=2, ends=1.0)
    start = jnp.full(2, START, jnp.int32)
    plain = METHODS[method](of.step, of.cache(), start, end=END, max_length=11)
    for one, other in zip(
        jax.tree.leaves(run(METHODS[method], of, max_length=11)), jax.tree.leaves(plain), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


class Several(Model):
    """Its alignment is a dictionary with an axis of heads, and an integer for each row."""

    def step(self, cache, tokens):
        logits, cache, alignment = super().step(cache, tokens)
        weights = jnp.broadcast_to(alignment.weights[:, None], (len(tokens), 23, SOURCE))
        return logits, cache, {"heads": weights, "state": cache["state"]}


class Without(Model):
    """It returns no alignment."""

    def step(self, cache, tokens):
        return *super().step(cache, tokens)[:2], None


@by_path
def test_an_alignment_may_be_none_or_any_pytree(method):
    of = model(batch=2)
    plain, without, several = (run(METHODS[method], kind(*of), max_length=11) for kind in (Model, Without, Several))
    assert without.alignment is None
    for head in range(23):
        np.testing.assert_array_equal(several.alignment["heads"][..., head, :], plain.alignment.weights)
    assert several.alignment["state"].shape == plain.tokens.shape
    np.testing.assert_array_equal(several.tokens, plain.tokens)


@by_method
def test_logits_that_are_not_numbers_end_the_search_all_the_same(method):
    of = model(batch=3)
    broken = of._replace(bias=np.where(np.arange(3)[:, None] == 1, np.nan, of.bias).astype(np.float32))
    decoded, whole = (run(METHODS[method], one, max_length=11) for one in (broken, of))
    assert np.all((decoded.tokens >= 0) & (decoded.tokens < 5))
    assert np.all(np.isnan(decoded.scores[1]))  # not hidden
    np.testing.assert_array_equal(decoded.tokens[[0, 2]], whole.tokens[[0, 2]])  # nor spread


@by_method
def test_dtypes_do_not_depend_on_64_bits_being_allowed(method, float64):
    options = {"penalty": gnmt(np.float64(0.6))} if method == "beam" else {}
    decoded = run(METHODS[method], model(batch=2), max_length=11, **options)
    assert decoded.scores.dtype == np.float32 and decoded.tokens.dtype == decoded.lengths.dtype == np.int32


class Narrow(Model):
    """Its logits have 16 bits."""

    def step(self, cache, tokens):
        logits, cache, alignment = super().step(cache, tokens)
        return logits.astype(jnp.bfloat16), cache, alignment


class Rounded(Narrow):
    """The same numbers in 32 bits."""

    def step(self, cache, tokens):
        logits, cache, alignment = super().step(cache, tokens)
        return logits.astype(jnp.float32), cache, alignment


@by_path
def test_logits_of_16_bits_are_normalised_in_32(method):
    of = model(batch=2)
    narrow, rounded = (run(METHODS[method], kind(*of), max_length=11) for kind in (Narrow, Rounded))
    np.testing.assert_array_equal(narrow.tokens, rounded.tokens)
    np.testing.assert_allclose(narrow.scores, rounded.scores, rtol=1e-6)
    assert narrow.scores.dtype == np.float32


def test_a_search_stops_when_all_have_ended():
    of = model(batch=5, ends=2.0)
    longest = int(run(greedy, of, max_length=101).lengths.max())
    assert 1 < longest < 101 and steps_taken(greedy, of, max_length=101) == longest
    assert steps_taken(greedy, model(ends=-99.0), max_length=13) == 13
    assert steps_taken(beam, of, max_length=101, width=1) == longest


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (sample, {"temperature": 0.0}, "temperature must be a finite number above 0, got 0.0"),
        (sample, {"temperature": -1}, "temperature must be"),
        (sample, {"temperature": float("nan")}, "temperature must be"),
        (sample, {"temperature": float("inf")}, "temperature must be"),
        (sample, {"top_k": 0}, "top_k must be at least 1 .* got 0"),
        (sample, {"top_p": 0.0}, r"top_p must be in \(0, 1\] .* got 0.0"),
        (sample, {"top_p": 1.1}, "top_p must be"),
        (beam, {"width": 0}, "width must be at least 1, got 0"),
        (beam, {"width": 3, "max_length": 0}, "max_length must be at least 1, got 0"),
        (greedy, {"max_length": 0}, "max_length must be at least 1, got 0"),
        (greedy, {"end": 5}, "end must be an id of the vocabulary, 0 to 4, got 5"),
        (beam, {"width": 3, "end": -1}, "end must be an id of the vocabulary, 0 to 4, got -1"),
    ],
)
def test_a_wrong_option_is_one_clear_sentence(method, options, words):
    of, key = model(), (jax.random.key(0),) if method is sample else ()
    start = jnp.full(3, START, jnp.int32)
    with pytest.raises(ValueError, match=words):
        method(of.step, of.cache(), start, *key, **{"end": END, "max_length": 7} | options)


@by_method
def test_a_cache_without_the_batch_as_leading_axis_is_refused(method):
    of = model()
    wrong = of.cache() | {"position": jnp.int32(0)}
    with pytest.raises(ValueError, match=r"cache\['position'\] must have the leading axis 3 .* got shape \(\)"):
        METHODS[method](of.step, wrong, jnp.full(3, START, jnp.int32), end=END, max_length=7)

"""Searches against exhaustive enumeration, a plain beam search in Python and each other, over models with a memory."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from attention_zoo.functional import search
from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.search import Decoded, average, beam, gnmt, greedy, none, power, sample

PAD, START, END = 0, 1, 2
STATES, SOURCE = 1009, 13
PENALTIES = {
    "gnmt": (gnmt(0.6), lambda n: ((5 + n) / 6) ** 0.6),
    "average": (average, lambda n: n),
    "power": (power(1.7), lambda n: n**1.7),
    "power falling": (power(-0.4), lambda n: n**-0.4),
    "none": (none, lambda n: 1),
}
by_penalty = pytest.mark.parametrize("penalty", PENALTIES)


class Model(NamedTuple):
    """A model of which every distribution and alignment depends on the whole history: its state is a running hash."""

    table: np.ndarray  # [STATES, N], logits of each state
    bias: np.ndarray  # [B, N], what an example adds to them; the memory, never changed
    state: np.ndarray  # [B], the hash before the first symbol
    tilt: float = 0.3  # how much the history in floats adds to the logit of symbol 0

    def cache(self) -> dict[str, jax.Array]:
        # The same history twice: in an integer and, spread over two axes, in floats.
        trail = jnp.zeros((len(self.state), 17, 19), jnp.float32)
        return {"state": jnp.asarray(self.state), "memory": jnp.asarray(self.bias), "trail": trail}

    def step(self, cache, tokens):
        state = (cache["state"] * 31 + tokens * 17 + 7) % STATES
        trail = cache["trail"].at[:, 1, 1].set((cache["trail"][:, 1, 1] * 3 + tokens) % 5)
        logits = jnp.asarray(self.table)[state] + cache["memory"]
        logits = logits.at[:, 0].add(trail[:, 1, 1] * self.tilt)
        alignment = Alignment(jax.nn.one_hot(state % SOURCE, SOURCE))
        return logits, {"state": state, "memory": cache["memory"], "trail": trail}, alignment

    def replay(self, example: int, history: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """In plain numpy, float64: log-probabilities and alignment after START and `history`."""
        state, trail = int(self.state[example]), 0
        for token in (START, *history):
            state, trail = (state * 31 + token * 17 + 7) % STATES, (trail * 3 + token) % 5
        logits = self.table[state].astype(float) + self.bias[example]
        logits[0] += trail * self.tilt
        return logits - np.log(np.sum(np.exp(logits))), np.eye(SOURCE)[state % SOURCE]

    def log_prob(self, example: int, tokens: tuple[int, ...]) -> float:
        return sum(self.replay(example, tokens[:t])[0][token] for t, token in enumerate(tokens))


def model(batch: int = 3, vocabulary: int = 5, seed: int = 0, ends: float = 0.0, spread: float = 2.0) -> Model:
    """`ends` is added to the logits of END."""
    random = np.random.default_rng(seed)
    table = spread * random.normal(size=(STATES, vocabulary)).astype(np.float32)
    table[:, END] += ends
    bias = random.normal(size=(batch, vocabulary)).astype(np.float32)
    return Model(table, bias, random.integers(0, STATES, batch).astype(np.int32))


def same_at_every_step(logits, batch: int = 1) -> Model:
    nothing = np.zeros((batch, len(logits)), np.float32)
    return Model(np.tile(np.asarray(logits, np.float32), (STATES, 1)), nothing, np.zeros(batch, np.int32), 0.0)


@functools.cache
def compiled(method: Callable[..., Decoded], **options) -> Callable[..., Decoded]:
    """The search as a function of the model (its arrays are arguments, so that one compilation serves many)."""
    options = {"end": END} | options

    def decode(of, *arguments):
        return method(of.step, of.cache(), jnp.full(of.state.shape, START, jnp.int32), *arguments, **options)

    return jax.jit(decode)


def run(method: Callable[..., Decoded], of: Model, *arguments, **options) -> Decoded:
    return jax.tree.map(np.asarray, compiled(method, **options)(of, *arguments))


def given_divisors(step, cache, start, divisors, **options) -> Decoded:
    return beam(step, cache, start, penalty=lambda _: divisors, **options)


def run_beam(of: Model, penalty: str, *, max_length: int, width: int) -> Decoded:
    """Beam search with one of PENALTIES, which comes in as an argument, so that one compilation serves all."""
    divisors = PENALTIES[penalty][0](jnp.arange(1, max_length + 1, dtype=jnp.float32))
    return run(given_divisors, of, divisors, max_length=max_length, width=width)


def written(decoded: Decoded, *at: int) -> tuple[int, ...]:
    return tuple(decoded.tokens[at][: decoded.lengths[at]].tolist())


def check(decoded: Decoded, of: Model, pad: int = PAD) -> None:
    """Every returned hypothesis against a replay of its own tokens: padding, END, alignments along its path."""
    for at in np.ndindex(decoded.lengths.shape):
        tokens = written(decoded, *at)
        assert END not in tokens[:-1] and (len(tokens) == decoded.tokens.shape[-1] or tokens[-1] == END)
        assert np.all(decoded.tokens[at][len(tokens) :] == pad)
        for t in range(len(tokens)):
            np.testing.assert_array_equal(decoded.alignment.weights[at][t], of.replay(at[0], tokens[:t])[1])
        assert not np.any(decoded.alignment.weights[at][len(tokens) :])


def all_sequences(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    others = [token for token in range(vocabulary) if token != END]
    ended = [(*body, END) for n in range(length) for body in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=length))


def plain_beam(of: Model, example: int, width: int, length: int, penalty) -> list[tuple[float, tuple[int, ...]]]:
    """The documented beam search on Python lists, which never stops early."""
    live, ended = [(0.0, ())], []
    for _ in range(length):
        grown = [
            (score + gain, (*tokens, token))
            for score, tokens in live
            for token, gain in enumerate(of.replay(example, tokens)[0])
        ]
        candidates = sorted(grown, reverse=True)[: 2 * width if width > 1 else 1]
        ended += [(score / penalty(len(tokens)), tokens) for score, tokens in candidates if tokens[-1] == END]
        live = [(score, tokens) for score, tokens in candidates if tokens[-1] != END][:width]
    ended += [(score / penalty(length), tokens) for score, tokens in live]
    return sorted(ended, reverse=True)[:width]


@by_penalty
def test_a_wide_beam_is_exhaustive_enumeration(penalty):
    of = model(batch=2, vocabulary=4, seed=3)
    sequences = all_sequences(vocabulary=4, length=5)
    assert len(sequences) == 364
    decoded = run_beam(of, penalty, max_length=5, width=367)
    for example in range(2):
        ranked = sorted(((of.log_prob(example, s) / PENALTIES[penalty][1](len(s)), s) for s in sequences), reverse=True)
        scores, best = zip(*ranked, strict=True)
        assert [written(decoded, example, k) for k in range(7)] == list(best[:7])
        np.testing.assert_allclose(decoded.scores[example, :364], scores, rtol=1e-5)
        assert {written(decoded, example, k) for k in range(364)} == set(sequences)
        # There are 364 sequences: the places left say so.
        assert np.all(decoded.scores[example, 364:] == -np.inf)
        assert np.all(decoded.lengths[example, 364:] == 0) and np.all(decoded.tokens[example, 364:] == PAD)
    check(jax.tree.map(lambda leaf: leaf[:, :364], decoded), of)


def check_against_plain_beam(of: Model, penalty: str, width: int) -> None:
    decoded = run_beam(of, penalty, max_length=11, width=width)
    check(decoded, of)
    for example in range(len(of.state)):
        scores, sequences = zip(*plain_beam(of, example, width, 11, PENALTIES[penalty][1]), strict=True)
        np.testing.assert_allclose(decoded.scores[example], scores, rtol=1e-5, atol=1e-5)
        assert [written(decoded, example, k) for k in range(width)] == list(sequences)


@by_penalty
@pytest.mark.parametrize("width", [2, 7])
@hypothesis.settings(max_examples=7)
@hypothesis.given(seed=st.integers(0, 10_000), ends=st.sampled_from([-2.0, 0.0, 3.0]))
def test_beam_is_the_plain_beam_search_that_never_stops_early(penalty, width, seed, ends):
    check_against_plain_beam(model(batch=3, seed=seed, ends=ends), penalty, width)


@by_penalty
@pytest.mark.parametrize("ends", [0.0, 2.0])
def test_width_one_is_greedy(penalty, ends):
    of = model(batch=23, ends=ends)
    one, line = run_beam(of, penalty, max_length=17, width=1), run(greedy, of, max_length=17)
    assert len(set(line.lengths.tolist())) > 3  # they end at different times
    np.testing.assert_array_equal(one.tokens[:, 0], line.tokens)
    np.testing.assert_array_equal(one.lengths[:, 0], line.lengths)
    np.testing.assert_array_equal(one.alignment.weights[:, 0], line.alignment.weights)
    divisors = np.array([PENALTIES[penalty][1](n) for n in line.lengths.tolist()])
    np.testing.assert_allclose(one.scores[:, 0], line.scores / divisors, rtol=1e-6)
    if penalty == "none":
        np.testing.assert_array_equal(one.scores[:, 0], line.scores)


def test_width_one_is_greedy_far_from_zero_where_float32_is_coarse():
    # Sums near -100 have a spacing of 8e-6: symbols closer than that must still be told apart.
    of = same_at_every_step([0.0, 1e-6, -9.0, 2e-6])
    one, line = run(beam, of, max_length=101, width=1, penalty=none), run(greedy, of, max_length=101)
    assert line.scores[0] < -100
    assert np.all(line.tokens == 3) and np.all(one.tokens == 3)


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


def steps_taken(method, of: Model, **options) -> int:
    calls = []

    class Counting(Model):
        def step(self, cache, tokens):
            jax.debug.callback(lambda: calls.append(1))
            return super().step(cache, tokens)

    run(method, Counting(*of), **options)
    jax.effects_barrier()
    return len(calls)


def test_a_search_stops_when_all_have_ended():
    of = model(batch=5, ends=2.0)
    longest = int(run(greedy, of, max_length=101).lengths.max())
    assert 1 < longest < 101 and steps_taken(greedy, of, max_length=101) == longest
    assert steps_taken(greedy, model(ends=-99.0), max_length=13) == 13
    assert steps_taken(beam, of, max_length=101, width=1) == longest


def test_beam_stops_once_nothing_alive_can_win():
    # By hand: after two steps (END) with 1/2 and (x, END) with 1/12 have ended, and the best alive has 1/36.
    of = same_at_every_step(np.log([1 / 6, 1 / 6, 1 / 2, 1 / 6]))
    decoded = run(beam, of, max_length=97, width=2, penalty=none)
    np.testing.assert_allclose(np.exp(decoded.scores), [[1 / 2, 1 / 12]], rtol=1e-5)
    assert steps_taken(beam, of, max_length=97, width=2, penalty=none) == 2
    # Dividing by the length lets a long hypothesis catch up, so there it has to look on.
    assert 20 < steps_taken(beam, of, max_length=97, width=2, penalty=average) < 97


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from equations(getattr(inner, "jaxpr", inner))


def test_cache_leaves_that_never_change_are_not_reordered():
    traced = compiled(beam, max_length=11, width=7).trace(model(batch=2, vocabulary=5)).jaxpr
    (loop,) = (equation for equation in equations(traced.jaxpr) if equation.primitive.name == "while")
    inside = list(equations(loop.params["body_jaxpr"].jaxpr))
    gathered = [equation.invars[0].aval.shape for equation in inside if equation.primitive.name == "gather"]
    assert (14, 17, 19) in gathered  # the trail, which changes
    assert (14, 5) not in gathered  # the memory, which does not


class Hiding(Model):
    """Its memory cannot be seen to be constant."""

    def step(self, cache, tokens):
        logits, cache, alignment = super().step(cache, tokens)
        return logits, cache | {"memory": cache["memory"] + 0}, alignment


def test_a_leaf_known_to_be_constant_changes_no_result():
    of = model(batch=2, ends=1.0)
    known, hidden = (jax.tree.leaves(run(METHODS["beam"], kind(*of), max_length=11)) for kind in (Model, Hiding))
    for one, other in zip(known, hidden, strict=True):
        np.testing.assert_array_equal(one, other)


def test_beam_maps_over_examples():
    of = model(batch=2, ends=1.0)

    def one(bias, state):
        alone = of._replace(bias=bias[None], state=state[None])
        return jax.tree.map(lambda leaf: leaf[0], compiled(beam, max_length=11, width=7)(alone))

    mapped, batched = jax.jit(jax.vmap(one))(of.bias, of.state), run(METHODS["beam"], of, max_length=11)
    for leaf, expected in zip(jax.tree.leaves(mapped), jax.tree.leaves(batched), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_hypotheses_of_probability_zero_are_none():
    # By hand: 1/2 for 0 and for END at every step, the rest impossible: (0, 0), (END) and (0, END) for five places.
    of = same_at_every_step([0.0, -np.inf, 0.0, -np.inf])
    decoded = run(beam, of, max_length=2, width=5, penalty=none, pad=17)
    assert {written(decoded, 0, k) for k in range(5)} == {(END,), (0, 0), (0, END), ()}
    np.testing.assert_allclose(np.exp(decoded.scores), [[1 / 2, 1 / 4, 1 / 4, 0, 0]], rtol=1e-6)
    assert decoded.tokens[0, 3:].tolist() == [[17, 17], [17, 17]] and decoded.lengths[0, 3:].tolist() == [0, 0]


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


def test_penalties_are_the_published_formulas():
    lengths = jnp.array([1.0, 7.0, 13.0])
    np.testing.assert_allclose(gnmt(0.6)(lengths), [1, 2**0.6, 3**0.6], rtol=1e-6)
    np.testing.assert_allclose(power(2.0)(lengths), [1, 49, 169])
    np.testing.assert_allclose(average(lengths), [1, 7, 13])
    np.testing.assert_allclose(none(lengths), [1, 1, 1])
    assert set(search.__all__) >= {"beam", "gnmt", "power", "average", "none", "Decoded"}

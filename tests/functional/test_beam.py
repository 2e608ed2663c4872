"""Beam search against exhaustive enumeration, a plain beam search in Python, and greedy decoding."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import search
from attention_zoo.functional.search import Decoded, average, beam, gnmt, greedy, none, power
from tests.functional.history import (
    END,
    PAD,
    Model,
    all_sequences,
    check,
    compiled,
    model,
    run,
    same_at_every_step,
    steps_taken,
    written,
)

PENALTIES = {
    "gnmt": (gnmt(0.6), lambda n: ((5 + n) / 6) ** 0.6),
    "average": (average, lambda n: n),
    "power": (power(1.7), lambda n: n**1.7),
    "power falling": (power(-0.4), lambda n: n**-0.4),
    "none": (none, lambda n: 1),
}
by_penalty = pytest.mark.parametrize("penalty", PENALTIES)


def given_divisors(step, cache, start, divisors, **options) -> Decoded:
    return beam(step, cache, start, penalty=lambda _: divisors, **options)


def run_beam(of: Model, penalty: str, *, max_length: int, width: int) -> Decoded:
    """Beam search with one of PENALTIES, which comes in as an argument, so that one compilation serves all."""
    divisors = PENALTIES[penalty][0](jnp.arange(1, max_length + 1, dtype=jnp.float32))
    return run(given_divisors, of, divisors, max_length=max_length, width=width)


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


def test_cache_leaves_that_never_change_are_neither_repeated_nor_reordered():
    traced = compiled(beam, max_length=11, width=7).trace(model(batch=2, vocabulary=5)).jaxpr
    (loop,) = (equation for equation in equations(traced.jaxpr) if equation.primitive.name == "while")
    inside = list(equations(loop.params["body_jaxpr"].jaxpr))
    gathered = [equation.invars[0].aval.shape for equation in inside if equation.primitive.name == "gather"]
    assert (2, 7, 17, 19) in gathered  # the trail, which changes
    given = [operand.aval.shape for operand in loop.invars]
    assert (2, 5) in given and (2, 7, 5) not in given and (2, 5) not in gathered  # the memory, which does not


class Hiding(Model):
    """Its memory cannot be seen to be constant."""

    def step(self, cache, tokens):
        logits, cache, alignment = super().step(cache, tokens)
        return logits, cache | {"memory": cache["memory"] + 0}, alignment


def test_a_leaf_known_to_be_constant_changes_no_result():
    of = model(batch=2, ends=1.0)
    known, hidden = (jax.tree.leaves(run(beam, kind(*of), max_length=11, width=7)) for kind in (Model, Hiding))
    for one, other in zip(known, hidden, strict=True):
        np.testing.assert_array_equal(one, other)


def test_beam_maps_over_examples():
    of = model(batch=2, ends=1.0)

    def one(bias, state):
        alone = of._replace(bias=bias[None], state=state[None])
        return jax.tree.map(lambda leaf: leaf[0], compiled(beam, max_length=11, width=7)(alone))

    mapped, batched = jax.jit(jax.vmap(one))(of.bias, of.state), run(beam, of, max_length=11, width=7)
    for leaf, expected in zip(jax.tree.leaves(mapped), jax.tree.leaves(batched), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_hypotheses_of_probability_zero_are_none():
    # By hand: 1/2 for 0 and for END at every step, the rest impossible: (0, 0), (END) and (0, END) for five places.
    of = same_at_every_step([0.0, -np.inf, 0.0, -np.inf])
    decoded = run(beam, of, max_length=2, width=5, penalty=none, pad=17)
    assert {written(decoded, 0, k) for k in range(5)} == {(END,), (0, 0), (0, END), ()}
    np.testing.assert_allclose(np.exp(decoded.scores), [[1 / 2, 1 / 4, 1 / 4, 0, 0]], rtol=1e-6)
    assert decoded.tokens[0, 3:].tolist() == [[17, 17], [17, 17]] and decoded.lengths[0, 3:].tolist() == [0, 0]


def test_penalties_are_the_published_formulas():
    lengths = jnp.array([1.0, 7.0, 13.0])
    np.testing.assert_allclose(gnmt(0.6)(lengths), [1, 2**0.6, 3**0.6], rtol=1e-6)
    np.testing.assert_allclose(power(2.0)(lengths), [1, 49, 169])
    np.testing.assert_allclose(average(lengths), [1, 7, 13])
    np.testing.assert_allclose(none(lengths), [1, 1, 1])
    assert set(search.__all__) >= {"beam", "gnmt", "power", "average", "none", "Decoded"}

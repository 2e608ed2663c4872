"""The mechanisms' costs: all of them are there, the counted work grows as the formulas say, and what is shown of it."""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.models.mechanisms import ALIGNMENTS, PASTS, SCORES
from attention_zoo.training.errors import UserError
from benchmarks import scores


@pytest.fixture(scope="module")
def rows():
    """Dot-product attention, and the inference of a walk that a loop takes along T."""
    given = [("dot", "forward"), ("dot", "forward+gradient"), ("additive, monotonic", "forward")]
    return {pair: scores._measure(*pair, 2, (7, 5, 3), 1) for pair in given}


def test_every_score_alignment_and_past_is_measured():
    models = [scores._model(name, 7, 3) for name in scores.MECHANISMS]
    assert {model.score for model in models} == set(SCORES)
    assert {model.alignment for model in models} == set(ALIGNMENTS)
    assert {model.past for model in models} == set(PASTS)


@pytest.mark.parametrize("direction", ["forward", "forward+gradient"])
@pytest.mark.parametrize("name", [*scores.MECHANISMS, *scores.FUSED])
def test_every_mechanism_can_be_traced(name, direction):
    contestant = scores._contestant(name, direction, 2, 7, 5, 4)
    found = jax.eval_shape(contestant.work, *contestant.arguments)
    context = found if direction == "forward" else found[0]
    assert context.shape == (2, 7, 4)
    if direction != "forward":
        assert [leaf.shape for leaf in found[1][1:]] == [(2, 7, 4), (2, 5, 4)]


def test_the_fused_products_are_those_of_the_plain_mechanisms():
    """With the same weights: what is timed as one mechanism twice is one."""
    for fused, plain in (("scaled dot, no [T, S]", "scaled dot"), ("additive, no [T, S, D]", "additive")):
        one, other = (scores._contestant(name, "forward", 2, 7, 5, 4) for name in (fused, plain))
        leaves, structure = jax.tree.leaves(one.arguments[0]), jax.tree.structure(other.arguments[0])
        variables = jax.tree.unflatten(structure, leaves)
        found, expected = jax.jit(one.work)(*one.arguments), jax.jit(other.work)(variables, *other.arguments[1:])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_work_of_dot_product_attention_grows_as_its_formula(rows):
    """2 B T S D operations for each product, and passes over T S that do not grow with D."""
    for direction, products in (("forward", 2), ("forward+gradient", 6)):
        row = rows["dot", direction]
        assert (row.t, row.s, row.d) == (7, 5, 3)
        assert row.flops >= products * 2 * 2 * 7 * 5 * 3
        assert 0.9 < row.flops_growth["T"] <= 1.02 and 0.9 < row.flops_growth["S"] <= 1.02
        assert 0.5 < row.flops_growth["D"] < 1


def test_a_loop_is_told(rows):
    assert [row.loop for row in rows.values()] == [False, False, True]


def test_an_exponent_is_that_of_a_doubling():
    assert [scores._exponent(3, 6), scores._exponent(5.0, 20.0), scores._exponent(7, 7)] == [1, 2, 0]
    assert scores._exponent(0, 3) is None and scores._exponent(3, None) is None


def test_the_table_has_a_line_for_each_mechanism(rows):
    trained = rows["dot", "forward+gradient"]
    walk = {**asdict(trained), "implementation": "walk", "loop": True, "temporary_bytes": None}
    heads, dot, alone = scores.table([*(asdict(row) for row in rows.values()), walk])
    assert len(heads) == len(dot) == len(alone) and (dot[0], alone[0]) == ("dot", "walk")
    assert dot[1] == f"{rows['dot', 'forward'].median_ms:.2f}" and dot[3] == f"{trained.median_ms:.2f}"
    assert dot[-1] == ", ".join(f"{trained.flops_growth[letter]:.2f}" for letter in "TSD")
    assert alone[1:3] == ["", ""] and alone[5] == "" and alone[-1] == f"{dot[-1]} *"
    assert len(scores.table([])) == 1


def test_what_is_not_finite_is_refused(monkeypatch):
    monkeypatch.setattr(scores, "_infer", lambda model, variables, *arrays: jnp.full((), jnp.nan))
    with pytest.raises(UserError, match="scores, B2 T7 S5 D4: dot differs from dot by nan"):
        scores._measure("dot", "forward", 2, (7, 5, 4), 1)

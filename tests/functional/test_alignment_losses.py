"""Losses of alignments: by hand, their equivalences and limits, padding, zero weights and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.alignment_losses import (
    FLOOR,
    coverage_penalty,
    coverage_score,
    doubly_stochastic_penalty,
    guided_alignment,
    guided_alignment_matrix,
)
from attention_zoo.functional.sparse import sparsemax

# The second example has two real target positions of five and four locations of seven; the third has none at all.
B, T, S = 3, 5, 7
TARGETS = np.arange(T) < np.array([5, 2, 0])[:, None]
SOURCE = np.arange(S) < np.array([7, 4, 0])[:, None]
WEIGHTS = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
by_spans, by_matrix, penalty = (jax.jit(loss) for loss in (guided_alignment, guided_alignment_matrix, coverage_penalty))
score, stochastic = jax.jit(coverage_score), jax.jit(doubly_stochastic_penalty, static_argnames="reduction")


def draw(seed: int = 0) -> np.ndarray:
    """Weights [B, T, S] that are zero in padding."""
    weights = np.random.default_rng(seed).dirichlet(np.ones(S), size=(B, T))
    return np.where(TARGETS[..., None] & SOURCE[:, None], weights, 0)


def spans() -> np.ndarray:
    """Spans of one to three positions, all real, and in each example but the last one position without a span."""
    start = np.random.default_rng(1).integers(0, 2, size=(B, T))
    length = np.random.default_rng(2).integers(1, 3, size=(B, T))
    length[:, 1] = 0
    return np.stack([start, start + length], axis=-1)


def gold() -> np.ndarray:
    """Rows that sum to one over the real locations, and in each example one row of zeros."""
    links = np.where(SOURCE[:, None], np.random.default_rng(3).random((B, T, S)), 0)
    links[:, 1] = 0
    return links / np.maximum(links.sum(-1, keepdims=True), 1e-9)


LOSSES = {
    "guided_alignment": lambda weights: guided_alignment(weights, spans(), TARGETS),
    "guided_alignment_matrix": lambda weights: guided_alignment_matrix(weights, gold(), TARGETS),
    "coverage_penalty": lambda weights: coverage_penalty(weights, TARGETS),
    "coverage_score": lambda weights: jnp.sum(coverage_score(weights, TARGETS, SOURCE)),
    "doubly_stochastic_sum": lambda weights: doubly_stochastic_penalty(weights, TARGETS, SOURCE),
    "doubly_stochastic_mean": lambda weights: doubly_stochastic_penalty(weights, TARGETS, SOURCE, reduction="mean"),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@jax.jit
def together(weights: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Every loss and its gradient: one compilation for all."""
    return {name: jax.value_and_grad(loss)(weights) for name, loss in LOSSES.items()}


def test_guided_alignment_by_hand():
    # The spans hold 3/4 and 1 of the weight; the third position has no span, or is not counted.
    found = by_spans(WEIGHTS, np.array([[0, 2], [0, 1], [2, 2]]))
    np.testing.assert_allclose(found, np.log(4 / 3) / 2, rtol=1e-6)
    masked = by_spans(WEIGHTS, np.array([[1, 3], [0, 1], [0, 1]]), np.array([True, True, False]))
    np.testing.assert_allclose(masked, np.log(2) / 2, rtol=1e-6)


def test_guided_alignment_matrix_by_hand():
    # Row 0: (ln 2 + ln 4) / 2; row 1: ln 1; row 2 has no link.
    links = np.array([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(by_matrix(WEIGHTS, links), 0.75 * np.log(2), rtol=1e-6)
    masked = by_matrix(WEIGHTS, links, np.array([True, False, True]))
    np.testing.assert_allclose(masked, 1.5 * np.log(2), rtol=1e-6)


def test_coverage_penalty_by_hand():
    # c is 0; (1/2, 1/4, 1/4); (3/2, 1/4, 1/4): 0, then 1/2, then 1/4 + 1/4.
    np.testing.assert_allclose(penalty(WEIGHTS), 1 / 3, rtol=1e-6)
    # Without the second row, what the third has seen before is the first alone.
    found = penalty(WEIGHTS, np.array([True, False, True]))
    np.testing.assert_allclose(found, (0 + 0.5) / 2, rtol=1e-6)


def test_coverage_score_by_hand():
    # Sums 3/2, 3/4, 3/4; then without the last row and the first location 1/4, 1/4.
    real, all_real = np.array([True, True, False]), np.array([True, True, True])
    np.testing.assert_allclose(score(WEIGHTS, all_real, all_real), 2 * np.log(3 / 4), rtol=1e-6)
    np.testing.assert_allclose(score(WEIGHTS, real, ~np.array([True, False, False])), 2 * np.log(1 / 4))
    np.testing.assert_allclose(score(WEIGHTS[1:2], real[:1], real), np.log(FLOOR), rtol=1e-6)


def test_doubly_stochastic_penalty_by_hand():
    # Sums 3/2, 3/4, 3/4 in the first example: 1/4 + 1/16 + 1/16. In the second, of one row and two locations, they are
    # short of one by 1/2 and 3/4: 1/4 + 9/16. The third has no target position and is left out.
    weights = np.stack([WEIGHTS, WEIGHTS, WEIGHTS])
    targets = np.array([[True] * 3, [True, False, False], [False] * 3])
    source = np.array([[True] * 3, [True, True, False], [True] * 3])
    found = stochastic(weights, targets, source)
    np.testing.assert_allclose(found, (3 / 8 + 13 / 16) / 2, rtol=1e-6)
    mean = stochastic(weights, targets, source, reduction="mean")
    np.testing.assert_allclose(mean, (3 / 8 / 3 + 13 / 16 / 2) / 2, rtol=1e-6)


def test_spans_of_length_one_are_one_hot_rows(float64):
    positions = np.random.default_rng(0).integers(0, 4, size=(B, T))
    one_hot = np.arange(S) == positions[..., None]
    found = by_spans(draw(), np.stack([positions, positions + 1], axis=-1), TARGETS)
    np.testing.assert_allclose(found, by_matrix(draw(), one_hot.astype(float), TARGETS), rtol=1e-12)


def test_a_permutation_is_perfect():
    # Every position looks at one location of its own, and the gold is that.
    order = np.random.default_rng(0).permutation(T)
    weights, every = np.eye(T)[order], np.ones(T, bool)
    assert by_spans(weights, np.stack([order, order + 1], axis=-1)) == 0
    assert by_matrix(weights, weights) == 0
    assert penalty(weights) == 0
    assert score(weights, every, every) == 0
    assert stochastic(weights, every, every) == 0


def test_looking_at_one_place_all_the_time_is_charged_in_full():
    weights, every = np.tile(np.eye(S)[2], (T, 1)), np.ones(T, bool)
    np.testing.assert_allclose(penalty(weights), (T - 1) / T, rtol=1e-6)
    found = stochastic(weights, every, np.ones(S, bool))
    np.testing.assert_allclose(found, (T - 1) ** 2 + S - 1, rtol=1e-6)


# The terms of example b, from its weights without padding.
FORMULAS = {
    "guided_alignment": lambda a, b: [
        -np.log(a[t, start:end].sum()) for t, (start, end) in enumerate(spans()[b, : len(a)]) if start < end
    ],
    "guided_alignment_matrix": lambda a, b: [
        -np.sum(links * np.log(a[t])) for t, links in enumerate(gold()[b, : len(a), : a.shape[1]]) if links.any()
    ],
    "coverage_penalty": lambda a, b: [np.minimum(a[t], a[:t].sum(0)).sum() for t in range(len(a))],
    "coverage_score": lambda a, b: [np.log(np.minimum(a.sum(0), 1)).sum()],
    "doubly_stochastic_sum": lambda a, b: [((1 - a.sum(0)) ** 2).sum()],
    "doubly_stochastic_mean": lambda a, b: [((1 - a.sum(0)) ** 2).mean()],
}


@every_loss
def test_is_the_formula_on_each_example_without_its_padding(name, float64):
    real = [draw()[b][: TARGETS[b].sum(), : SOURCE[b].sum()] for b in range(2)]
    terms = [term for b, weights in enumerate(real) for term in FORMULAS[name](weights, b)]
    expected = np.sum(terms) if name == "coverage_score" else np.mean(terms)
    np.testing.assert_allclose(together(draw())[name][0], expected, rtol=1e-12)


@every_loss
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_padding_changes_nothing_and_receives_no_gradient(name, garbage):
    # Coverage counts every location: an alignment gives those in padding nothing.
    read = TARGETS[..., None] & (SOURCE[:, None] | (name == "coverage_penalty"))
    clean = jax.device_get(together(np.float32(draw())))[name]
    dirty = jax.device_get(together(np.where(read, draw(), garbage).astype(np.float32)))[name]
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    np.testing.assert_array_equal(dirty[1][~read], 0)
    assert np.abs(clean[1]).max() > 0.01


@every_loss
def test_where_nothing_counts_loss_and_gradient_are_zero(name):
    nobody, nothing = np.zeros((B, T), bool), np.zeros((B, S), bool)
    losses = {
        "guided_alignment": lambda weights: guided_alignment(weights, spans(), nobody),
        "guided_alignment_matrix": lambda weights: guided_alignment_matrix(weights, gold(), nobody),
        "coverage_penalty": lambda weights: coverage_penalty(weights, nobody),
        "coverage_score": lambda weights: jnp.sum(coverage_score(weights, nobody, nothing)),
        "doubly_stochastic_sum": lambda weights: doubly_stochastic_penalty(weights, nobody, SOURCE),
        "doubly_stochastic_mean": lambda weights: doubly_stochastic_penalty(
            weights, TARGETS, nothing, reduction="mean"
        ),
    }
    loss, gradient = jax.jit(jax.value_and_grad(losses[name]))(np.full((B, T, S), np.nan, np.float32))
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_positions_without_a_span_or_a_link_are_left_out():
    nowhere = np.full((B, T, 2), 3)
    assert by_spans(np.float32(draw()), nowhere, TARGETS) == 0
    assert by_matrix(np.float32(draw()), np.zeros((B, T, S), np.float32), TARGETS) == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("loss", ["guided_alignment", "guided_alignment_matrix"])
def test_a_sparse_alignment_that_misses_is_finite_in_value_and_gradient(loss, dtype):
    # Sparsemax gives the first position nothing; the second row is right but for a rest.
    def total(scores: jax.Array) -> jax.Array:
        weights = sparsemax(scores)
        if loss == "guided_alignment":
            return guided_alignment(weights, jnp.array([[0, 1], [1, 2]]))
        return guided_alignment_matrix(weights, jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype))

    run = jax.jit(jax.value_and_grad(total))
    value, gradient = jax.device_get(run(np.array([[-3.0, 1.0, 0.5], [-3.0, 1.0, 0.5]], dtype)))
    np.testing.assert_allclose(value, (-np.log(FLOOR) - np.log(0.75)) / 2, rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], 0)
    # -1/2 log of 0.75: half of the -1 / (2 * 0.75) goes to the position, half comes from the other.
    np.testing.assert_allclose(np.float32(gradient[1]), [0, -1 / 3, 1 / 3], rtol=float(jnp.finfo(dtype).eps))


def test_a_softmax_far_off_still_gets_the_whole_gradient():
    def total(scores: jax.Array) -> jax.Array:
        return guided_alignment(softmax(scores), jnp.array([[0, 1]]))

    value, gradient = jax.jit(jax.value_and_grad(total))(np.array([[-20.0, 20.0, -np.inf]]))
    np.testing.assert_allclose(value, 40, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-1, 1, 0]], atol=1e-6)


def test_gradients_equal_finite_differences(float64):
    # Away from the kinks: no weight equals its coverage, no location's sum is one.
    def every(weights: jax.Array) -> list[jax.Array]:
        weights = jnp.where(TARGETS[..., None] & SOURCE[:, None], weights, 0)
        return [loss(weights) for loss in LOSSES.values()]

    weights = np.random.default_rng(4).uniform(0.1, 0.9, size=(B, T, S))
    check_grads(jax.jit(every), (weights,), order=1, atol=1e-6, rtol=1e-6)


@every_loss
def test_narrow_weights_are_summed_in_float32(name):
    narrow = draw().astype(jnp.bfloat16)
    value, gradient = together(narrow)[name]
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, together(narrow.astype(np.float32))[name][0])


def test_transformations():
    weights = np.float32(draw())
    expected = together(weights)
    checkpointed = {name: jax.value_and_grad(jax.checkpoint(loss)) for name, loss in LOSSES.items()}
    many = jax.jit(jax.vmap(lambda weights: {name: f(weights) for name, f in checkpointed.items()}))
    exported = jax.export.export(together)(weights).call(weights)
    for found in (jax.tree.map(lambda array: array[1], many(np.stack([0 * weights, weights]))), exported):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


@every_loss
def test_compiled_equals_eager_and_wide_numbers_are_taken(name):
    np.testing.assert_allclose(LOSSES[name](draw()), together(np.float32(draw()))[name][0], rtol=1e-5)


def test_the_doubly_stochastic_penalty_refuses_a_reduction_it_does_not_know():
    with pytest.raises(ValueError, match="doubly_stochastic_penalty: reduction is sum or mean; got 'max'"):
        doubly_stochastic_penalty(WEIGHTS, np.ones(3, bool), np.ones(3, bool), reduction="max")

"""Metrics: solved by hand, against plain Python, their properties, padding, vmap and jit."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import metrics

B, T, S = 3, 5, 7
GRID, PICTURE = (1, S), (3, 14)  # cells of 3 x 2 pixels
LENGTHS = np.array([5, 2, 0])
MASK = np.arange(T) < LENGTHS[:, None]
short = st.lists(st.integers(0, 3), max_size=7)
METRICS = {
    function.__name__: function
    for function in (
        metrics.token_accuracy,
        metrics.sequence_accuracy,
        metrics.edit_distance,
        metrics.error_rate,
        metrics.alignment_accuracy,
        metrics.alignment_error_rate,
        metrics.alignment_entropy,
        metrics.map_distance,
    )
} | {"pointing_accuracy": lambda weights, boxes, mask: metrics.pointing_accuracy(weights, boxes, GRID, PICTURE, mask)}
COMPILED = {name: jax.jit(metric) for name, metric in METRICS.items()}
token_accuracy, sequence_accuracy = COMPILED["token_accuracy"], COMPILED["sequence_accuracy"]
edit_distance, error_rate = COMPILED["edit_distance"], COMPILED["error_rate"]
alignment_accuracy, alignment_entropy = COMPILED["alignment_accuracy"], COMPILED["alignment_entropy"]
alignment_error_rate, map_distance = COMPILED["alignment_error_rate"], COMPILED["map_distance"]
pointing_accuracy = jax.jit(metrics.pointing_accuracy, static_argnames=("grid", "picture", "margin"))


def pad(sequence: list[int], size: int = 7, filler: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.array(sequence + [filler] * (size - len(sequence)), np.int32), np.array(len(sequence), np.int32)


def distance(a: list[int], b: list[int], filler: int = 1) -> int:
    return int(edit_distance(*pad(a, filler=filler), *pad(b, size=11, filler=filler)))


def plain_distance(a: list[int], b: list[int]) -> int:
    """Straight from the definition, by recursion."""

    @functools.cache
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return between(len(a), len(b))


def test_token_accuracy_by_hand():
    predicted, targets = np.array([[4, 5, 6], [7, 8, 0]]), np.array([[4, 9, 6], [7, 8, 0]])
    mask = np.array([[True, True, True], [True, False, False]])
    np.testing.assert_allclose(token_accuracy(predicted, targets, mask), 3 / 4)


def test_sequence_accuracy_by_hand():
    predicted, targets = np.array([[4, 5], [7, 9], [6, 8], [3, 3]]), np.array([[4, 5], [7, 8], [6, 0], [2, 2]])
    mask = np.array([[True, True], [True, True], [True, False], [False, False]])
    # The first is right, the second is not, the third is right where it counts, the fourth is filler.
    np.testing.assert_allclose(sequence_accuracy(predicted, targets, mask), 2 / 3)


def test_error_rate_by_hand():
    # kitten -> sitting takes 3, an empty prediction of 4 symbols 4, a filler row nothing: 7 of 7 + 4 symbols.
    rows = [([10, 8, 19, 19, 4, 13], [18, 8, 19, 19, 8, 13, 6]), ([], [1, 2, 3, 4]), ([], [])]
    predicted, predicted_length = (np.stack(part) for part in zip(*(pad(a, 11) for a, _ in rows), strict=True))
    references, reference_length = (np.stack(part) for part in zip(*(pad(b) for _, b in rows), strict=True))
    np.testing.assert_array_equal(edit_distance(predicted, predicted_length, references, reference_length), [3, 4, 0])
    np.testing.assert_allclose(error_rate(predicted, predicted_length, references, reference_length), 7 / 11)


def test_alignment_accuracy_by_hand():
    weights = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6], [0, 0, 0], [1, 0, 0]])
    spans = np.array([[1, 2], [1, 3], [0, 0], [2, 3], [0, 3], [0, 1]])
    # Inside, outside, no span, inside, looks nowhere, inside.
    np.testing.assert_allclose(alignment_accuracy(weights, spans), 3 / 5)
    mask = np.array([True, True, True, False, True, False])
    np.testing.assert_allclose(alignment_accuracy(weights, spans, mask), 1 / 3)


def test_the_end_of_a_span_is_outside_and_its_start_inside():
    weights = np.eye(4)[[1, 3]]
    np.testing.assert_allclose(alignment_accuracy(weights, np.array([[1, 3], [1, 3]])), 1 / 2)


def test_pointing_accuracy_by_hand():
    # Cells of 4 x 5 pixels, two rows of three: their centres are at (2 or 6, 2.5, 7.5 or 12.5).
    weights = np.eye(6, dtype=np.float32)[[0, 4, 5, 2, 3, 1]]
    weights[4] = 0  # looks nowhere
    boxes = np.float32([[0, 0, 4, 5], [0, 5, 4, 10], [6, 12, 8, 13], [0, 0, 2, 15], [0, 0, 8, 15], [0, 0, 0, 0]])
    point = functools.partial(pointing_accuracy, grid=(2, 3), picture=(8, 15))
    # Inside; below; inside, at its upper edge; at its lower edge, which is outside; nowhere; has no box.
    np.testing.assert_allclose(point(weights, boxes), 2 / 5)
    np.testing.assert_allclose(point(weights, boxes, mask=np.array([True, True, False, False, False, True])), 1 / 2)
    # Widened by two pixels the fourth word's box has its cell, and the second's ends where its cell's centre is.
    np.testing.assert_allclose(point(weights, boxes, margin=2.0), 3 / 5)
    np.testing.assert_allclose(point(weights, boxes, margin=2.5), 4 / 5)
    # Rows, then columns: on a grid of three rows of two all cells but the first are elsewhere.
    np.testing.assert_allclose(pointing_accuracy(weights, boxes, (3, 2), (15, 8)), 1 / 5)


def test_map_distance_by_hand():
    weights = np.array([[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    np.testing.assert_allclose(map_distance(weights), (0 + 0.5 + 1) / 3)
    np.testing.assert_allclose(map_distance(weights, np.array([True, True, True, False])), 0.5 / 2)
    # A pair counts if both are real.
    np.testing.assert_allclose(map_distance(weights, np.array([True, False, True, True])), 1)
    assert map_distance(weights[:1]) == 0


def test_alignment_error_rate_by_hand():
    # A = {00, 11, 12, 23}, S = {00, 11, 22}, P = S + {12}: 1 - (2 + 3) / (4 + 3).
    predicted, sure, possible = np.zeros((3, 3, 5), bool)
    predicted[[0, 1, 1, 2], [0, 1, 2, 3]] = True
    sure[[0, 1, 2], [0, 1, 2]] = True
    possible[1, 2] = True
    np.testing.assert_allclose(alignment_error_rate(predicted, sure, possible), 1 - 5 / 7, rtol=1e-6)
    np.testing.assert_allclose(alignment_error_rate(predicted, sure, possible | sure), 1 - 5 / 7, rtol=1e-6)
    np.testing.assert_allclose(alignment_error_rate(sure, sure, possible), 0)
    np.testing.assert_allclose(alignment_error_rate(sure | possible, sure, possible), 0)
    np.testing.assert_allclose(alignment_error_rate(~(sure | possible), sure, possible), 1)


def test_alignment_entropy_by_hand():
    weights = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 0, 0]])
    np.testing.assert_allclose(alignment_entropy(weights), (0 + np.log(2) + np.log(4)) / 3, rtol=1e-6)
    mask = np.array([True, True, False, True])
    np.testing.assert_allclose(alignment_entropy(weights, mask), np.log(2) / 2, rtol=1e-6)
    # Rows that do not sum to one (a Gaussian window) have the entropy of the distribution they are in proportion to.
    np.testing.assert_allclose(alignment_entropy(0.3 * weights), (0 + np.log(2) + np.log(4)) / 3, rtol=1e-6)


def test_alignment_entropy_has_no_infinite_gradient_at_zero():
    weights = np.array([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [0.0, 0.0, 0.0]])
    assert np.all(np.isfinite(jax.jit(jax.grad(alignment_entropy))(weights)))


def test_where_nothing_is_counted_the_result_is_zero():
    tokens, never = np.ones((B, T), np.int32), np.zeros((B, T), bool)
    weights, links, none = np.full((B, T, S), 1 / S), np.zeros((B, T, S), bool), np.zeros(B, np.int32)
    results = [
        token_accuracy(tokens, tokens, never),
        sequence_accuracy(tokens, tokens, never),
        error_rate(tokens, none, tokens, none),
        alignment_accuracy(weights, np.zeros((B, T, 2), np.int32)),
        alignment_accuracy(weights, np.tile(np.array([0, S]), (B, T, 1)), never),
        alignment_error_rate(links, links, links),
        alignment_error_rate(links, links, ~links),
        alignment_entropy(weights, never),
        alignment_entropy(np.zeros((B, T, S))),
        pointing_accuracy(weights, np.zeros((B, T, 4), np.float32), GRID, PICTURE),
        pointing_accuracy(weights, np.tile(np.float32([0, 0, 9, 9]), (B, T, 1)), GRID, PICTURE, never),
        map_distance(weights, never),
    ]
    assert [float(result) for result in results] == [0.0] * len(results)
    # Without a reference symbol the divisor is one: what was written for nothing still counts.
    np.testing.assert_allclose(error_rate(tokens, LENGTHS, tokens, none), LENGTHS.sum())


@hypothesis.given(short, short, st.integers(0, 3))
def test_edit_distance_is_the_plain_one_whatever_the_padding(a, b, filler):
    assert distance(a, b, filler) == plain_distance(a, b)


@hypothesis.given(short, short, short)
def test_edit_distance_is_a_metric(a, b, c):
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))
    assert distance(a, c) <= distance(a, b) + distance(b, c)


def test_edit_distance_of_empty_axes():
    nothing, zero = np.zeros(0, np.int32), np.array(0)
    assert edit_distance(nothing, zero, nothing, zero) == 0
    assert edit_distance(nothing, zero, *pad([1, 2, 3])) == 3
    assert edit_distance(*pad([1, 2, 3]), nothing, zero) == 3


@hypothesis.given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_alignment_metrics_keep_their_bounds_and_do_not_feel_a_scale_or_padding(seed, scale):
    case = cases(seed)
    weights, spans = case["alignment_accuracy"][:2]
    assert 0 <= alignment_accuracy(weights, spans, MASK) <= 1
    # The boxes of one row of cells are spans.
    pointed = COMPILED["pointing_accuracy"](*case["pointing_accuracy"])
    np.testing.assert_allclose(pointed, alignment_accuracy(weights, spans, MASK))
    assert 0 <= map_distance(weights, MASK) <= 1 + 1e-6
    np.testing.assert_allclose(
        alignment_accuracy(scale * weights, spans, MASK), alignment_accuracy(weights, spans, MASK)
    )
    entropy = alignment_entropy(weights, MASK)
    assert 0 <= entropy <= np.log(S) + 1e-6
    np.testing.assert_allclose(alignment_entropy(np.float32(scale) * weights, MASK), entropy, rtol=1e-4)
    garbage = np.where(MASK[..., None], weights, np.float32(1e30))
    np.testing.assert_array_equal(alignment_entropy(garbage, MASK), entropy)
    assert 0 <= alignment_error_rate(*case["alignment_error_rate"]) <= 1


def cases(seed: int = 0) -> dict[str, tuple[np.ndarray, ...]]:
    """Arguments of every metric, with the leading axis B."""
    random = np.random.default_rng(seed)
    predicted, targets = random.integers(0, 3, (2, B, T), dtype=np.int32)
    lengths = random.integers(0, T + 1, B).astype(np.int32)
    weights = random.dirichlet(np.ones(S), (B, T)).astype(np.float32)
    spans = np.sort(random.integers(0, S + 1, (B, T, 2)), axis=-1)
    start, end = spans[..., 0], spans[..., 1]
    boxes = np.stack([0 * start, 2 * start, 3 * (end > start), 2 * end], -1)
    return {
        "token_accuracy": (predicted, targets, MASK),
        "sequence_accuracy": (predicted, targets, MASK),
        "edit_distance": (predicted, lengths, targets, LENGTHS),
        "error_rate": (predicted, lengths, targets, LENGTHS),
        "alignment_accuracy": (weights, spans, MASK),
        "alignment_error_rate": tuple(random.random((3, B, T, S)) < 0.3),
        "alignment_entropy": (weights, MASK),
        "pointing_accuracy": (weights, boxes.astype(np.float32), MASK),
        "map_distance": (weights, MASK),
    }


@pytest.mark.parametrize("name", METRICS)
def test_vmap_is_one_example_after_the_other(name):
    metric, arguments = COMPILED[name], cases()[name]
    one_by_one = [metric(*(np.asarray(argument[example]) for argument in arguments)) for example in range(B)]
    np.testing.assert_allclose(jax.jit(jax.vmap(metric))(*arguments), one_by_one, rtol=1e-6)
    if name == "edit_distance":
        np.testing.assert_array_equal(metric(*arguments), one_by_one)


@pytest.mark.parametrize("name", METRICS)
def test_more_leading_axes_and_jit_change_nothing(name):
    metric, arguments = METRICS[name], cases()[name]
    result = metric(*arguments)
    assert result.dtype == (jnp.int32 if name == "edit_distance" else jnp.float32)
    np.testing.assert_allclose(COMPILED[name](*arguments), result, rtol=1e-6)
    deeper = COMPILED[name](*(argument[None, :, None] for argument in arguments))
    np.testing.assert_allclose(np.squeeze(deeper), result, rtol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_a_wrong_shape_or_dtype_is_refused(name):
    first, *others = cases()[name]
    for wrong in (first[:-1], first[0], first.astype(np.complex64)):
        with pytest.raises(TypeError, match=name):
            METRICS[name](wrong, *others)

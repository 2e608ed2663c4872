"""Sparse alignments: by hand, against the package entmax and optax, at their limits, their masks and gradients."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.loop import scan
from attention_zoo.functional.sparse import entmax15, sparsemax, tempered, top_k

NAN, INF = np.nan, np.inf
ALIGNMENTS = {
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "top_k": partial(top_k, k=2),
    "tempered": partial(tempered, temperature=0.5),
}
every_alignment = pytest.mark.parametrize("name", ALIGNMENTS)
keep, temper, soft = jax.jit(top_k, static_argnames="k"), jax.jit(tempered), jax.jit(softmax)
# A row that sees all, one that sees some, one that sees nothing.
B, T, S = 2, 3, 7
MASK = np.array([[[True] * S, [True, False, True, True, False, True, False], [False] * S]] * B)
Pair = tuple[jax.Array, jax.Array]


@jax.jit
def together(scores: jax.Array, mask: jax.Array | None, cotangents: jax.Array) -> dict[str, Pair]:
    """Weights and the gradient by the scores, of every alignment: one compilation for all."""

    def both(align: Callable) -> Pair:
        weights, pull_back = jax.vjp(lambda scores: align(scores, mask), scores)
        return weights, pull_back(cotangents)[0]

    return {name: both(align) for name, align in ALIGNMENTS.items()}


def compute(name: str, scores: jax.Array, mask: jax.Array | None, cotangents: jax.Array) -> Pair:
    """One of them, as NumPy's arrays, of which an index is no program of its own."""
    return jax.device_get(together(scores, mask, cotangents))[name]


def draw(seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and cotangents, [B, T, S]."""
    normal = np.random.default_rng(seed).normal
    return np.float32(scale * normal(size=(B, T, S))), np.float32(normal(size=(B, T, S)))


BY_HAND = [
    # Sparsemax: tau = (1 + 0.5 - 1) / 2; (0.3 - 1) / 3; a lead of one takes everything.
    ("sparsemax", [1.0, 0.5, -1.0], [0.75, 0.25, 0]),
    ("sparsemax", [0.0, 0.2, 0.1], [0.7 / 3, 1.3 / 3, 1 / 3]),
    ("sparsemax", [1.0, 2.0, 1.0], [0, 1, 0]),
    # Entmax: (0.3 + 0.5)^2 + (0.1 + 0.5)^2 = 1; a lead of two takes everything.
    ("entmax15", [0.6, 0.2, -1.0], [0.64, 0.36, 0]),
    ("entmax15", [-1.0, -3.0, -3.0], [1, 0, 0]),
    ("entmax15", [5.0, 5.0, 5.0], [1 / 3, 1 / 3, 1 / 3]),
    ("top_k", np.log([3.0, 1.0, 4.0]), [3 / 7, 0, 4 / 7]),
    ("top_k", [0.0, 0.0, 0.0], [0.5, 0.5, 0]),
    ("tempered", np.log([1.0, 2.0, 5.0]), [1 / 30, 4 / 30, 25 / 30]),
]


@pytest.mark.parametrize(("name", "scores", "expected"), BY_HAND)
def test_by_hand(name, scores, expected):
    found, _ = compute(name, np.float32([scores]), None, np.zeros((1, 3), np.float32))
    np.testing.assert_allclose(found[0], expected, rtol=2e-6)


MASKED_BY_HAND = [
    ("sparsemax", [0.3, 0.0, 9.0], [0.65, 0.35, 0]),
    ("entmax15", [0.6, 0.2, 9.0], [0.64, 0.36, 0]),
    ("top_k", np.log([1.0, 3.0, 9.0]), [0.25, 0.75, 0]),
    ("tempered", np.log([1.0, 3.0, 9.0]), [0.1, 0.9, 0]),
]


@pytest.mark.parametrize(("name", "scores", "expected"), MASKED_BY_HAND)
def test_masked_by_hand_and_an_empty_row(name, scores, expected):
    mask = np.array([[True, True, False], [False] * 3])
    cotangents = np.float32([[1, 2, 3]] * 2)
    found, gradient = compute(name, np.float32([scores] * 2), mask, cotangents)
    np.testing.assert_allclose(found, [expected, [0] * 3], rtol=2e-6)
    np.testing.assert_array_equal(gradient[1], 0)


def test_gradients_by_hand():
    cotangents = np.float32([[1, 0, 5]])
    # Two in the support: the mean of their cotangents is taken off.
    _, gradient = compute("sparsemax", np.float32([[1, 0.5, -1]]), None, cotangents)
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0]], rtol=1e-6)
    # s = (0.8, 0.6, 0): 0.8 (1 - 0.8 / 1.4) and 0.6 (0 - 0.8 / 1.4).
    _, gradient = compute("entmax15", np.float32([[0.6, 0.2, -1]]), None, cotangents)
    np.testing.assert_allclose(gradient, [[0.48 / 1.4, -0.48 / 1.4, 0]], rtol=1e-6)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_equals_the_package_entmax(name, golden, float64):
    case = golden("entmax_alignments", name)
    weights, gradients = compute(name, case["scores"], case["mask"], case["cotangents"])
    np.testing.assert_allclose(weights, case["weights"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradients, case["gradients"], rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(weights == 0, case["weights"] == 0)


def test_sparsemax_is_the_simplex_projection_of_optax(float64):
    scores = np.random.default_rng(0).normal(size=(B * T, S))
    expected = jax.jit(jax.vmap(optax.projections.projection_simplex))(scores)
    np.testing.assert_allclose(jax.jit(sparsemax)(scores), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("align", [sparsemax, entmax15])
def test_long_rows_sum_to_one_and_have_exact_zeros(align):
    spreads = np.array([[0.0], [1e-5], [0.01], [0.3], [1.0], [30.0]], np.float32)
    weights = np.asarray(jax.jit(align)(spreads * np.float32(np.random.default_rng(0).normal(size=(6, 4099)))))
    assert np.all(weights >= 0)
    np.testing.assert_allclose(weights.sum(-1, dtype=np.float64), 1, atol=2e-6)
    support = (weights > 0).sum(-1)
    np.testing.assert_array_equal(support[:2], 4099)
    assert np.all(np.diff(support[1:]) < 0)
    assert support[3] < 4099 / 2


@pytest.mark.parametrize("align", [sparsemax, entmax15])
@pytest.mark.parametrize("size", [1, 257, 500, 3000])
def test_equal_scores_share_equally(align, size):
    np.testing.assert_allclose(jax.jit(align)(np.full((1, size), 0.7)), np.full((1, size), 1 / size), rtol=1e-5)


@pytest.mark.parametrize("align", [sparsemax, entmax15])
def test_half_of_a_long_row_shares_equally_beside_low_scores(align):
    scores = np.float32([[0] * 1500 + [-0.9] * 1500])
    np.testing.assert_allclose(jax.jit(align)(scores), (scores == 0) / 1500, rtol=1e-5)


def test_gradients_equal_finite_differences(float64):
    scores = np.random.default_rng(3).normal(size=(B, T, S))
    every = jax.jit(lambda scores: [align(scores, MASK) for align in ALIGNMENTS.values()])
    check_grads(every, (scores,), order=1, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("align", [sparsemax, entmax15])
def test_second_derivatives_equal_finite_differences_of_the_first(align, float64):
    scores, cotangents = np.random.default_rng(3).normal(size=(2, B, T, S))
    gradient = jax.jit(jax.grad(lambda scores: jnp.sum(cotangents * align(scores, MASK) ** 2)))
    check_grads(gradient, (scores,), order=1, atol=1e-6, rtol=1e-6)


@every_alignment
def test_adding_a_constant_changes_nothing(name):
    # Multiples of 1/64, so that the sum is exact.
    scores, cotangents = draw()
    scores = np.round(scores * 64) / 64
    clean, shifted = (compute(name, scores + shift, MASK, cotangents) for shift in (np.float32(0), np.float32(1000)))
    jax.tree.map(np.testing.assert_array_equal, shifted, clean)


@every_alignment
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3e38])
def test_what_stands_in_masked_scores_matters_neither_forward_nor_backward(name, garbage):
    scores, cotangents = draw(scale=0.5)
    clean = compute(name, scores, MASK, cotangents)
    dirty = compute(name, np.where(MASK, scores, np.float32(garbage)), MASK, cotangents)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    np.testing.assert_array_equal(dirty[0][~MASK], 0)
    np.testing.assert_array_equal(dirty[1][~MASK], 0)
    assert np.all(np.abs(dirty[1]).max(-1)[:, :2] > 0.01)


@every_alignment
def test_a_score_of_minus_infinity_hides_a_position(name):
    scores, cotangents = draw()
    hidden = compute(name, np.where(MASK, scores, np.float32(-INF)), np.ones_like(MASK), cotangents)
    jax.tree.map(np.testing.assert_array_equal, hidden, compute(name, scores, MASK, cotangents))


@every_alignment
def test_the_lowest_score_is_a_score(name):
    lowest, one = np.full((1, 2), np.finfo(np.float32).min), np.array([[False, True]])
    whole, masked = jax.jit(lambda scores: (ALIGNMENTS[name](scores), ALIGNMENTS[name](scores, one)))(lowest)
    np.testing.assert_allclose(whole, [[0.5, 0.5]], rtol=1e-6)
    np.testing.assert_array_equal(masked, [[0, 1]])


@every_alignment
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_huge_scores_give_finite_weights_and_gradients(name, dtype):
    for seed in range(10):
        scores, cotangents = draw(seed, scale=3.0)
        huge = np.where(np.random.default_rng(seed).random(scores.shape) < 0.5, np.sign(scores) * 1e4, scores)
        found = compute(name, huge.astype(dtype), MASK, cotangents.astype(dtype))
        weights, gradient = (np.asarray(array, np.float32) for array in found)
        assert {array.dtype for array in found} == {jnp.dtype(dtype)}
        assert np.all(np.isfinite(gradient)) and np.all(weights >= 0)
        np.testing.assert_allclose(weights.sum(-1), MASK.any(-1), atol=S * jnp.finfo(dtype).eps)


@every_alignment
def test_bfloat16_is_computed_in_float32(name):
    scores, cotangents = (array.astype(jnp.bfloat16) for array in draw())
    found, _ = compute(name, scores, MASK, cotangents)
    wide, _ = compute(name, scores.astype(np.float32), MASK, cotangents.astype(np.float32))
    np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))


def test_the_given_dtype_comes_back(float64):
    for dtype in ("bfloat16", "float32", "float64"):
        scores = jax.ShapeDtypeStruct((B, T, S), dtype)
        results = jax.eval_shape(together, scores, MASK, scores)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(results)} == {dtype}


@every_alignment
def test_numbers_of_64_bits_are_taken_where_there_are_none(name):
    assert jax.eval_shape(lambda: ALIGNMENTS[name](np.zeros((T, S)), MASK[0])).dtype == jnp.float32


@every_alignment
def test_masks_broadcast_and_no_source_at_all(name):
    scores, cotangents = draw()
    broadcast, _ = compute(name, scores, MASK[0, 1:2], cotangents)
    whole, _ = compute(name, scores, np.broadcast_to(MASK[0, 1:2], scores.shape), cotangents)
    np.testing.assert_array_equal(broadcast, whole)
    assert compute(name, scores[0, :, :0], None, cotangents[0, :, :0])[1].shape == (T, 0)


def test_inside_scan_vmap_and_checkpoint_and_exported():
    (scores, cotangents), mask = draw(), jnp.asarray(MASK)

    def step(constants: jax.Array, count: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, list]:
        scores, mask = row[0][:, None] + constants, row[1][:, None]
        return count + 1, [jax.vmap(jax.checkpoint(align))(scores, mask)[:, 0] for align in ALIGNMENTS.values()]

    @jax.jit
    def stepwise(scores: jax.Array) -> list[jax.Array]:
        rows = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), (scores, mask))
        return [jnp.moveaxis(steps, 0, 1) for steps in scan(step, jnp.zeros(()), jnp.zeros(()), rows)[1]]

    weights, pull_back = jax.vjp(stepwise, scores)
    expected = together(scores, MASK, cotangents)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, weights, [expected[name][0] for name in ALIGNMENTS])
    close(pull_back([cotangents] * len(weights))[0], sum(gradient for _, gradient in expected.values()))
    jax.tree.map(close, jax.export.export(together)(scores, MASK, cotangents).call(scores, MASK, cotangents), expected)


def test_top_k_keeps_the_first_of_equals_and_only_what_is_allowed():
    scores, mask = np.float32([[1, 2, 1, 2, 1]]), np.array([[True, False, True, True, True]])
    share = 1 / (1 + np.e)
    np.testing.assert_allclose(keep(scores, mask, k=2), [[share, 0, 0, 1 - share, 0]], rtol=1e-6)
    np.testing.assert_allclose(keep(scores, mask & (np.arange(5) < 1), k=2), [[1, 0, 0, 0, 0]])


def test_top_k_limits():
    scores, _ = draw()
    np.testing.assert_array_equal(keep(scores, MASK, k=S), soft(scores, MASK))
    np.testing.assert_array_equal(keep(scores, MASK, k=S + 5), soft(scores, MASK))
    first = np.arange(S) == np.where(MASK, scores, -INF).argmax(-1)[..., None]
    np.testing.assert_array_equal(keep(scores, MASK, k=1), first & MASK)


def test_temperature_limits():
    scores, _ = draw()
    np.testing.assert_allclose(temper(scores, MASK, temperature=1.0), soft(scores, MASK), atol=1e-7)
    np.testing.assert_allclose(temper(scores, MASK, temperature=1e9), soft(0 * scores, MASK), rtol=1e-6)
    first = np.arange(S) == np.where(MASK, scores, -INF).argmax(-1)[..., None]
    for low in (1e-3, 1e-38):
        np.testing.assert_array_equal(temper(1e4 * scores, MASK, temperature=low), first & MASK)
    np.testing.assert_array_equal(temper(np.float32([[9e3, 1e4, 1e4]]), temperature=1e-9), [[0, 0.5, 0.5]])


def test_a_temperature_can_be_learned(float64):
    scores = np.random.default_rng(0).normal(size=(B, T, S))
    dirty = np.where(MASK, scores, NAN)
    cool = jax.jit(lambda temperature: tempered(dirty, MASK, temperature=temperature))
    check_grads(cool, (np.array(0.7),), order=1, atol=1e-6, rtol=1e-6)
    assert np.abs(jax.jit(jax.jacfwd(cool))(0.7)).max() > 0.1


@pytest.mark.parametrize("temperature", [1e-20, 1e-12, 1e-3])
def test_a_low_temperature_has_a_finite_gradient(temperature):
    scores, cotangents = draw(scale=1e3)
    loss = jax.jit(lambda theta: jnp.sum(cotangents * tempered(scores, MASK, temperature=theta)))
    assert np.isfinite(jax.jit(jax.grad(loss))(jnp.float32(temperature)))


@pytest.mark.parametrize("temperature", [0, -1.0, NAN, jnp.float32(0)])
def test_tempered_refuses_a_temperature_that_is_not_above_zero(temperature):
    with pytest.raises(ValueError, match="temperature is above zero; got"):
        tempered(jnp.zeros((T, S)), temperature=temperature)


def test_top_k_refuses_to_keep_nothing():
    with pytest.raises(ValueError, match="top_k: k is at least 1; got 0"):
        top_k(jnp.zeros((T, S)), k=0)

"""Softmax alignment: by hand, at its limits, with masks and empty rows, its precision and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional.alignment import Alignment, softmax

NAN, INF = np.nan, np.inf
SCORES = np.log([[1.0, 2.0, 5.0], [4.0, 4.0, 2.0]])
MASK = np.array([[True, True, False], [False, False, False]])


def test_softmax_by_hand():
    np.testing.assert_allclose(softmax(jnp.array(SCORES)), [[0.125, 0.25, 0.625], [0.4, 0.4, 0.2]], rtol=1e-6)


def test_masked_softmax_by_hand():
    np.testing.assert_allclose(softmax(jnp.array(SCORES), MASK), [[1 / 3, 2 / 3, 0], [0, 0, 0]], rtol=1e-6)


def test_mask_broadcasts_over_leading_axes_and_queries():
    scores = jnp.zeros((2, 3, 5))
    mask = jnp.array([[[True, True, False, False, False]], [[False] * 5]])
    expected = np.broadcast_to(np.array([[[0.5, 0.5, 0, 0, 0]], [[0.0] * 5]]), (2, 3, 5))
    np.testing.assert_array_equal(softmax(scores, mask), expected)
    np.testing.assert_array_equal(softmax(scores, mask[0])[1], expected[0])


def test_one_allowed_position_gets_everything():
    mask = np.eye(3, 7, 2, dtype=bool)
    np.testing.assert_array_equal(softmax(jnp.array(np.random.default_rng(0).normal(size=(3, 7))), mask), mask)


def test_agrees_with_jax_where_a_row_has_something():
    scores = np.random.default_rng(0).normal(size=(3, 7), scale=5)
    mask = np.random.default_rng(1).random((3, 7)) < 0.5
    mask[:, 0] = True
    np.testing.assert_allclose(softmax(scores, mask), jax.nn.softmax(scores, where=mask), rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, 3e38])
def test_huge_scores_do_not_overflow(size):
    np.testing.assert_array_equal(softmax(jnp.array([[size, -size, size]])), [[0.5, 0, 0.5]])


def test_the_lowest_score_is_a_score():
    # A fill value must not be mistaken for a score, nor the other way round.
    lowest = jnp.finfo(jnp.float32).min
    np.testing.assert_array_equal(softmax(jnp.full((1, 2), lowest)), [[0.5, 0.5]])
    np.testing.assert_array_equal(softmax(jnp.full((1, 2), lowest), np.array([[True, False]])), [[1, 0]])


def test_a_score_of_minus_infinity_hides_a_position():
    found = softmax(jnp.array([[0.0, -INF, 0.0], [-INF, -INF, -INF]]))
    np.testing.assert_array_equal(found, [[0.5, 0, 0.5], [0, 0, 0]])


def test_no_source_at_all():
    assert softmax(jnp.zeros((3, 0))).shape == (3, 0)


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3e38])
def test_what_stands_in_masked_scores_matters_neither_forward_nor_backward(garbage):
    def loss(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = softmax(scores, MASK)
        return jnp.sum(weights**2), weights

    compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, clean), clean_gradient = jax.device_get(compute(np.float32(SCORES)))
    (_, dirty), dirty_gradient = jax.device_get(compute(np.where(MASK, SCORES, garbage).astype(np.float32)))
    np.testing.assert_array_equal(dirty, clean)
    np.testing.assert_array_equal(dirty_gradient, clean_gradient)
    np.testing.assert_array_equal(dirty_gradient[~MASK], 0)
    assert np.all(np.abs(dirty_gradient[0, :2]) > 0.01)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_in_float32_and_answers_in_the_dtype_of_the_scores(dtype):
    # 521 equal scores: a bfloat16 sum of ones stands still at 256.
    scores = jnp.concatenate([jnp.zeros((1, 521)), jnp.linspace(-3, 3, 521)[None]]).astype(dtype)
    found = softmax(scores)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, softmax(scores.astype(jnp.float32)).astype(dtype))
    np.testing.assert_array_equal(found[0], jnp.asarray(1 / 521, dtype))


def test_nothing_narrower_than_float32_is_computed_with():
    trace = jax.make_jaxpr(softmax)(jnp.zeros((3, 7), jnp.bfloat16))
    widened = {str(output.aval.dtype) for line in trace.eqns for output in line.outvars} - {"bool", "float32"}
    narrow = [line.primitive.name for line in trace.eqns if line.outvars[0].aval.dtype == jnp.bfloat16]
    assert widened == {"bfloat16"}
    assert narrow == ["convert_element_type"]


@pytest.mark.parametrize("mask", [None, MASK, ~MASK])
def test_gradient_equals_finite_differences(mask, float64):
    check_grads(jax.jit(lambda scores: softmax(scores, mask)), (SCORES,), order=1, atol=1e-6, rtol=1e-6)


def test_alignment_is_a_pytree_that_holds_only_what_is_there():
    weights = softmax(jnp.array(SCORES))
    assert len(jax.tree.leaves(Alignment(weights))) == 1
    assert jax.vmap(Alignment)(weights).weights.shape == (2, 3)

"""Masks: what each shows and hides, by hand; combining them; agreement between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import masks

O, I = False, True  # noqa: E741 - hidden and shown, so that a mask can be read as a picture


def test_within_by_hand():
    found = masks.within(jnp.array([[0, 2], [3, 5]]), 3)
    np.testing.assert_array_equal(found, [[[O, O, O], [I, I, O]], [[I, I, I], [I, I, I]]])


def test_padding_is_within_for_every_query():
    found = masks.padding(jnp.array([2, 0]), 3)
    np.testing.assert_array_equal(found, [[[I, I, O]], [[O, O, O]]])


def test_within_of_a_single_length():
    np.testing.assert_array_equal(masks.within(jnp.array(2), 3), [I, I, O])


def test_causal_by_hand():
    np.testing.assert_array_equal(masks.causal(3, 5), [[I, O, O, O, O], [I, I, O, O, O], [I, I, I, O, O]])


def test_causal_with_a_traced_offset():
    # Two tokens are in the cache already: the first new query stands at position 2.
    found = jax.jit(lambda offset: masks.causal(2, 5, offset))(2)
    np.testing.assert_array_equal(found, [[I, I, I, O, O], [I, I, I, I, O]])


def test_window_by_hand():
    found = masks.window(5, 5, left=2, right=1)
    expected = [[I, I, O, O, O], [I, I, I, O, O], [I, I, I, I, O], [O, I, I, I, I], [O, O, I, I, I]]
    np.testing.assert_array_equal(found, expected)


def test_window_with_an_offset():
    np.testing.assert_array_equal(masks.window(2, 5, left=0, right=1, offset=3), [[O, O, O, I, I], [O, O, O, O, I]])


@pytest.mark.parametrize("offset", [-2, 0, 3])
def test_a_window_open_to_the_left_is_causal(offset):
    np.testing.assert_array_equal(masks.window(3, 7, 11, 0, offset), masks.causal(3, 7, offset))


def test_segments_by_hand():
    found = masks.segments(jnp.array([1, 2, 0]), jnp.array([1, 1, 2, 0]))
    np.testing.assert_array_equal(found, [[I, I, O, O], [O, O, I, O], [O, O, O, O]])


@pytest.mark.parametrize("size", [0, 1, 5])
def test_reach_by_hand(size):
    mask = np.arange(size)[None] == np.array([0, 3, -1])[:, None]
    assert masks.reach(jnp.asarray(mask)).tolist() == [min(size, 1), 4 if size == 5 else 0, 0]


def test_combine_allows_what_all_allow():
    found = masks.combine(masks.causal(3, 3), None, masks.padding(jnp.array([2, 0]), 3))
    np.testing.assert_array_equal(found, [[[I, O, O], [I, I, O], [I, I, O]], [[O, O, O]] * 3])


def test_combine_does_not_depend_on_order():
    parts = masks.causal(3, 7), masks.padding(jnp.array([5, 2]), 7), masks.window(3, 7, 1, 1)
    np.testing.assert_array_equal(masks.combine(*parts), masks.combine(*reversed(parts)))


def test_combine_of_nothing_is_none():
    assert masks.combine() is None
    assert masks.combine(None, None) is None


def test_combine_refuses_an_additive_mask():
    with pytest.raises(TypeError, match="masks are boolean, True = may attend; got float32"):
        masks.combine(masks.causal(3, 3), jnp.zeros((3, 3)))

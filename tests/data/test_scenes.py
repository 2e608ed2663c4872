"""Where digits and clutter are put."""

import numpy as np
import pytest

from attention_zoo.data.scenes import OUTSIDE, Layout, in_order, is_clear, place_digits, scatter


def test_reading_order_by_hand():
    """Digits of 8 pixels: (1, 12) is a little higher than (3, 2), but in its line; the others are in a line below."""
    places = np.array([[[20, 31], [3, 2], [1, 12], [17, 9]]] * 2)
    assert is_clear(places, np.array([4, 2]), 8).tolist() == [True, True]
    ordered = in_order(places, np.array([4, 2]), 8)
    assert ordered[0].tolist() == [[3, 2], [1, 12], [17, 9], [20, 31]]
    assert ordered[1].tolist() == [[3, 2], [20, 31], [OUTSIDE] * 2, [OUTSIDE] * 2]


@pytest.mark.parametrize(
    ("down", "across", "clear"),
    [(0, 9, True), (0, 8, False), (4, 9, True), (5, 30, False), (8, 30, False), (9, 0, True), (4, 0, False)],
)
def test_what_is_clear(down, across, clear):
    for sign in (1, -1):
        places = np.array([[[20, 40], [20 + down, 40 + sign * across], [20, 40]]])
        assert is_clear(places, np.array([2]), 8).tolist() == [clear]
        assert is_clear(places, np.array([1]), 8).tolist() == [True]  # the other is not there


def test_being_in_one_line_is_transitive():
    """Wherever the order is clear, lines do not depend on the digit that one begins with."""
    rng = np.random.default_rng(0)
    places = rng.integers(29, size=(40_000, 3, 2))
    places = places[is_clear(places, np.full(40_000, 3), 7)]
    together = np.abs(places[:, :, None, 0] - places[:, None, :, 0]) <= 3
    assert (together == (together[..., None] & together[:, None]).any(2)).all()
    assert 100 < together.all((1, 2)).sum() < len(places)


def test_placements_are_equally_likely():
    """Two digits of 2 pixels on a canvas of 5, every placement counted: chi-squared, four deviations."""
    every = np.stack(np.meshgrid(*[np.arange(4)] * 4, indexing="ij"), -1).reshape(-1, 2, 2)
    possible = every[is_clear(every, np.full(256, 2), 2)]
    possible = np.unique(in_order(possible, np.full(len(possible), 2), 2), axis=0)
    places = place_digits(np.random.default_rng(0), np.full(8_000, 2), 2, 5, 2)
    kinds, counts = np.unique(places, axis=0, return_counts=True)
    np.testing.assert_array_equal(kinds, possible)
    expected = 8_000 / len(kinds)
    freedom = len(kinds) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_there_are_as_many_as_wanted_and_they_reach_the_border():
    used = np.repeat([1, 2, 3], 700)
    places = place_digits(np.random.default_rng(0), used, 3, 29, 8)
    assert is_clear(places, used, 8).all()
    np.testing.assert_array_equal((places[..., 0] != OUTSIDE).sum(1), used)
    assert set(places[:, 0, 0]) == set(places[:, 0, 1]) == set(range(22))


def test_clutter_stays_a_pixel_away_from_the_digits():
    taken = place_digits(np.random.default_rng(0), np.full(23, 2), 3, 40, 8)
    places, full = scatter(np.random.default_rng(1), taken, 8, 11, 5, 40)
    assert not full.any()
    assert places.shape == (23, 11, 2) and places.min() == 0 and places.max() == 35
    touching = 0
    for digits, pieces in zip(taken, places, strict=True):
        free = np.ones((42, 42), bool)  # a pixel of border on every side
        for top, left in digits[:2]:
            free[top : top + 10, left : left + 10] = False
        assert all(free[top + 1 : top + 6, left + 1 : left + 6].all() for top, left in pieces)
        touching += sum(not free[top : top + 7, left : left + 7].all() for top, left in pieces)
    assert touching  # no farther away than it must be


def test_full_canvases_are_one_sentence():
    with pytest.raises(ValueError, match="2 digits of 8 pixels find no room on a canvas of 16 pixels: take a larger"):
        place_digits(np.random.default_rng(0), np.array([1, 2]), 2, 16, 8)
    _, full = scatter(np.random.default_rng(0), np.array([[[2, 2]], [[0, 0]]]), 9, 1, 2, 13)
    np.testing.assert_array_equal(full, [True, False])
    with pytest.raises(ValueError, match="no room for clutter on a canvas of 10 pixels: take a larger one"):
        Layout(10, (1, 1), 9, 1, 2, 0.0).draw(np.random.default_rng(0), 3, 1, 1, 0.0)


def test_digits_that_leave_no_room_for_clutter_are_put_elsewhere():
    # On 13 pixels a digit of 9 has room for a piece of 2 beside it in a corner, and not in the middle.
    scenes = Layout(13, (1, 1), 9, 1, 2, 0.0).draw(np.random.default_rng(0), 211, 1, 1, 0.0)
    _, full = scatter(np.random.default_rng(1), scenes["place"], 9, 1, 2, 13)
    assert not full.any() and len(np.unique(scenes["place"], axis=0)) > 3

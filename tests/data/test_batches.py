from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_zoo.data.batches import (
    FILLER,
    MOST_BUCKETS,
    MOST_PADDING,
    Batches,
    Ragged,
    Table,
    boundaries,
    bucket_of,
    bucket_shapes,
    draw_plan,
    padding,
)

lengths = st.lists(st.integers(1, 23), min_size=1, max_size=40).map(np.array)


def table(rows: int, rng: np.random.Generator) -> Table:
    """Row `r` holds the id `r + 4` only, so that a batch tells its rows."""
    sizes = rng.integers(1, 14, (rows, 2))
    source, target = (Ragged([r + 4] * size for r, size in enumerate(side)) for side in sizes.T)
    return Table(source, target, spans=np.arange(rows * 26).reshape(rows, 13, 2))


def test_ragged_rows_come_back_padded():
    rows = Ragged([[5, 6, 7], [8], []])
    padded, sizes = rows.padded(np.array([1, 0, FILLER, 2]), 5)
    np.testing.assert_array_equal(padded, [[8, 0, 0, 0, 0], [5, 6, 7, 0, 0], [0] * 5, [0] * 5])
    np.testing.assert_array_equal(sizes, [1, 3, 0, 0])
    assert padded.dtype == sizes.dtype == np.int32


def test_no_rows_at_all_can_be_padded():
    assert Ragged([[]]).padded(np.array([0]), 3)[0].tolist() == [[0, 0, 0]]


@given(lengths, st.integers(1, 4))
def test_no_other_widths_pad_less(sizes, count):
    def padding(widths):
        return sum(min(width for width in widths if width >= size) - size for size in sizes)

    distinct = sorted(set(sizes.tolist()))
    found = boundaries(sizes, count)
    every = combinations(distinct, min(count, len(distinct)))
    assert len(found) == min(count, len(distinct))
    assert padding(found) == min(padding(widths) for widths in every if widths[-1] == distinct[-1])


def test_very_long_rows_get_widths_that_hold_them():
    sizes = np.array([3, 700, 9_001, 10_007])
    assert boundaries(sizes, 3)[-1] >= 10_007
    assert bucket_shapes(sizes, sizes, 3)[-1] == (10_007, 10_007)


def test_padding_by_hand():
    source, target = np.array([1, 3, 5]), np.array([2, 2, 1])
    assert padding(source, target, [(5, 2)]) == pytest.approx(7 / 21)
    assert padding(source, target, [(1, 2), (5, 2)]) == pytest.approx(3 / 17)


@given(lengths, lengths)
def test_unless_told_there_are_as_few_buckets_as_leave_little_padding(source, target):
    pairs = min(len(source), len(target))
    source, target = source[:pairs], target[:pairs]
    shapes = bucket_shapes(source, target)
    every = [padding(source, target, bucket_shapes(source, target, count)) for count in range(1, MOST_BUCKETS + 1)]
    few = [count for count, waste in enumerate(every, start=1) if waste <= MOST_PADDING]
    assert shapes == bucket_shapes(source, target, few[0] if few else MOST_BUCKETS)


@given(st.lists(st.tuples(st.integers(1, 19), st.integers(1, 19)), min_size=1, max_size=40), st.integers(1, 5))
def test_every_pair_fits_the_shape_of_its_bucket(pairs, count):
    source, target = np.array(pairs).T
    shapes = bucket_shapes(source, target, count)
    bucket = bucket_of(source, target, shapes)
    assert len(shapes) <= count
    assert shapes[-1] == (source.max(), target.max())
    for row, number in enumerate(bucket):
        assert source[row] <= shapes[number][0]
        assert target[row] <= shapes[number][1]
        assert number == 0 or source[row] > shapes[number - 1][0] or target[row] > shapes[number - 1][1]


buckets = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(np.array)


@given(buckets, st.integers(1, 11), st.integers(0, 99))
def test_an_epoch_sees_every_row_and_repeats_less_than_a_batch(bucket, batch_size, seed):
    plan = draw_plan(bucket, batch_size, np.random.default_rng(seed))
    counts = np.bincount(plan.rows.ravel(), minlength=len(bucket))
    assert counts.min() >= 1
    assert plan.rows.shape == (-(-len(bucket) // batch_size), batch_size)
    assert (counts - 1).sum() < batch_size
    assert counts.max() <= 1 + -(-batch_size // len(bucket))  # the rows that fill up are all different


@given(buckets, st.integers(1, 11))
def test_a_plain_pass_sees_every_row_once(bucket, batch_size):
    plan = draw_plan(bucket, batch_size)
    rows = plan.rows[plan.rows != FILLER]
    assert sorted(rows) == list(range(len(bucket)))
    assert (plan.rows[:-1] != FILLER).all()


@given(buckets, st.integers(1, 11), st.none() | st.integers(0, 9))
def test_no_row_is_in_a_batch_too_narrow_for_it(bucket, batch_size, seed):
    plan = draw_plan(bucket, batch_size, None if seed is None else np.random.default_rng(seed))
    for rows, number in zip(plan.rows, plan.buckets, strict=True):
        assert bucket[rows[rows != FILLER]].max() <= number


@given(buckets, st.integers(1, 11))
def test_all_epochs_have_the_same_shapes_equally_often(bucket, batch_size):
    counts = [sorted(draw_plan(bucket, batch_size, np.random.default_rng(seed)).buckets) for seed in range(3)]
    assert counts[0] == counts[1] == counts[2]


def test_rows_left_over_change_from_epoch_to_epoch():
    bucket = np.repeat([0, 1], [17, 13])
    carried = set()
    for seed in range(40):
        plan = draw_plan(bucket, 7, np.random.default_rng(seed))
        wide = plan.rows[plan.buckets == 1].ravel()
        carried |= set(wide[bucket[wide] == 0].tolist())
    assert carried == set(range(17))  # none of the short rows is always, or never, padded to the wider shape


def test_the_order_follows_from_the_seed_and_changes_with_the_epoch():
    rows = table(53, np.random.default_rng(0))
    shapes = bucket_shapes(rows.source.lengths, rows.target.lengths, 3)
    one, same, other = (Batches(rows, shapes, 7, seed) for seed in (5, 5, 6))
    for step in (0, 3, 8, 20):
        np.testing.assert_array_equal(one[step]["source"], same[step]["source"])
    assert not np.array_equal(one.epoch(0).rows, other.epoch(0).rows)
    assert not np.array_equal(one.epoch(0).rows, one.epoch(1).rows)


def test_steps_can_be_taken_in_any_order():
    rows = table(53, np.random.default_rng(0))
    shapes = bucket_shapes(rows.source.lengths, rows.target.lengths, 3)
    forwards, backwards = Batches(rows, shapes, 7, 5), Batches(rows, shapes, 7, 5)
    expected = [forwards[step] for step in range(30)]
    for step in reversed(range(30)):
        for name, array in backwards[step].items():
            np.testing.assert_array_equal(array, expected[step][name])


@pytest.mark.parametrize("seed", [None, 3])
def test_what_a_row_holds_stays_together(seed):
    rows = table(53, np.random.default_rng(1))
    shapes = bucket_shapes(rows.source.lengths, rows.target.lengths, 3)
    source = Batches(rows, shapes, 7, seed)
    for batch in (source[step] for step in range(source.per_epoch)):
        for position in np.flatnonzero(batch["valid"]):
            row = batch["source"][position, 0] - 4
            width = batch["target_lengths"][position]
            assert batch["target"][position].tolist() == [row + 4] * width + [0] * (batch["target"].shape[1] - width)
            assert (batch["spans"][position, :width] == rows.spans[row, :width]).all()
        filler = ~batch["valid"]
        assert not any(batch[name][filler].any() for name in ("source", "target", "spans", "source_lengths"))


def test_processes_share_the_rows_of_every_batch():
    rows = table(53, np.random.default_rng(2))
    shapes = bucket_shapes(rows.source.lengths, rows.target.lengths, 3)
    whole = Batches(rows, shapes, 6, seed=1)
    shares = [Batches(rows, shapes, 6, seed=1, process_index=index, process_count=3) for index in range(3)]
    for step in range(25):
        for name, array in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([share[step][name] for share in shares]), array)

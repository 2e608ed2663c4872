import json
from itertools import pairwise

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_zoo.data import Pairs, TextData
from attention_zoo.data.batches import Ragged
from attention_zoo.data.packing import Packed, first_fit, packed
from attention_zoo.data.vocabulary import END, Characters
from attention_zoo.functional.attend import attend
from attention_zoo.functional.masks import segments
from tests.quick import quick

SIDES = ("source", "target")


def text(train=61, dev=13, longest=17) -> TextData:
    """All texts are different, so that a text tells its pair."""
    rng = np.random.default_rng(0)

    def pairs(number):
        texts = {"".join(rng.choice(list("abcdefg"), rng.integers(2, longest))): None for _ in range(9 * number)}
        sources = list(texts)[:number]
        return Pairs(sources, [source[::-1] + source[: len(source) // 3] for source in sources])

    letters = Characters("abcdefg")
    splits = {"train": pairs(train), "dev": pairs(dev)}
    return TextData(splits, letters, letters, batch_size=6, max_source=20, max_target=29)


def small(batch_size=3, source_width=31, target_width=37, **sizes):
    return packed(text(**sizes), batch_size, source_width, target_width)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def unpack(batches, side):
    """The sequences of the batches, one after the other as (row, segment number, ids, positions)."""
    found = []
    for place, batch in enumerate(batches):
        for row, numbers in enumerate(batch[f"{side}_segments"]):
            for number in range(1, numbers.max() + 1):
                inside = numbers == number
                ids, positions = batch[side][row][inside], batch[f"{side}_positions"][row][inside]
                found.append(((place, row), number, ids.tolist(), positions.tolist()))
    return found


def test_first_fit_by_hand():
    # Longest first: 5 opens row 0, 4 opens row 1, 3 joins row 1, 2 joins row 0, the other 2 opens row 2, 1 joins it.
    slots = first_fit(np.array([[3], [5], [2], [2], [4], [1]]), np.array([7]))
    kinds = np.array([3, 5, 2, 2, 4, 1])[np.argsort(slots.kind, kind="stable")]  # by kind: 1 2 2 3 4 5
    assert kinds[slots.ranks].tolist() == [2, 5, 3, 4, 1, 2]
    assert slots.first.tolist() == [0, 2, 4, 6]
    assert slots.starts[:, 0].tolist() == [0, 2, 0, 3, 0, 1]


def test_a_batch_by_hand():
    source, target = Ragged([[11, 12, 13], [21], [31, 32]]), Ragged([[14], [24, 25, 26], [34]])
    rows = Packed({"source": source, "target": target}, {"source": 4, "target": 5}, batch_size=3)
    batch = rows.batches()[0]  # shares 3/4 + 1/5, 1/4 + 3/5, 2/4 + 1/5: the first two share row 0
    expected = {
        "source": [[21, 11, 12, 13], [31, 32, 0, 0], [0] * 4],
        "source_segments": [[1, 2, 2, 2], [1, 1, 0, 0], [0] * 4],
        "source_positions": [[0, 0, 1, 2], [0, 1, 0, 0], [0] * 4],
        "target": [[24, 25, 26, 14, 0], [34, 0, 0, 0, 0], [0] * 5],
        "target_segments": [[1, 1, 1, 2, 0], [1, 0, 0, 0, 0], [0] * 5],
        "target_positions": [[0, 1, 2, 0, 0], [0] * 5, [0] * 5],
        "valid": [True, True, False],
    }
    assert {name: array.tolist() for name, array in batch.items()} == expected
    assert {array.dtype for name, array in batch.items() if name != "valid"} == {np.dtype(np.int32)}
    assert rows.waste == pytest.approx(1 - 11 / 27)
    assert rows.note("dev") == (
        "dev: 3 sequences packed into 2 rows of 4 + 5 places, 59.3% of the places in its batches are padding"
    )


def one_by_one(lengths, widths):
    """First fit as it is written in books: the lengths in each row."""
    rows = []
    kinds = np.unique(lengths, axis=0)
    order = kinds[np.argsort(-(kinds / widths).sum(axis=1), kind="stable")]
    counts = [(lengths == size).all(axis=1).sum() for size in order]
    for size in np.repeat(order, counts, axis=0):
        row = next((row for row in rows if (np.sum(row, axis=0) + size <= widths).all()), None)
        if row is None:
            rows.append([size])
        else:
            row.append(size)
    return [sorted(map(tuple, row)) for row in rows]


@given(st.lists(st.tuples(st.integers(1, 11), st.integers(1, 13)), min_size=1, max_size=60))
def test_all_of_a_kind_at_once_is_first_fit_one_by_one(pairs):
    lengths, widths = np.array(pairs), np.array([17, 19])
    slots = first_fit(lengths, widths)
    sizes = lengths[np.argsort(slots.kind, kind="stable")][slots.ranks]
    assert sorted(slots.ranks) == list(range(len(pairs)))
    found = [sorted(map(tuple, sizes[begin:end])) for begin, end in pairwise(slots.first)]
    assert found == one_by_one(lengths, widths)


@given(st.lists(st.integers(1, 23), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 99))
def test_an_epoch_has_every_sequence_once_whatever_the_lengths(lengths, batch_size, seed):
    side = Ragged([[number + 4] * length for number, length in enumerate(lengths)])
    epochs = Packed({"tokens": side}, {"tokens": 23}, batch_size).batches(seed)
    for epoch in range(2):
        batches = [epochs[epoch * epochs.per_epoch + step] for step in range(epochs.per_epoch)]
        found = sorted((ids[0] - 4, len(ids)) for _, _, ids, _ in unpack(batches, "tokens"))
        assert found == list(enumerate(lengths))
        assert all((batch["valid"] == (batch["tokens_segments"] > 0).any(axis=1)).all() for batch in batches)


@pytest.mark.parametrize("epoch", [0, 1])
def test_packed_is_unpacked(epoch):
    data = small()
    count = data.packed("train").per_epoch
    batches = take(iter(data.train(seed=3)), (epoch + 1) * count)[epoch * count :]
    sources, targets = (unpack(batches, side) for side in SIDES)
    assert [entry[:2] for entry in sources] == [entry[:2] for entry in targets]  # the same row and number
    for *_, ids, positions in sources + targets:
        assert positions == list(range(len(ids)))
        assert ids.index(END) == len(ids) - 1
    decode = data.text.source.decode
    found = [(decode(source[2]), decode(target[2])) for source, target in zip(sources, targets, strict=True)]
    expected = zip(data.text.sources("train"), data.text.references("train"), strict=True)
    assert sorted(found) == sorted(expected)


def test_padding_is_zero_and_told_by_segment_0():
    batch = next(iter(small().train(0)))
    for side in SIDES:
        empty = batch[f"{side}_segments"] == 0
        assert empty.any()
        assert not batch[f"{side}_positions"][empty].any()
        assert ((batch[side] == 0) == empty).all()


def test_a_pass_over_a_split_has_every_pair_once():
    data = small(batch_size=4)
    batches = list(data.split("dev"))
    found = [data.text.target.decode(ids) for *_, ids, _ in unpack(batches, "target")]
    assert sorted(found) == sorted(data.text.references("dev"))
    assert sum(int(batch["valid"].sum()) for batch in batches) == data.packed("dev").rows
    same(list(data.split("dev")), batches)
    with pytest.raises(ValueError, match="there is no split 'test': there is train, dev"):
        data.split("test")


def test_empty_rows_are_spread_evenly():
    data = small(batch_size=5)
    assert data.packed("train").rows % 5
    counts = [int(batch["valid"].sum()) for batch in take(iter(data.train(0)), data.packed("train").per_epoch)]
    assert max(counts) - min(counts) <= 1


def test_partners_and_order_change_with_epoch_and_seed():
    def partners(seed, epoch):
        sequences = data.packed("train").batches(seed)._epoch(epoch).drawn
        bounds = data.packed("train").slots.first
        return {frozenset(sequences[a:b].tolist()) for a, b in pairwise(bounds)}

    data = small(train=397, longest=9)
    assert partners(3, 0) == partners(3, 0)
    assert not partners(3, 0) & partners(3, 1)
    assert not partners(3, 0) & partners(4, 0)


@pytest.mark.parametrize("done", [0, 1, 4, 9, 13])
def test_an_iterator_goes_on_exactly_where_it_was(done):
    iterator = iter(small().train(seed=3))
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 11)
    again = iter(small().train(seed=3))
    again.set_state(state)
    same(take(again, 11), expected)


def test_processes_share_a_batch():
    data = small(batch_size=6)
    whole = take(iter(data.train(seed=1)), 9)
    shares = [take(iter(data.train(1, index, 2)), 9) for index in range(2)]
    same([{name: np.concatenate([s[step][name] for s in shares]) for name in whole[0]} for step in range(9)], whole)
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be shared by 4 processes"):
        data.train(1, 0, 4)


def test_train_is_a_grain_data_set_of_the_one_shape_that_is_told():
    data = small()
    assert isinstance(data.train(0), grain.IterDataset)
    (blank,) = data.shapes()
    for batch in take(iter(data.train(0)), 13):
        assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {n: (a.shape, a.dtype) for n, a in blank.items()}
    assert not any(array.any() for array in blank.values())


def realistic(rows=5_003):
    """Lengths of sentences and of their translations: log-normal, the target 5 % longer, give or take 20 %."""
    rng = np.random.default_rng(7)
    source = np.clip(rng.lognormal(3.1, 0.6, rows).round(), 2, 128).astype(int)
    return source, np.clip((source * rng.lognormal(0.05, 0.2, rows)).round(), 2, 128).astype(int)


def waste(rows, sides):
    """The share of padding in an epoch's batches, counted."""
    epochs = rows.batches(seed=0)
    numbers = [epochs[step][f"{side}_segments"] for step in range(epochs.per_epoch) for side in sides]
    return sum((segment == 0).sum() for segment in numbers) / sum(segment.size for segment in numbers)


def test_little_of_the_rows_of_pairs_is_padding():
    sides = {side: Ragged([4] * length for length in part) for side, part in zip(SIDES, realistic(), strict=True)}
    rows = Packed(sides, {"source": 256, "target": 272}, batch_size=16)
    assert rows.waste == pytest.approx(waste(rows, SIDES))
    assert rows.waste < 0.1


def test_hardly_any_of_the_rows_of_one_side_is_padding():
    side = Ragged([4] * length for length in realistic()[0])
    rows = Packed({"tokens": side}, {"tokens": 256}, batch_size=16)
    assert rows.rows < 1.01 * side.lengths.sum() / 256
    assert rows.waste == pytest.approx(waste(rows, ["tokens"]))


def test_the_targets_width_is_in_proportion_unless_told():
    data = packed(text(), 3, 64)
    assert data.widths == {"source": 64, "target": 88}  # 647 + 204 target tokens for 647 source tokens
    assert data.notes[-2].startswith("train: 61 sequences packed into ")
    totals = [sum(len(ids) for *_, ids, _ in unpack(data.split("train"), side)) for side in SIDES]
    assert 0 <= 88 - 64 * totals[1] / totals[0] < 8


def test_segments_isolate():
    numbers = next(iter(small(batch_size=1).train(0)))["source_segments"]
    values = np.random.default_rng(0).normal(size=(1, 31, 5)).astype(np.float32)

    @quick
    def read(values, numbers, chosen):
        """Every sequence's contexts, and the gradient of the chosen ones' sum."""

        def contexts(values):
            found = attend(values, values, values, segments(numbers, numbers))[0]
            return jnp.where(chosen, found, 0).sum(), found

        gradient, found = jax.grad(contexts, has_aux=True)(values)
        return found, gradient

    for number in range(1, numbers.max() + 1):
        inside = numbers[0] == number
        whole, gradient = read(values, numbers, inside[None, :, None])
        alone, first = np.zeros_like(values), np.arange(31) < inside.sum()
        alone[0, first] = values[0, inside]
        contexts, gradient_alone = read(alone, first[None].astype(np.int32), first[None, :, None])
        np.testing.assert_allclose(whole[0, inside], contexts[0, first], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[0, inside], gradient_alone[0, first], rtol=1e-5, atol=1e-6)
        assert not gradient[0, ~inside].any()


def test_a_saved_folder_reads_inputs_the_same_way(tmp_path):
    small().save(tmp_path)
    same([TextData.load(tmp_path).encode_batch(["abc"])], [text().encode_batch(["abc"])])


def test_the_digest_changes_with_the_data_only():
    assert small().digest == small().digest
    others = {small(train=59).digest, small(batch_size=4).digest, small(source_width=32).digest}
    assert len(others | {small(target_width=38).digest, small().digest}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source_width": 16}, "packed: source_width is at least 17, the longest source of train; got 16"),
        ({"target_width": 20}, "packed: target_width is at least 22, the longest target of train; got 20"),
        ({"source_width": 0}, "packed: source_width is at least 1; got 0"),
        ({"batch_size": 0}, "packed: batch_size is at least 1; got 0"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)

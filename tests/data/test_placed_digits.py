"""Digits on a canvas with their names as the caption."""

import json

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from attention_zoo.data import END, digits, placed_digits

SMALL = {"train_examples": 31, "dev_examples": 17, "test_examples": 13}
AGREED = {
    "images": ((7, 40, 40, 1), "float32"),
    "target": ((7, 5), "int32"),
    "target_lengths": ((7,), "int32"),
    "boxes": ((7, 5, 4), "float32"),
    "valid": ((7,), "bool"),
}
NAMES = "zero one two three four five six seven eight nine".split()


@pytest.fixture(scope="module")
def data():
    return placed_digits(7, **SMALL)


@pytest.fixture(scope="module")
def originals():
    """The split and the name of each digit image."""
    known = {}
    for split in ("train", "dev", "test"):
        for batch in digits(100).split(split):
            images, labels = (batch[key][batch["valid"]] for key in ("images", "labels"))
            known |= {image.tobytes(): (split, NAMES[label]) for image, label in zip(images, labels, strict=True)}
    return known


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def crops(batch, row):
    """What is inside each box of a picture, with the id of its word."""
    for step in range(batch["target_lengths"][row] - 1):
        top, left, bottom, right = batch["boxes"][row, step].astype(int)
        yield batch["images"][row, top:bottom, left:right], batch["target"][row, step]


def test_a_batch_is_as_agreed_and_as_told(data):
    batch, (blank,) = next(iter(data.train(0))), data.shapes()
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == AGREED
    assert {name: (array.shape, array.dtype.name) for name, array in blank.items()} == AGREED
    assert not any(array.any() for array in blank.values())
    assert batch["images"].min() == 0 and 0.9 < batch["images"].max() <= 1
    lengths = batch["target_lengths"]
    np.testing.assert_array_equal((batch["target"] == END).argmax(1), lengths - 1)
    assert not batch["target"][np.arange(5) >= lengths[:, None]].any()
    np.testing.assert_array_equal(batch["boxes"].any(-1), np.arange(5) < lengths[:, None] - 1)
    assert batch["valid"].all() and isinstance(data.train(0), grain.IterDataset)
    assert data.target.tokens(range(4, data.target.size)) == NAMES
    assert data.shape == (40, 40, 1) and data.max_target == 5


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_word_is_the_digit_in_its_box_and_of_its_split(originals, split):
    data = placed_digits(7, distort=0, **SMALL)
    found = [
        (originals[image.tobytes()], (split, data.target.tokens([word])[0]))
        for batch in data.split(split)
        for row in range(7)
        for image, word in crops(batch, row)
    ]
    assert len(found) > 20
    assert all(one == other for one, other in found)


def test_references_are_the_captions_in_the_order_of_a_split(data):
    for name in ("train", "dev", "test"):
        rows = [row for batch in data.split(name) for row in batch["target"][batch["valid"]]]
        assert data.references(name) == [data.target.decode(row) for row in rows]
        assert data.every_reference(name) == [[caption] for caption in data.references(name)]
        assert len(rows) == SMALL[f"{name}_examples"]
    assert {len(caption.split()) for caption in data.references("dev")} == {1, 2, 3, 4}


def test_what_fills_up_is_empty(data):
    last = list(data.split("dev"))[-1]
    assert last["valid"].tolist() == [True] * 3 + [False] * 4
    assert all(last[name][:3].any() and not last[name][3:].any() for name in last)


def test_captions_are_read_by_lines_from_the_left(data):
    for batch in data.split("dev"):
        for row in range(7):
            boxes = batch["boxes"][row, : max(batch["target_lengths"][row] - 1, 0)]
            for down, right, *_ in np.diff(boxes, axis=0):
                assert down >= 9 or (abs(down) <= 4 and right >= 9)


def test_clutter_is_one_piece_of_a_training_digit(originals):
    train = np.stack(
        [np.frombuffer(pixels, np.float32) for pixels, (split, _) in originals.items() if split == "train"]
    )
    windows = np.lib.stride_tricks.sliding_window_view(train.reshape(-1, 8, 8), (3, 3), (1, 2))
    known = {window.tobytes() for window in windows.reshape(-1, 9)}
    data = placed_digits(13, clutter=1, piece=3, digits=(1, 1), **SMALL)
    for image, box in zip(
        *((batch := next(iter(data.split("test"))))[key] for key in ("images", "boxes")), strict=True
    ):
        top, left, bottom, right = box[0].astype(int)
        image[top:bottom, left:right] = 0
        rest = np.lib.stride_tricks.sliding_window_view(image[..., 0], (3, 3)).reshape(-1, 9)
        assert any(window.tobytes() in known for window in rest[rest.sum(1) == image.sum()])
        assert image.any()
    assert batch["valid"].all()


def test_no_clutter_leaves_the_digits_alone():
    batch = next(iter(placed_digits(7, clutter=0, **SMALL).split("test")))
    for row in range(7):
        assert batch["images"][row].sum() == pytest.approx(sum(image.sum() for image, _ in crops(batch, row)), rel=1e-6)


def test_half_of_the_training_digits_are_distorted_and_no_held_out_one_is(originals, data):
    (batch,) = take(iter(data.train(0)), 1)
    known = [image.tobytes() in originals for row in range(7) for image, _ in crops(batch, row)]
    assert len(known) > 7 and any(known) and not all(known)
    batch = next(iter(data.split("dev")))
    assert all(image.tobytes() in originals for row in range(7) for image, _ in crops(batch, row))


def test_epochs_and_seeds_differ_and_repeat(data):
    first, second, again, other = (data._epochs("train", seed) for seed in (3, 3, 3, 4))
    assert first.per_epoch == 5
    for step in (0, 4, 5):
        same([first[step]], [second[step]])
    assert not np.array_equal(again[0]["images"], again[5]["images"])
    assert not np.array_equal(again[0]["images"], other[0]["images"])
    same(list(data.split("dev")), list(placed_digits(7, **SMALL).split("dev")))


@pytest.mark.parametrize("done", [0, 4, 5, 11])
def test_an_iterator_goes_on_exactly_where_it_was(data, done):
    iterator = iter(data.train(seed=3))
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    again = iter(data.train(seed=3))
    again.set_state(state)
    same(take(again, 6), take(iterator, 6))


def test_processes_share_a_batch():
    data = placed_digits(6, **SMALL)
    whole = take(iter(data.train(1)), 7)
    shares = [take(iter(data.train(1, index, 3)), 7) for index in range(3)]
    same([{name: np.concatenate([s[step][name] for s in shares]) for name in whole[0]} for step in range(7)], whole)
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be shared by 4 processes"):
        data.train(1, 0, 4)


def test_the_digest_changes_with_data_and_settings(data):
    changes = [{"data_seed": 1}, {"clutter": 5}, {"distort": 0.25}, {"canvas": 41}, {"train_examples": 32}]
    changes += [{"dev_examples": 18}, {"digits": (2, 4)}]
    digests = {placed_digits(7, **{**SMALL, **change}).digest for change in changes} | {
        placed_digits(6, **SMALL).digest
    }
    assert placed_digits(7, **SMALL).digest == data.digest
    assert len(digests | {data.digest}) == len(changes) + 2


def test_mnist_by_name():
    with tfds.testing.mock_data(num_examples=41):
        data = placed_digits(7, source="mnist", size=11, **SMALL)
        batch = next(iter(data.train(0)))
        assert batch["images"].shape == (7, 40, 40, 1)
        assert {tuple(box[2:] - box[:2]) for box in batch["boxes"].reshape(-1, 4) if box.any()} == {(11, 11)}
        assert set(" ".join(data.references("train")).split()) <= set(NAMES)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"digits": (0, 3)}, r"digits: the least number is at least 1 and the largest no less; got \(0, 3\)"),
        ({"digits": (3, 2)}, r"digits: .* got \(3, 2\)"),
        ({"size": 41}, "a digit is 4 to 40 pixels a side, the canvas; got 41"),
        ({"size": 3}, "a digit is 4 to 40 pixels a side, the canvas; got 3"),
        ({"clutter": -1}, "clutter is at least 0 pieces; got -1"),
        ({"piece": 8}, "piece is 1 to 7 pixels, less than a digit; got 8"),
        ({"piece": 0}, "piece is 1 to 7 pixels, less than a digit; got 0"),
        ({"distort": -0.1}, "distort is at least 0 and below 1; got -0.1"),
        ({"distort": 1}, "distort is at least 0 and below 1; got 1"),
        ({"test_examples": 0}, "test_examples is at least 1; got 0"),
        ({"held_out": 0}, "held_out is 1 to 86 images of every class; got 0"),
        ({"batch_size": 0}, "batch_size and three sizes of shape are at least 1; got 0"),
        ({"canvas": 16}, "4 digits of 8 pixels find no room on a canvas of 16"),
    ],
)
def test_settings_that_make_no_data(setting, message):
    with pytest.raises(ValueError, match=message):
        placed_digits(**{**SMALL, **setting})

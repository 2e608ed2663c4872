"""One digit anywhere on a large canvas, with clutter and without."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from attention_zoo.data import GlimpseImages, cluttered_digits, translated_digits
from attention_zoo.data.canvases import glyphs

SMALL = {"train_examples": 31, "dev_examples": 17, "test_examples": 13}


@pytest.fixture(scope="module")
def originals():
    """The split and the class of each digit image at 20 pixels."""
    known = glyphs("digits", 20, 18, 0, None)
    return {
        image.tobytes(): (split, label)
        for split, part in known.splits.items()
        for image, label in zip(part.images, part.labels, strict=True)
    }


def inside(batch, row):
    top, left, bottom, right = batch["boxes"][row].astype(int)
    return batch["images"][row, top:bottom, left:right, 0]


@pytest.mark.parametrize("make", [translated_digits, cluttered_digits])
def test_a_batch_is_as_agreed_and_as_told(make):
    data = make(7, canvas=61, **SMALL)
    agreed = {
        "images": ((7, 61, 61, 1), "float32"),
        "labels": ((7,), "int32"),
        "boxes": ((7, 4), "float32"),
        "valid": ((7,), "bool"),
    }
    for batch in (next(iter(data.train(0))), data.shapes()[0]):
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == agreed
    assert not any(array.any() for array in data.shapes()[0].values())
    assert data.labels == tuple("0123456789")
    last = list(data.split("dev"))[-1]
    assert last["valid"].tolist() == [True] * 3 + [False] * 4
    assert not any(array[3:].any() for array in last.values())


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_box_has_the_digit_of_the_label_and_of_the_split(originals, split):
    for data in (translated_digits(7, distort=0, **SMALL), cluttered_digits(7, distort=0, **SMALL)):
        for batch in data.split(split):
            for row in np.flatnonzero(batch["valid"]):
                assert originals[inside(batch, row).tobytes()] == (split, batch["labels"][row])


def test_the_rest_is_empty_or_clutter():
    plain, cluttered = (next(iter(make(13, **SMALL).split("test"))) for make in (translated_digits, cluttered_digits))
    for row in range(13):
        assert plain["images"][row].sum() == inside(plain, row).sum()
        pixels = np.count_nonzero(cluttered["images"][row]) - np.count_nonzero(inside(cluttered, row))
        assert 0 < pixels <= 4 * 8 * 8


def test_digits_reach_every_edge_of_the_canvas():
    data = translated_digits(31, canvas=22, train_examples=310)
    boxes = np.concatenate([batch["boxes"] for batch in data.split("train")])
    assert set(boxes[:, 0]) == set(boxes[:, 1]) == {0, 1, 2}
    assert (boxes[:, 2:] - boxes[:, :2] == 20).all()


def test_training_digits_are_distorted_and_held_out_ones_are_not(originals):
    data = translated_digits(7, **SMALL)
    train, dev = next(iter(data.train(0))), next(iter(data.split("dev")))
    assert not any(inside(train, row).tobytes() in originals for row in range(7))
    assert all(inside(dev, row).tobytes() in originals for row in range(7))


def test_train_is_new_every_epoch_and_follows_from_the_seed():
    data = cluttered_digits(7, **SMALL)
    iterator = iter(data.train(1))
    batches = [next(iterator) for _ in range(6)]
    state = json.loads(json.dumps(iterator.get_state()))
    again, shares = iter(data.train(1)), [iter(data.train(1, index, 7)) for index in range(7)]
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["images"], next(iterator)["images"])
    for batch in batches:
        parts = [next(share) for share in shares]
        for name, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    assert not np.array_equal(batches[0]["images"], batches[5]["images"])
    assert not np.array_equal(batches[0]["images"], next(iter(data.train(2)))["images"])


def test_a_large_canvas_has_the_same_digits():
    """The same scenes but for the places, at 17 times the area."""
    small, large = (translated_digits(7, canvas=canvas, **SMALL) for canvas in (60, 251))
    one, other = next(iter(small.split("dev"))), next(iter(large.split("dev")))
    assert other["images"].shape == (7, 251, 251, 1)
    assert np.array_equal(one["labels"], other["labels"])
    assert all(np.array_equal(inside(one, row), inside(other, row)) for row in range(7))


def test_the_digest_changes_with_data_and_settings():
    changes = [{"data_seed": 1}, {"clutter": 5}, {"canvas": 61}, {}]
    digests = [cluttered_digits(7, **{**SMALL, **change}).digest for change in changes]
    assert len({*digests, translated_digits(7, **SMALL).digest, cluttered_digits(6, **SMALL).digest}) == 6
    assert cluttered_digits(7, **SMALL).digest == digests[-1]


def test_a_saved_folder_knows_the_classes(tmp_path):
    data = translated_digits(7, canvas=61, **SMALL)
    data.save(tmp_path)
    again = GlimpseImages.load(tmp_path)
    assert (again.labels, again.batch_size, again.shape) == (data.labels, 7, (61, 61, 1))
    (tmp_path / "glimpse.json").write_text("{}")
    with pytest.raises(ValueError, match=r"glimpse.json is damaged or was not written by this program"):
        GlimpseImages.load(tmp_path)


def test_mnist_by_name():
    with tfds.testing.mock_data(num_examples=41):
        batch = next(iter(cluttered_digits(7, source="mnist", size=28, **SMALL).train(0)))
    assert ((batch["boxes"][:, 2:] - batch["boxes"][:, :2]) == 28).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"canvas": 19}, "a digit is 4 to 19 pixels a side, the canvas; got 20"),
        ({"piece": 20}, "piece is 1 to 19 pixels, less than a digit; got 20"),
        ({"train_examples": 0}, "train_examples is at least 1; got 0"),
        ({"canvas": 21}, "no room for clutter on a canvas of 21 pixels"),
    ],
)
def test_settings_that_make_no_data(setting, message):
    with pytest.raises(ValueError, match=message):
        cluttered_digits(**{**SMALL, **setting})

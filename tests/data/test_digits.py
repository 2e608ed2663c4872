import json
import sys

import grain
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from attention_zoo.data.digits import DigitsConfig, digits, tfds_images
from attention_zoo.data.images import Images, LabelledImages, moved
from attention_zoo.training import Experiment, fit, optimizer


@pytest.fixture(scope="module")
def whole():
    return digits(batch_size=64)


def make(train=61, dev=13, batch_size=6, **settings):
    """Images of 5 x 7 pixels of 3 channels; the first pixel tells the row."""
    rng = np.random.default_rng(0)

    def images(count):
        pixels = rng.integers(1, 256, (count, 5, 7, 3)).astype(np.uint8)
        pixels[:, 0, 0, 0] = np.arange(count)
        return Images(pixels, np.arange(count) % 4)

    splits = {"train": images(train), "dev": images(dev)}
    return LabelledImages(splits, ["a", "b", "c", "d"], batch_size=batch_size, **settings)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def real(data, name):
    """The images and labels of a split, without those that fill up."""
    return [np.concatenate([batch[key][batch["valid"]] for batch in data.split(name)]) for key in ("images", "labels")]


def test_the_splits_are_scikit_learns_images_each_once(whole):
    images, labels = load_digits(return_X_y=True)
    parts = [real(whole, name) for name in ("train", "dev", "test")]
    found = {(image.tobytes(), int(label)) for part in parts for image, label in zip(*part, strict=True)}
    expected = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    assert [len(part[1]) for part in parts] == [1_437, 180, 180]
    assert found == {(image.tobytes(), int(label)) for image, label in zip(expected, labels, strict=True)}
    assert len(found) == 1_797  # no image is there twice, so none is in two splits


def test_the_splits_are_balanced(whole):
    train, dev, test = (np.bincount(real(whole, name)[1]).tolist() for name in ("train", "dev", "test"))
    assert dev == test == [18] * 10
    assert train == (np.bincount(load_digits().target) - 36).tolist()


def test_a_batch_is_as_agreed_and_as_told(whole):
    batch, (blank,) = next(iter(whole.train(0))), whole.shapes()
    agreed = {"images": ((64, 8, 8, 1), "float32"), "labels": ((64,), "int32"), "valid": ((64,), "bool")}
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == agreed
    assert {name: (array.shape, array.dtype.name) for name, array in blank.items()} == agreed
    assert not any(array.any() for array in blank.values())
    assert (batch["images"].min(), batch["images"].max()) == (0, 1)
    assert batch["valid"].all()
    assert whole.labels == tuple("0123456789")
    assert isinstance(whole.train(0), grain.IterDataset)


def test_seed_and_share_decide_the_split_and_stand_in_the_name(tmp_path, whole):
    assert digits(data_dir=tmp_path).digest == whole.digest != digits(data_dir=tmp_path, data_seed=1).digest
    assert len(real(digits(data_dir=tmp_path, held_out=3), "test")[1]) == 30
    assert len({DigitsConfig().name, DigitsConfig(held_out=3).name, DigitsConfig(data_seed=1).name}) == 3
    assert tfds.builder("digits").builder_config.held_out == 18


@pytest.mark.parametrize("held_out", [0, 87])
def test_settings_that_make_no_data(held_out):
    with pytest.raises(ValueError, match=f"digits: held_out is 1 to 86 images of every class; got {held_out}"):
        digits(held_out=held_out)
    assert np.bincount(load_digits().target).min() >= 2 * 86 + 1


def test_without_scikit_learn_it_is_one_sentence(tmp_path, monkeypatch, whole):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"cannot be prepared in .*: the digits come with the package scikit-learn"):
        digits(data_dir=tmp_path)
    assert digits(batch_size=64).digest == whole.digest  # prepared before


def test_an_epoch_has_every_image_and_few_again():
    data = make()
    seen = [round(image[0, 0, 0] * 255) for b in take(iter(data.train(seed=1)), 11) for image in b["images"]]
    assert (set(seen), len(seen)) == (set(range(61)), 66)


def test_a_split_is_read_once_in_its_own_order():
    batches = list(make().split("dev"))
    assert [int(batch["valid"].sum()) for batch in batches] == [6, 6, 1]
    np.testing.assert_array_equal(real(make(), "dev")[1], np.arange(13) % 4)
    assert not any(batches[-1][name][1:].any() for name in ("images", "labels"))
    with pytest.raises(ValueError, match="there is no split 'test': there is train, dev"):
        make().split("test")


@pytest.mark.parametrize("done", [0, 1, 10, 11, 23])
def test_an_iterator_goes_on_exactly_where_it_was(done):
    iterator = iter(make(shift=1).train(seed=3))
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 13)
    again = iter(make(shift=1).train(seed=3))
    again.set_state(state)
    same(take(again, 13), expected)


def test_processes_share_a_batch():
    data = make(shift=2)
    whole = take(iter(data.train(seed=1)), 13)
    shares = [take(iter(data.train(1, index, 3)), 13) for index in range(3)]
    same([{name: np.concatenate([s[step][name] for s in shares]) for name in whole[0]} for step in range(13)], whole)
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be shared by 4 processes"):
        data.train(1, 0, 4)


def test_shifts_follow_from_seed_epoch_and_image():
    data, still = make(shift=1), make()
    same(list(data.split("dev")), list(still.split("dev")))
    originals, ways = real(still, "train")[0], np.zeros((2, 61), int)
    for epoch in range(2):
        for step in range(epoch * 11, epoch * 11 + 11):
            for image in data._epochs("train", 3)[step]["images"]:
                row, way = whence(image, originals)
                assert ways[epoch, row] in (0, way)  # the same whenever it comes in an epoch
                ways[epoch, row] = way
    assert set(ways.ravel()) == set(range(1, 10))  # all nine ways
    assert (ways[0] != ways[1]).mean() > 0.5
    assert not np.array_equal(data._epochs("train", 3)[0]["images"], data._epochs("train", 4)[0]["images"])


def whence(image, originals):
    """The row whose image it is and the number, from 1, of the way it was moved: exactly one."""
    ways = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    rows = np.stack([moved(originals, np.array([way] * len(originals))) for way in ways])
    (found,) = np.argwhere((rows == image).all(axis=(2, 3, 4)))
    return int(found[1]), int(found[0]) + 1


def test_the_digest_changes_with_the_data_only():
    others = {make(train=59).digest, make(batch_size=4).digest, make(shift=1).digest, make(peak=254).digest}
    assert make().digest == make().digest
    assert len(others | {make().digest}) == 5


def test_a_saved_folder_knows_the_classes(tmp_path):
    make(shift=1).save(tmp_path)
    again = LabelledImages.load(tmp_path)
    assert (again.labels, again.batch_size, again.peak, again.shift) == (("a", "b", "c", "d"), 6, 255, 1)
    with pytest.raises(ValueError, match="there is no split 'train': there is none at all"):
        again.train(0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"classes": 3, "batch_size": 2}', '{"classes": [], "size": 1}'])
def test_a_damaged_folder_is_one_sentence(tmp_path, content):
    make().save(tmp_path)
    (tmp_path / "images.json").write_text(content)
    with pytest.raises(ValueError, match=r"images.json is damaged or was not written by this program"):
        LabelledImages.load(tmp_path)
    (tmp_path / "images.json").unlink()
    with pytest.raises(ValueError, match=r"images.json cannot be read: No such file"):
        LabelledImages.load(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((3, 5, 7), [0, 1, 2], r"train: wanted images \[rows, height, .* got \[3, 5, 7\] and \[3\]"),
        ((3, 5, 7, 1), [0, 1], r"got \[3, 5, 7, 1\] and \[2\]"),
        ((0, 5, 7, 1), [], r"got \[0, 5, 7, 1\] and \[0\]"),
        ((3, 5, 7, 1), [0, 1, 4], "train: labels are 0 to 3; got 0 to 4"),
        ((3, 5, 7, 1), [0, -1, 2], "train: labels are 0 to 3; got -1 to 2"),
    ],
)
def test_images_that_are_none(images, labels, message):
    split = Images(np.zeros(images, np.uint8), np.array(labels, int))
    with pytest.raises(ValueError, match=message):
        LabelledImages({"train": split}, "abcd", batch_size=2)


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"peak": 0}, {"shift": -1}])
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match="batch_size and peak are at least 1 and shift at least 0; got"):
        make(**setting)


@pytest.fixture
def mocked():
    with tfds.testing.mock_data(num_examples=41):
        yield


@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_a_data_set_of_images_by_name(mocked, name, shape):
    data = tfds_images(name, batch_size=5, shift=1)
    images = next(iter(data.train(0)))["images"]
    assert (images.shape, images.dtype) == ((5, *shape), np.float32)
    assert 0.9 < images.max() <= 1
    assert len(data.labels) == 10
    assert data.notes == []


class Halves(tfds.core.GeneratorBasedBuilder):
    """Train alone, as many data sets have it, with every image there twice."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Tensor(shape=(5, 7, 1), dtype=np.uint8)
        features = tfds.features.FeaturesDict({"picture": image, "kind": tfds.features.ClassLabel(names=["no", "yes"])})
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("picture", "kind"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for row in range(82):
            yield row, {"picture": np.full((5, 7, 1), row // 2, np.uint8), "kind": row // 2 % 2}


def test_missing_splits_are_held_out_and_equal_images_stay_together(tmp_path):
    data = tfds_images("halves", batch_size=7, data_dir=tmp_path)
    assert data.labels == ("no", "yes")
    assert data.notes[0].endswith("of 82 training images held out, as no dev was given")
    rows = {name: (real(data, name)[0][:, 0, 0, 0] * 255).round().astype(int) for name in ("train", "dev", "test")}
    assert sorted(np.concatenate(list(rows.values()))) == sorted([*range(41), *range(41)])
    assert all((real(data, name)[1] == rows[name] % 2).all() for name in rows)
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert rows[one].size
        assert not set(rows[one]) & set(rows[other])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_thing", "has no data set 'no_such_thing'"),
        ("oxford_flowers102", r"oxford_flowers102/.* has no images of one size with a class each"),
        ("ted_hrlr_translate/pt_to_en", r"ted_hrlr_translate/.* has no images of one size with a class each"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(mocked, name, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        tfds_images(name)


def test_fit_trains_on_it(whole, tmp_path):
    def logits(params, images):
        return images.reshape(-1, 64) @ params["kernel"] + params["bias"][None]

    def objective(params, batch, key):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, batch["images"]), batch["labels"])
        return losses.mean(), {}

    def evaluate(params, split):
        images, labels = real(whole, split)
        return {"accuracy": float((np.asarray(logits(params, images)).argmax(-1) == labels).mean())}

    run = Experiment(
        name="digits",
        data=whole,
        init=lambda key, batch: {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)},
        objective=objective,
        optimizer=optimizer("adam", 0.02),
        evaluate=evaluate,
        best_metric="accuracy",
        predict=None,
        draw=lambda params, folder: None,
        steps=90,
        batch_size=64,
    )
    assert fit(run, tmp_path)["metrics"]["accuracy"] > 0.9
    assert LabelledImages.load(tmp_path).labels == whole.labels

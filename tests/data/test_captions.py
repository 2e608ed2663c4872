"""The user's own pictures with captions, and COCO's."""

import json
import sys

import matplotlib.image
import numpy as np
import pytest
import tensorflow_datasets as tfds

from attention_zoo.data import END, UNKNOWN, CaptionedImages, coco_captions, image_captions
from attention_zoo.data.captions import EXPECTED, plain_words, read_captions
from attention_zoo.data.images import read_picture
from attention_zoo.data.pictures import resized

PICTURES = 43


def write(folder, lines=None):
    """Pictures of five sizes; number n has n % 3 + 1 captions."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    own = []
    for number in range(PICTURES):
        values = rng.integers(0, 256, (7 + number % 5, 11, 3)).astype(np.uint8)
        matplotlib.image.imsave(folder / f"{number}.png", values)
        own += [f"{number}.png\tcaption {k} of picture number{number}" for k in range(number % 3 + 1)]
    (folder / "captions.tsv").write_text("\n".join(own if lines is None else lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def data(folder):
    return image_captions(folder, size=(5, 6), batch_size=7)


def shown(data, batches):
    """The (caption, picture) of every valid row."""
    for batch in batches:
        for row in np.flatnonzero(batch["valid"]):
            yield data.target.decode(batch["target"][row]), batch["images"][row]


def number(caption):
    return int(caption.split("number")[1])


def test_a_batch_is_as_agreed_and_as_told(data):
    batch, (blank,) = next(iter(data.train(0))), data.shapes()
    agreed = {
        "images": ((7, 5, 6, 3), "float32"),
        "target": ((7, 6), "int32"),
        "target_lengths": ((7,), "int32"),
        "boxes": ((7, 6, 4), "float32"),
        "valid": ((7,), "bool"),
    }
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == agreed
    assert {name: (array.shape, array.dtype.name) for name, array in blank.items()} == agreed
    assert (batch["target"][:, 5] == END).all() and (batch["target_lengths"] == 6).all()
    assert not batch["boxes"].any() and data.resize
    assert data.notes == ["dev: 2 of 43 pictures held out", "test: 2 of 43 pictures held out"]


def test_every_picture_is_in_one_split_and_has_its_own_captions(folder, data):
    seen = {}
    for split in ("train", "dev", "test"):
        for captions in data.every_reference(split):
            assert captions == [f"caption {k} of picture number{number(captions[0])}" for k in range(len(captions))]
            assert seen.setdefault(number(captions[0]), split) == split
            assert len(captions) == number(captions[0]) % 3 + 1
    assert sorted(seen) == list(range(PICTURES))
    assert sorted(seen.values()).count("dev") == sorted(seen.values()).count("test") == 2
    assert [caption for caption, _ in shown(data, data.split("train"))] == data.references("train")
    for split in ("train", "dev", "test"):
        for caption, (_, image) in zip(data.references(split), shown(data, data.split(split)), strict=True):
            expected = resized(read_picture(folder / f"{number(caption)}.png", coloured=True), 5, 6)
            np.testing.assert_allclose(image, expected, atol=0.51 / 255)


def test_an_epoch_shows_every_caption_once(data):
    expected = sorted(caption for captions in data.every_reference("train") for caption in captions)
    iterator, epoch = iter(data.train(3)), -(-len(expected) // 7)
    found = [caption for caption, _ in shown(data, [next(iterator) for _ in range(epoch)])]
    assert sorted(set(found)) == expected and len(found) == epoch * 7
    again = iter(data.train(3))
    assert [caption for caption, _ in shown(data, [next(again)])] == found[:7]
    shares = [next(iter(data.train(3, index, 7)))["target"] for index in range(7)]
    np.testing.assert_array_equal(np.concatenate(shares), next(iter(data.train(3)))["target"])


def test_equal_pictures_are_in_one_split(tmp_path):
    lines = [f"{number}.png\tnumber{number}" for number in range(PICTURES)]
    write(tmp_path, lines + [f"copy{number}.png\tnumber{number} again" for number in range(PICTURES)])
    for number_ in range(PICTURES):
        (tmp_path / f"copy{number_}.png").write_bytes((tmp_path / f"{number_}.png").read_bytes())
    data = image_captions(tmp_path, size=(5, 6), batch_size=7)
    for split in ("dev", "test"):
        numbers = sorted(data.references(split))
        assert len(numbers) >= 4 and numbers[1::2] == [f"{caption} again" for caption in numbers[::2]]


def test_a_saved_folder_resizes_new_pictures(folder, data, tmp_path):
    data.save(tmp_path)
    again = CaptionedImages.load(tmp_path)
    batch = again.encode_batch([str(folder / "0.png"), str(folder / "1.png")])
    assert batch["images"].shape == (2, 5, 6, 3)
    assert again.target.symbols == data.target.symbols


def test_the_vocabulary_has_a_limit(folder):
    data = image_captions(folder, size=(5, 6), batch_size=7, vocabulary_size=7)
    assert data.target.symbols == ("caption", "of", "picture")
    rows = np.concatenate([batch["target"][batch["valid"]] for batch in data.split("dev")])
    assert (rows == UNKNOWN).sum() == 4  # the place and the picture's own number, of both


def test_long_captions_are_left_out(tmp_path):
    lines = [f"{n}.png\t{'very ' * (n % 3 == 0)}short number{n}" for n in range(PICTURES)]
    write(tmp_path, [*lines, "0.png\tshort number0"])
    data = image_captions(tmp_path, size=(5, 6), batch_size=7, max_target=3)
    assert any(note.endswith("captions left out, over 2 words") for note in data.notes)
    kept = {split: data.every_reference(split) for split in ("train", "dev", "test")}
    assert sum(map(len, kept.values())) == PICTURES - 14
    (first,) = [captions for part in kept.values() for captions in part if number(captions[0]) == 0]
    assert first == ["short number0", "very short number0"]  # the one that is shown, then the others
    with pytest.raises(ValueError, match=r"train: all \d+ captions have more than 1 words"):
        image_captions(tmp_path, size=(5, 6), batch_size=7, max_target=2)


def test_the_digest_changes_with_data_and_settings(folder, data, tmp_path):
    def digest(where, **settings):
        return image_captions(where, **{"size": (5, 6), "batch_size": 7, **settings}).digest

    changes = [{"size": (6, 5)}, {"channels": 1}, {"vocabulary_size": 9}, {"max_target": 7}, {"batch_size": 6}]
    digests = {digest(folder, **change) for change in changes}
    other = write(tmp_path / "other")
    assert digest(other) == data.digest  # wherever the files are
    (other / "1.png").write_bytes((other / "2.png").read_bytes())
    assert len(digests | {data.digest, digest(other)}) == 7


def test_lines_that_are_there_twice_are_left_out(folder, tmp_path):
    path = tmp_path / "captions.tsv"
    path.write_text("1.png\ta b\n2.png\ta b\r\n1.png\tc\n1.png\ta b\n")
    rows, notes = read_captions(path, folder)
    assert [(row.path.name, row.captions) for row in rows] == [("1.png", ["a b", "c"]), ("2.png", ["a b"])]
    assert notes == [f"1 repeated lines of {path} left out"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"captions.tsv is empty; {EXPECTED}"),
        (b"0.png\tone\n0.png two\n", "line 2: 0 tabs, where one is expected between file name and caption"),
        (b"0.png\tone\ttwo\n", "line 1: 2 tabs, where one is expected"),
        (b"0.png\tone\n0.png\t \n", "line 2: the caption is empty"),
        (b"\tone\n", "line 1: the file name is empty"),
        (b"0.png\tone\nmissing.png\tone\n", r"line 2: there is no file .*missing.png"),
        (b"0.png\t\xff\n", "captions.tsv is no UTF-8 text"),
        (b"0.png\tone\n1.png\ttwo\n", "3 different pictures at least, for train, dev and test; got 2"),
        (b"0.png\ta\n1.png\ta\n2.png\ta\ntext.png\ta\n", "line 4: .*text.png cannot be read as a picture"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, tmp_path, content, message):
    (folder / "text.png").write_text("no picture")
    (tmp_path / "captions.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        image_captions(folder, tmp_path / "captions.tsv")


def test_other_wrong_arguments(folder, tmp_path):
    for where, name in ((folder, "none.tsv"), (tmp_path, None), (tmp_path / "none", None)):  # an empty one, and none
        with pytest.raises(ValueError, match=rf"{name or 'captions.tsv'} cannot be read: No such .*; {EXPECTED}"):
            image_captions(where, name and tmp_path / name)
    with pytest.raises(ValueError, match=r"channels 1 or 3; got \(5, 6\) and 2"):
        image_captions(folder, size=(5, 6), channels=2)
    with pytest.raises(ValueError, match=r"size is at least 1 pixel each way .* got \(0, 6\) and 3"):
        coco_captions(size=(0, 6))


def test_plain_words():
    assert plain_words("  A man's dog,half-asleep (on 2 beds)!\n") == "a man's dog half-asleep on 2 beds"


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """COCO's three archives as they are when unpacked, small."""
    rng, listed = np.random.default_rng(0), []
    for row, split in enumerate(["train"] * 5 + ["restval"] * 2 + ["val"] * 3 + ["test"] * 2):
        part = "train2014" if split == "train" else "val2014"
        path = tmp_path / part / part / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(path, rng.integers(0, 256, (5 + row, 9, 3)).astype(np.uint8))
        sentences = [{"raw": f"A Picture, number{row}.", "sentid": 2 * row}, {"raw": f"Number{row}", "sentid": 0}]
        listed.append({"split": split, "filepath": part, "filename": path.name, "sentences": sentences})
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "dataset_coco.json").write_text(json.dumps({"images": listed}))

    def unpacked(manager, addresses):
        assert all(address.startswith("http") and address.endswith(".zip") for address in addresses.values())
        return {name: tmp_path / name for name in addresses}

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", unpacked)
    return tmp_path


def test_coco_with_karpathys_splits_and_without_tensorflow(coco):
    for _ in range(2):  # downloaded, then as it was stored
        data = coco_captions(3, size=(5, 7), data_dir=coco / "stored")
        found = {split: data.references(split) for split in ("train", "dev", "test")}
        rows = {"train": range(7), "dev": range(7, 10), "test": range(10, 12)}
        assert found == {split: [f"a picture number{row}" for row in rows[split]] for split in found}
        assert data.every_reference("test")[1] == ["a picture number11", "number11"]
    (batch,) = data.split("dev")
    assert batch["images"].shape == (3, 5, 7, 3) and batch["target"].shape == (3, 21)
    expected = resized(read_picture(coco / "val2014" / "val2014" / "8.png", coloured=True), 5, 7)
    np.testing.assert_allclose(batch["images"][1], expected, atol=0.51 / 255)
    assert "tensorflow" not in sys.modules

"""What captioned pictures have in common, and files resized or refused."""

import jax
import matplotlib.image
import numpy as np
import pytest

from attention_zoo.data import CaptionedImages, GlimpseImages, Words
from attention_zoo.data.pictures import resized


def make(shape=(4, 6, 1), **settings):
    return CaptionedImages({}, Words(["one", "two"]), max_target=3, batch_size=5, shape=shape, **settings)


def picture(path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    matplotlib.image.imsave(path, values)
    return values / np.float32(255)


@pytest.mark.parametrize("size", [(4, 11), (13, 17), (2, 30), (7, 11), (1, 1)])
def test_resized_is_jaxs_linear_with_antialiasing(size):
    images = np.random.default_rng(0).random((2, 7, 11, 3), np.float32)
    expected = jax.image.resize(images, (2, *size, 3), "linear", antialias=True)
    np.testing.assert_allclose(resized(images, *size), expected, atol=2e-6)
    assert resized(images, *size).dtype == np.float32


def test_resizing_by_hand():
    row = np.array([[[0.0], [1.0]]], np.float32)
    assert resized(row, 1, 4)[0, :, 0].tolist() == [0, 0.25, 0.75, 1]
    assert resized(row, 1, 1).item() == 0.5


def test_a_saved_folder_reads_pictures_without_the_data(tmp_path):
    make().save(tmp_path)
    again = CaptionedImages.load(tmp_path)
    assert (again.shape, again.batch_size, again.max_target, again.resize) == ((4, 6, 1), 5, 3, False)
    assert again.target.decode([4, 5, 2, 4]) == "one two"
    assert {name: array.shape for name, array in again.shapes()[0].items()} == {
        "images": (5, 4, 6, 1),
        "target": (5, 3),
        "target_lengths": (5,),
        "boxes": (5, 3, 4),
        "valid": (5,),
    }
    values = picture(tmp_path / "a.png", (4, 6, 3))
    batch = again.encode_batch([str(tmp_path / "a.png")] * 2)
    assert batch["images"].shape == (2, 4, 6, 1) and batch["images"].dtype == np.float32 and batch["valid"].all()
    np.testing.assert_allclose(batch["images"][1], values.mean(-1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match="there is no split 'train': there is none at all"):
        again.train(0)


def test_pictures_of_another_size_are_refused_or_resized(tmp_path):
    values = picture(tmp_path / "a.png", (5, 7, 3))
    with pytest.raises(ValueError, match=r"a.png is 5 x 7 x 1 \(height, width, channels\), where 4 x 6 x 1 is read"):
        make().encode_batch([str(tmp_path / "a.png")])
    make((4, 6, 3), resize=True).save(tmp_path)
    images = CaptionedImages.load(tmp_path).encode_batch([str(tmp_path / "a.png")])["images"]
    np.testing.assert_allclose(images[0], resized(values, 4, 6), atol=1e-6)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png cannot be read as a picture"):
        make().encode_batch([str(tmp_path / "text.png")])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"shape": []}', '{"batch_size": 2, "shape": [1, 2]}'])
def test_a_damaged_folder_is_one_sentence(tmp_path, content):
    make().save(tmp_path)
    (tmp_path / "captioned.json").write_text(content)
    with pytest.raises(ValueError, match=r"captioned.json is damaged or was not written by this program"):
        CaptionedImages.load(tmp_path)
    (tmp_path / "captioned.json").unlink()
    with pytest.raises(ValueError, match=r"captioned.json cannot be read: No such file"):
        CaptionedImages.load(tmp_path)
    (tmp_path / "target.json").unlink()
    with pytest.raises(ValueError, match=r"the vocabulary file .*target.json cannot be read: No such file"):
        CaptionedImages.load(tmp_path)


def test_the_digest_changes_with_settings_and_answers():
    others = [make((4, 6, 3)), make(resize=True), GlimpseImages({}, "ab", batch_size=5, shape=(4, 6, 1))]
    others += [CaptionedImages({}, Words(["one", "three"]), max_target=3, batch_size=5, shape=(4, 6, 1))]
    assert make().digest == make().digest
    assert len({data.digest for data in [make(), *others]}) == 5


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"batch_size and three sizes of shape are at least 1; got 5 and \[4, 0, 1\]"):
        make((4, 0, 1))
    with pytest.raises(ValueError, match="max_target is at least 2, a word and the end mark; got 1"):
        CaptionedImages({}, Words(["one"]), max_target=1, batch_size=5, shape=(4, 6, 1))

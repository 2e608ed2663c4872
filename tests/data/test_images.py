"""Images: moved by pixels, and read from files."""

import matplotlib.image
import numpy as np
import pytest

from attention_zoo.data.images import LabelledImages, moved, read_picture


def test_moved_is_a_paste_into_zeros():
    images = np.random.default_rng(0).integers(1, 256, (3, 5, 7, 2)).astype(np.uint8)
    expected = np.zeros_like(images)
    expected[0] = images[0]
    expected[1, 2:, :-3] = images[1, :-2, 3:]
    expected[2, :-1, 1:] = images[2, 1:, :-1]
    np.testing.assert_array_equal(moved(images, np.array([[0, 0], [2, -3], [-1, 1]])), expected)
    assert not moved(images, np.array([[5, 0], [0, -7], [9, 9]])).any()


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 4)])
def test_a_picture_is_read_as_grey_values(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    matplotlib.image.imsave(tmp_path / "image.png", values, cmap="gray", vmin=0, vmax=255)
    grey = values if len(shape) == 2 else values[..., :3].mean(-1)  # without what is transparent
    read = read_picture(tmp_path / "image.png")
    assert read.shape == (4, 6, 1) and read.dtype == np.float32
    np.testing.assert_allclose(read[..., 0], grey / 255, atol=1 / 255)


def test_pictures_become_a_batch_and_what_is_none_is_said(tmp_path):
    data = LabelledImages({}, ["a"], batch_size=3, shape=(4, 6, 1))
    matplotlib.image.imsave(tmp_path / "image.png", np.ones((4, 6, 3)))
    batch = data.encode_batch([str(tmp_path / "image.png")] * 2)
    assert batch["images"].shape == (2, 4, 6, 1) and batch["valid"].all() and (batch["images"] == 1).all()
    assert data.shapes()[0]["images"].shape == (3, 4, 6, 1)
    with pytest.raises(ValueError, match=r"image.png is 4 x 6 x 1 .*, where 8 x 8 x 1 is read"):
        LabelledImages({}, ["a"], batch_size=3, shape=(8, 8, 1)).encode_batch([str(tmp_path / "image.png")])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.jpg").write_text("no picture")
    reasons = {
        "text.png": "not a PNG file",
        "text.jpg": "cannot identify image file",
        "missing.png": "No such file or directory",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError) as error:
            data.encode_batch([str(tmp_path / name)])
        assert str(error.value) == f"{tmp_path / name} cannot be read as a picture: {reason}"

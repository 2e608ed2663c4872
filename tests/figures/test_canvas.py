"""Writing figures: whole or not at all, and one sentence where it cannot be done."""

import stat
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from attention_zoo.figures.canvas import blank, save


class Broken(Figure):
    """A figure whose drawing fails half way."""

    def savefig(self, name: str, **options: object) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError("half way")


def sample() -> Figure:
    figure = blank(1, 1)
    figure.add_subplot().plot([1, 2])
    return figure


@pytest.mark.parametrize(("name", "starts"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("A.SVG", b"<?xml")])
def test_the_ending_chooses_the_format(tmp_path: Path, name: str, starts: bytes) -> None:
    assert save(sample(), tmp_path / "new" / name).read_bytes().startswith(starts)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png, \.pdf, \.svg"):
        save(sample(), tmp_path / "alignment.gif")
    assert not list(tmp_path.iterdir())


def test_a_failed_drawing_leaves_the_old_picture(tmp_path: Path) -> None:
    old = save(sample(), tmp_path / "a.png").read_bytes()
    with pytest.raises(RuntimeError):
        save(Broken(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"The figure cannot be written to .*file.a\.png: "):
        save(sample(), tmp_path / "file" / "a.png")


def test_a_folder_in_place_of_the_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match=r"The figure cannot be written to .*a\.png: Is a directory"):
        save(sample(), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    saved = save(sample(), tmp_path / "a.png")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)

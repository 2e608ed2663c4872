"""Learning curves: reading metrics.jsonl as a killed and resumed run leaves it, and drawing it."""

import json
from pathlib import Path

import numpy as np
import pytest

from attention_zoo.figures import draw_curves, read_metrics, save


def run(folder: Path, *records: object, end: str = "\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + end, encoding="utf-8")
    return folder


def test_numbers_are_read_by_name_and_split(tmp_path: Path) -> None:
    folder = run(
        tmp_path / "a",
        {"step": 3, "loss": 2.5, "note": "text", "best": True},
        {"step": 5, "loss": 1.5},
        {"step": 5, "split": "dev", "exact_match": 0.5},
        {"step": 7, "test": {"bleu": 31}},
    )
    found = {name: (steps.tolist(), values.tolist()) for name, (steps, values) in read_metrics(folder).items()}
    assert found == {"loss": ([3, 5], [2.5, 1.5]), "dev/exact_match": ([5], [0.5]), "test/bleu": ([7], [31.0])}


def test_steps_done_again_after_a_kill_replace_the_first_try(tmp_path: Path) -> None:
    losses = [(1, 9.0), (2, 8.0), (3, 7.0), (2, 6.0)]
    folder = run(tmp_path / "a", *({"step": step, "loss": loss} for step, loss in losses))
    steps, values = read_metrics(folder)["loss"]
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(values, [9.0, 6.0])


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", {"step": 1, "loss": 9.0}, end='\n{"step": 2, "lo')
    assert read_metrics(folder)["loss"][0].tolist() == [1]


@pytest.mark.parametrize("damage", ["{", "[1]", '{"loss": 1.0}', '{"step": "one"}'])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    folder = run(tmp_path / "a", {"step": 1, "loss": 9.0}, end=f'\n{damage}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(folder)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metrics\.jsonl in .*not the work folder"):
        draw_curves([tmp_path])


def two_runs(tmp_path: Path) -> list[Path]:
    dev = {"step": 2, "split": "dev", "loss": 2.5, "exact_match": 0.5}
    first = run(
        tmp_path / "x" / "_run", {"step": 1, "loss": 3.0, "examples_per_second": 9.0}, {"step": 2, "loss": 2.0}, dev
    )
    return [first, run(tmp_path / "y" / "_run", {"step": 1, "loss": 4.0}, {"step": 3, "loss": 1.0})]


def test_one_panel_a_metric_and_one_line_a_run_and_split(tmp_path: Path) -> None:
    figure = draw_curves(two_runs(tmp_path))
    save(figure, tmp_path / "curves.png")
    loss, match = figure.axes
    assert [loss.get_title(), match.get_title()] == ["loss", "exact match"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
    assert lines == {"x/_run (dev)": [[2, 2.5]], "x/_run": [[1, 3.0], [2, 2.0]], "y/_run": [[1, 4.0], [3, 1.0]]}
    assert [text.get_text() for text in loss.get_legend().get_texts()] == list(lines)


def test_the_splits_of_one_run_are_told_apart_by_colour_and_a_single_point_is_marked(tmp_path: Path) -> None:
    records = [{"step": step, "split": "train", "loss": 3.0 - step} for step in range(3)]
    folder = run(tmp_path / "a", *records, {"step": 2, "split": "test", "loss": 1.5})
    test, train = draw_curves([folder]).axes[0].lines
    assert [test.get_label(), train.get_label()] == ["test", "train"]
    assert test.get_color() != train.get_color()
    assert test.get_marker() == "D"


def test_metrics_are_chosen_with_or_without_their_split(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    assert len(draw_curves(folders, ["dev/loss"]).axes[0].lines) == 1
    assert len(draw_curves(folders, ["loss"]).axes[0].lines) == 3
    assert draw_curves(folders, ["examples_per_second"]).axes[0].get_title() == "examples per second"


def test_an_unknown_metric_is_refused_and_the_known_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="No run has bleu; known: dev/exact_match, dev/loss, examples_per_second, loss"
    ):
        draw_curves(two_runs(tmp_path), ["loss", "bleu"])


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", {"step": 1, "loss": 1.0})
    with pytest.raises(ValueError, match="given twice"):
        draw_curves([folder, folder])
    with pytest.raises(ValueError, match="no work folder"):
        draw_curves([])


def test_a_run_whose_name_starts_with_an_underscore_is_in_the_legend(tmp_path: Path) -> None:
    figure = draw_curves([run(tmp_path / "_hidden", {"step": 1, "loss": 1.0})])
    assert "_hidden" in figure.axes[0].get_legend().get_texts()[0].get_text()

"""The table of mechanisms: a tiny one from the command line, and the committed pages against their numbers."""

import inspect
import json
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import get_args

import pytest

from experiments.__main__ import main
from experiments.commands import table as commands
from experiments.commands.table import METRICS, ROWS, render
from experiments.mechanisms import experiment

PAGES = Path(__file__).parents[2] / "docs" / "mechanisms"
README = (PAGES.parents[1] / "README.md").read_text(encoding="utf-8")
TINY = "--seeds 1 --steps 2 --train_examples 64 --held_out_examples 2"
SMALL = {"embedding": 5, "encoder_units": 3, "batch_size": 1}  # as in the gallery: one search to compile


def test_a_small_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "costs", partial(commands.costs, rounds=1))
    for name, temperature in (("dot", 1.0), ("temperature 1/2", 0.5)):  # which softmax ignores: it is compiled once
        monkeypatch.setitem(ROWS, name, {**ROWS["dot"], **SMALL, "temperature": temperature})
    words = ["table", "dates", *TINY.split(), "--rows", "dot, temperature 1/2", "--output", "out"]
    assert main(words) == 0
    result = json.loads((tmp_path / "out" / "dates.json").read_text())
    assert [row["mechanism"] for row in result["rows"]] == ["dot", "temperature 1/2"]
    assert [row["flags"]["temperature"] for row in result["rows"]] == [1.0, 0.5]
    for row in result["rows"]:
        assert all(len(row[metric]) == 1 and all(value >= 0 for value in row[metric]) for metric in METRICS)
        assert row["step_ms"] > 0 and row["temporary_bytes"] > 0 and row["parameters"] > 0
    assert (tmp_path / "out" / "dates.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "dates.md").read_text() == render(result)
    kept = sorted(path.parent.name for path in (tmp_path / "runs").rglob("summary.json"))
    assert kept == ["0", "0"]
    monkeypatch.setattr(commands, "costs", lambda made: {name: {"step_ms": 1.5, "temporary_bytes": 7} for name in made})
    monkeypatch.setattr(commands, "gallery", lambda folders, task, path: None)  # it is drawn
    capsys.readouterr()
    assert main(words) == 0  # nothing is trained again
    assert capsys.readouterr().err.count("is finished") == 2
    result["rows"][0] |= {"step_ms": 0.0, "exact_match": [0.5]}
    (tmp_path / "out" / "dates.json").write_text(json.dumps(result))
    assert main(["table", "dates", "--output", "out", "--costs_only", "True"]) == 0  # the scores stay
    first = json.loads((tmp_path / "out" / "dates.json").read_text())["rows"][0]
    assert first["step_ms"] == 1.5 and first["exact_match"] == [0.5] and first["flags"] == result["rows"][0]["flags"]
    assert main(["table", "reverse", "--output", "out", "--costs_only", "True"]) == 2
    assert "There is no out/reverse.json to measure again" in capsys.readouterr().err
    assert main([*words[:-3], "temperature 1/2", "--output", "out"]) == 2
    assert "dates.json also has dot" in capsys.readouterr().err


def test_a_folder_that_cannot_take_the_table_is_refused_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dates.json").write_text('{"rows": [')
    assert main(["table", "dates", "--output", "out"]) == 2
    assert "dates.json is no table of mechanisms" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["table", "dates", "--output", "file"]) == 2
    assert "cannot write to the work folder file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_mechanism_or_seed(capsys):
    assert main(["table", "dates", "--rows", "local-q"]) == 2
    assert "There is no mechanism 'local-q' (did you mean local-p" in capsys.readouterr().err
    assert main(["table", "dates", "--seeds", "0"]) == 2
    assert "--seeds is 0" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["dates", "reverse"])
def test_the_committed_page_is_what_its_numbers_give(task):
    result = json.loads((PAGES / f"{task}.json").read_text())
    assert (PAGES / f"{task}.md").read_text() == render(result)
    assert [row["mechanism"] for row in result["rows"]] == list(ROWS)
    assert all(len(row["exact_match"]) == result["seeds"] == 3 for row in result["rows"])
    assert (PAGES / f"{task}.png").exists()


def test_readmes_scores_of_mechanisms_are_the_tables():
    pages = {task: json.loads((PAGES / f"{task}.json").read_text())["rows"] for task in ("dates", "reverse")}
    rows = {task: {row["mechanism"]: fmean(row["exact_match"]) for row in page} for task, page in pages.items()}
    for name in ROWS:
        cell = f"table row *{name}*: {rows['dates'][name]:.3f} / {rows['reverse'][name]:.3f}"
        assert cell in README, cell


def test_every_row_has_flags_of_the_experiment():
    offered = inspect.signature(experiment).parameters
    for flags in ROWS.values():
        for flag, value in flags.items():
            choices = get_args(offered[flag].annotation)
            assert value in choices or (not choices and isinstance(value, offered[flag].annotation))


def test_every_alignment_of_the_experiment_is_in_the_table():
    choices = {name: experiment.__annotations__[name].__args__ for name in ("score", "alignment", "past")}
    for flag, names in choices.items():
        used = {row.get(flag) for row in ROWS.values()}
        assert set(names) - used <= {"softmax", "none", "additive"}  # the defaults

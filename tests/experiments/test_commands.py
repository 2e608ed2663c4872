"""Every command through the command line, with a stand-in experiment that trains at once."""

import json
import os
import shutil
import signal

import pytest

from attention_zoo.figures import read_metrics
from experiments.commands import train as module
from experiments.commands.compare import labels
from tests.training.tiny import carried


def test_help_names_every_command(call):
    code, out, _ = call("--help")
    assert code == 0
    assert call()[1] == out
    for command in ("list", "train", "evaluate", "predict", "compare"):
        assert f"python -m experiments {command} " in out


def test_list_shows_claims_and_scores(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call("list")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("shouting")]
    assert "Capital letters are learned by nobody: this stand-in has one number to fit." in line
    assert line.rstrip().endswith("everything, at once.")
    assert "standin" not in out


def test_train_fills_the_work_folder(call, tmp_path, write):
    code, out, err = call("train", "shouting", "--steps", "5", "--rate", "0.25", "--text", write(tmp_path / "t", "one"))
    folder = tmp_path / "runs" / "shouting"
    assert code == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["experiment"] == "shouting"
    assert config["flags"] == {
        "rate": 0.25,
        "steps": 5,
        "batch_size": 2,
        "looks": True,
        "mode": "plain",
        "text": str(tmp_path / "t"),
        "start_from": None,
    }
    assert set(config) == {"experiment", "flags", "version", "data"}
    assert json.loads((folder / "summary.json").read_text())["steps"] == 5
    assert (folder / "figures" / "curves.png").stat().st_size > 1000
    assert (folder / "lengths.json").exists()
    assert "train: 1 of 3 numbers left out" in err
    assert "runs/shouting" in err
    assert json.loads(out)["exact_match"] == json.loads((folder / "summary.json").read_text())["metrics"]["exact_match"]


def test_train_goes_on_with_the_same_flags_and_ends_in_the_same_numbers(call, tmp_path, monkeypatch):
    line = ["train", "shouting", "--steps", "6"]
    assert call(*line, "--workdir", "whole")[0] == 0
    stopped = []
    original = module.fit

    def stopping(experiment, folder):
        objective = experiment.objective

        def evaluate(params, split, **more):
            if not stopped:
                stopped.append(os.kill(os.getpid(), signal.SIGINT))
            return experiment.evaluate(params, split, **more)

        return original(module.dataclasses.replace(experiment, evaluate=evaluate, objective=objective), folder)

    monkeypatch.setattr(module, "fit", stopping)
    code, _, err = call(*line, "--workdir", "parts")
    assert code == 130
    assert err.strip().endswith("python -m experiments train shouting --steps 6 --workdir parts")
    assert not (tmp_path / "parts" / "summary.json").exists()
    code, _, err = call(*line, "--workdir", "parts")
    assert code == 0
    assert "Going on after step 2." in err
    whole, parts = (read_metrics(tmp_path / name)["test/exact_match"][1] for name in ("whole", "parts"))
    assert whole.tolist() == parts.tolist()


def test_a_second_ctrl_c_or_an_early_one_exits_130_too(call):
    code, _, err = call("train", "shouting", "--mode", "interrupted")
    assert code == 130
    assert "train shouting --mode interrupted" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_finished_run_is_left_alone(call, run, files):
    before = files(run)
    code, _, err = call("train", "shouting", "--workdir", run, "--steps", "3")
    assert code == 0
    assert "finished" in err
    assert files(run) == before


def test_evaluate_prints_json(call, run):
    code, out, _ = call("evaluate", run, "--beam-size", "4")
    assert code == 0
    assert json.loads(out) == {"exact_match": pytest.approx(0.875), "beam_size": 4, "signature": "plain"}


def test_what_a_run_started_from_may_be_gone_once_it_has_begun(call, tmp_path):
    first, folder = tmp_path / "first", tmp_path / "run"
    words = ["train", "shouting", "--start_from", first, "--workdir", folder]
    assert call(*words)[0] == 2 and not folder.exists()
    first.mkdir()
    code, out, _ = call(*words)
    first.rmdir()
    (folder / "summary.json").unlink()
    assert code == 0 and call(*words)[:2] == (0, out)
    assert call("evaluate", folder)[0] == 0


def test_evaluate_writes_only_the_lengths_that_the_run_is_compared_by(call, run, files, monkeypatch):
    (run / "lengths.json").unlink()
    before = files(run)
    monkeypatch.setattr("experiments.commands.evaluate.writable", lambda folder: 1 / 0)
    assert call("evaluate", run, "--beam-size", "4")[0] == call("evaluate", run, "--split", "dev")[0] == 0
    assert files(run) == before
    monkeypatch.undo()
    assert call("evaluate", run)[0] == 0
    assert set(files(run)) - set(before) == {"lengths.json"}


def test_evaluate_prints_a_table_on_a_terminal(call, run, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    out = call("evaluate", run, "--split", "dev")[1]
    assert "exact_match" in out
    assert "0.8750" in out
    assert "{" not in out


def test_predict_prints_only_the_outputs(call, run):
    code, out, err = call("predict", run, "mardi 3 mai", "hello")
    assert code == 0
    assert out == "MARDI 3 MAI!?\nHELLO!?\n"  # ? says that the data set was not read
    assert err == "there are digits\n"
    assert call("predict", run, "hello", "--beam_size", "3")[1] == "HELLO!!!?\n"


def test_predict_draws_one_picture_or_one_each(call, run, tmp_path):
    assert call("predict", run, "one", "--plot", "a.png")[0] == 0
    assert call("predict", run, "one", "two", "--plot", "b.png")[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a.png", "b-1.png", "b-2.png"]


def test_compare_draws_and_prints(call, run, tmp_path, write):
    other = shutil.copytree(run, tmp_path / "other")
    write(other / "lengths.json", json.dumps({"source_length": [7, 3, 5], "correct": [False, True, True]}))
    code, out, _ = call("compare", run, other, "--plot", "length.png")
    assert code == 0
    assert (tmp_path / "length.png").stat().st_size > 1000
    rows = [line.split() for line in out.splitlines()[1:]]
    assert rows == [["run", "3", "0.667", "1.000", "0.000"], ["other", "3", "0.667", "1.000", "0.000"]]


def test_runs_of_the_same_name_are_told_apart_by_their_paths(tmp_path):
    assert labels([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert labels([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == [f"{tmp_path}/a/x", f"{tmp_path}/b/x"]


def test_an_objective_is_tried_out_with_what_it_carries():
    module.try_out(carried())
    broken = module.dataclasses.replace(carried(), carry=lambda: {"average": 0})
    with pytest.raises(KeyError, match="calls"):
        module.try_out(broken)

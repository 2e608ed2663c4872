"""Every command through the command line, with a stand-in experiment that trains at once."""

import json
import os
import shutil
import signal

import pytest

from attention_zoo.figures import read_metrics
from experiments.commands import train as module
from experiments.commands.compare import labels
from experiments.commands.refusal import sentence


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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


def test_train_fills_the_work_folder(call, tmp_path):
    code, out, err = call("train", "shouting", "--steps", "5", "--rate", "0.25", "--text", write(tmp_path / "t", "one"))
    folder = tmp_path / "runs" / "shouting"
    assert code == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["experiment"] == "shouting"
    assert config["flags"] == {
        "rate": 0.25, "steps": 5, "batch_size": 2, "looks": True, "mode": "plain", "text": str(tmp_path / "t"),
    }
    assert set(config) == {"experiment", "flags", "version", "data"}
    assert json.loads((folder / "summary.json").read_text())["steps"] == 5
    assert (folder / "figures" / "curves.png").stat().st_size > 1000
    assert (folder / "lengths.json").exists()
    assert "train: 1 of 3 numbers left out" in err
    assert "runs/shouting" in err
    assert json.loads(out)["exact_match"] == json.loads((folder / "summary.json").read_text())["metrics"]["exact_match"]


def write(path, text):
    path.write_text(text)
    return path


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


def test_a_finished_run_is_left_alone(call, run):
    before = files(run)
    code, _, err = call("train", "shouting", "--workdir", run, "--steps", "3")
    assert code == 0
    assert "finished" in err
    assert files(run) == before


def test_evaluate_prints_json(call, run):
    (run / "lengths.json").unlink()
    code, out, _ = call("evaluate", run, "--beam-size", "4")
    assert code == 0
    assert json.loads(out) == {"exact_match": pytest.approx(0.875), "beam_size": 4, "signature": "plain"}
    assert (run / "lengths.json").exists()


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


def test_compare_draws_and_prints(call, run, tmp_path):
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


# Bad input.


def test_unknown_commands_and_experiments(refused):
    assert "'trian' (did you mean train?)" in refused("trian")
    assert "'shoutin' (did you mean shouting?)" in refused("train", "shoutin")
    assert "which experiment?" in refused("train")
    assert "--workdr (did you mean --workdir?)" in refused("train", "shouting", "--workdr", "x")


def test_wrong_flags_leave_nothing_behind(refused, tmp_path):
    assert "--steps" in refused("train", "shouting", "--steps", "few")
    assert "invalid choice" in refused("train", "shouting", "--mode", "fancy")
    assert refused("train", "shouting", "--mode", "huge") == "the number is too large"
    assert "line 1: there is no such file" in refused("train", "shouting", "--text", "absent.txt")
    assert not list(tmp_path.iterdir())


def test_a_work_folder_of_other_flags_names_both_values(refused, run):
    before = files(run)
    said = refused("train", "shouting", "--workdir", run, "--steps", "4", "--rate", "0.25", "--looks", "False")
    assert "--rate is 0.5 there and 0.25 here; --steps is 3 there and 4 here; " in said
    assert "--looks is true there and false here" in said
    assert "--mode" not in said
    assert files(run) == before


def test_a_work_folder_of_another_experiment(refused, run):
    assert "a run of shouting, not of whispering" in refused("train", "whispering", "--workdir", run)


def test_a_work_folder_of_something_else(refused, tmp_path):
    write(tmp_path / "letters.txt", "mine")
    assert "not empty and holds no config.json" in refused("train", "shouting", "--workdir", tmp_path)


def test_a_work_folder_that_cannot_be_made(refused, tmp_path):
    write(tmp_path / "file", "")
    assert "file is a file" in refused("train", "shouting", "--workdir", tmp_path / "file" / "run")
    assert "file is a file" in refused("train", "shouting", "--workdir", tmp_path / "file")


def test_a_write_protected_work_folder(refused, run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert "cannot be written to" in refused("train", "shouting", "--workdir", tmp_path / "new")
    assert "cannot be written to" in refused("evaluate", run)
    assert "cannot be written to" in refused("predict", run, "hello", "--plot", "a.png")
    assert not (tmp_path / "new").exists()


def test_changed_data_are_refused(call, refused, tmp_path):
    text = write(tmp_path / "text", "before")
    assert call("train", "shouting", "--text", text)[0] == 0
    write(text, "after")
    (tmp_path / "runs" / "shouting" / "summary.json").unlink()
    # The digests, that is what the file held, are told.
    assert "was before and is after" in refused("evaluate", "runs/shouting")
    code, _, err = call("train", "shouting", "--text", text)
    assert code == 2
    assert "was before and is after" in err
    text.unlink()
    assert call("predict", "runs/shouting", "hello")[1] == "HELLO!?\n"


def test_a_missing_work_folder_and_one_that_is_none(refused, tmp_path):
    for command in (["evaluate"], ["predict", "hello"]):
        line = [command[0], tmp_path / "absent", *command[1:]]
        assert "There is no work folder" in refused(*line)
    assert "config.json is missing" in refused("evaluate", tmp_path)
    assert "There is no work folder" in refused("compare", tmp_path / "absent", "--plot", "a.png")


@pytest.mark.parametrize("content", ["", "[]", '{"experiment": "shouting"}', '{"flags": {}, "data": null}', "\x00"])
def test_a_damaged_config(refused, run, content):
    write(run / "config.json", content)
    assert "config.json is damaged" in refused("evaluate", run)
    assert "config.json is damaged" in refused("train", "shouting", "--workdir", run)


def test_a_run_of_an_experiment_that_is_gone(refused, run):
    config = json.loads((run / "config.json").read_text())
    write(run / "config.json", json.dumps({**config, "experiment": "mumbling"}))
    assert "There is no experiment 'mumbling'" in refused("predict", run, "hello")


def test_missing_and_damaged_checkpoints(call, refused, run):
    steps = [path for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    for step in steps:
        for path in step.rglob("*"):
            if path.is_file():
                path.write_bytes(b"\x00")
    code, out, err = call("evaluate", run)
    assert (code, out) == (2, "")
    assert "checkpoint" in err
    assert "Traceback" not in err
    for step in steps:
        shutil.rmtree(step)
    assert "holds no whole checkpoint" in refused("evaluate", run)


def test_a_beam_of_nothing(refused, run):
    for command in (["evaluate", run], ["predict", run, "hello"]):
        assert refused(*command, "--beam_size", "0") == "--beam_size is 0: the search must keep at least 1 hypothesis."


def test_nothing_to_predict(refused, run):
    assert "nothing to predict" in refused("predict", run)
    assert refused("predict", run, "hello", "  ") == "Input 2 of 2 is empty."


def test_pictures_that_cannot_be_written(call, refused, run, tmp_path):
    for command in (["predict", run, "hello"], ["compare", run]):
        assert "must end in one of .png, .pdf, .svg" in refused(*command, "--plot", "a.xyz")
        assert "There is no folder absent" in refused(*command, "--plot", "absent/a.png")
    (tmp_path / "folder.png").mkdir()
    assert "it is a folder" in refused("predict", run, "hello", "--plot", "folder.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "run"]


def test_a_model_that_looks_nowhere_cannot_be_drawn(call, refused, tmp_path):
    assert call("train", "shouting", "--looks", "False")[0] == 0
    assert "no attention" in refused("predict", "runs/shouting", "hello", "--plot", "a.png")
    assert not (tmp_path / "a.png").exists()


def test_nothing_to_compare(refused, run):
    assert "nothing to compare" in refused("compare", "--plot", "a.png")
    assert "--plot" in refused("compare", run)
    assert "given twice" in refused("compare", run, run, "--plot", "a.png")
    write(run / "lengths.json", "{")
    assert "lengths.json is damaged" in refused("compare", run, "--plot", "a.png")
    (run / "lengths.json").unlink()
    assert f"python -m experiments evaluate {run}" in refused("compare", run, "--plot", "a.png")


def test_bugs_show_their_traceback(call):
    with pytest.raises(Exception, match="Singular matrix"):
        call("train", "shouting", "--mode", "broken")


def test_whose_value_error_it_is():
    def error_of(source, name):
        try:
            exec(source, {"__name__": name})
        except Exception as error:
            return sentence(error)

    assert error_of("raise ValueError('the file is wrong')", "attention_zoo.data.text") == "the file is wrong"
    assert error_of("raise TypeError('a bug')", "attention_zoo.data.text") is None
    assert error_of("raise ValueError('inside a library')", "library.attention_zoo") is None
    # Not raised by the line itself, as where jax has cut its own frames off.
    assert error_of("int('seven')", "attention_zoo.data.text") is None
    assert error_of("open('/absent/file')", "library") == "/absent/file: No such file or directory."

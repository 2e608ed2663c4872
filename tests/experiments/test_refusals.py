"""What cannot be used: one sentence on stderr, exit code 2, nothing half written; bugs keep their traceback."""

import json
import os
import shutil

import pytest

from experiments.commands.refusal import sentence


def test_unknown_commands_and_experiments(refused):
    assert "'trian' (did you mean train?)" in refused("trian")
    assert "'shoutin' (did you mean shouting?)" in refused("train", "shoutin")
    assert "which experiment?" in refused("train")
    assert "--workdr (did you mean --workdir?)" in refused("train", "shouting", "--workdr", "x")


def test_wrong_flags_leave_nothing_behind(refused, tmp_path):
    assert "--steps" in refused("train", "shouting", "--steps", "few")
    assert "--steps is 0" in refused("train", "shouting", "--steps", "0")
    assert "invalid choice" in refused("train", "shouting", "--mode", "fancy")
    assert refused("train", "shouting", "--mode", "huge") == "the number is too large"
    assert "line 1: there is no such file" in refused("train", "shouting", "--text", "absent.txt")
    assert not list(tmp_path.iterdir())


def test_a_flag_younger_than_the_run_counts_as_its_default(call, refused, run):
    config = json.loads((run / "config.json").read_text())
    del config["flags"]["looks"]
    (run / "config.json").write_text(json.dumps(config))
    code, _, said = call("train", "shouting", "--workdir", run)
    assert code == 0 and "is finished" in said
    said = refused("train", "shouting", "--workdir", run, "--looks", "False")
    assert "--looks is true there and false here" in said


def test_a_work_folder_of_other_flags_names_both_values(refused, run, files):
    before = files(run)
    said = refused("train", "shouting", "--workdir", run, "--steps", "4", "--rate", "0.25", "--looks", "False")
    assert "--rate is 0.5 there and 0.25 here; --steps is 3 there and 4 here; " in said
    assert "--looks is true there and false here" in said
    assert "--mode" not in said
    assert files(run) == before


def test_a_work_folder_of_another_experiment(refused, run):
    assert "a run of shouting, not of whispering" in refused("train", "whispering", "--workdir", run)


def test_a_work_folder_of_something_else(refused, tmp_path, write):
    write(tmp_path / "letters.txt", "mine")
    assert "not empty and holds no config.json" in refused("train", "shouting", "--workdir", tmp_path)


def test_a_work_folder_that_cannot_be_made(refused, tmp_path, write):
    write(tmp_path / "file", "")
    assert "file is a file" in refused("train", "shouting", "--workdir", tmp_path / "file" / "run")
    assert "file is a file" in refused("train", "shouting", "--workdir", tmp_path / "file")


def test_a_write_protected_work_folder(refused, run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert "cannot be written to" in refused("train", "shouting", "--workdir", tmp_path / "new")
    assert "cannot be written to" in refused("evaluate", run)
    assert "cannot be written to" in refused("predict", run, "hello", "--plot", "a.png")
    assert not (tmp_path / "new").exists()


def test_changed_data_are_refused(call, refused, tmp_path, write):
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
def test_a_damaged_config(refused, run, content, write):
    write(run / "config.json", content)
    assert "config.json is damaged" in refused("evaluate", run)
    assert "config.json is damaged" in refused("train", "shouting", "--workdir", run)


@pytest.mark.parametrize("damage", [{"flags": {"steps": "many"}}, {"experiment": 3}])
def test_a_config_of_wrong_types(refused, run, damage, write):
    config = json.loads((run / "config.json").read_text())
    write(run / "config.json", json.dumps({**config, **damage}))
    for command in (["evaluate", run], ["predict", run, "hello"]):
        assert ("config.json is damaged: --steps is" in refused(*command)) == ("flags" in damage)


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"metrics": 3}'])
def test_a_damaged_summary(call, run, content, write):
    write(run / "summary.json", content)
    code, out, err = call("train", "shouting", "--workdir", run)
    assert (code, out) == (2, "")
    assert "summary.json is damaged; without it the same command judges" in err.splitlines()[-1]


def test_a_run_of_an_experiment_that_is_gone(refused, run, write):
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


def test_nothing_to_compare(refused, run, write):
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

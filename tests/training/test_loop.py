"""`fit` from beginning to end, on runs of a second."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import optax
import pytest

from attention_zoo.training import Interrupted, UserError, fit, load_parameters, optimizer
from attention_zoo.training.loop import score_of
from tests.training.tiny import Copies, experiment


def lines(workdir, split):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]


def total(params):
    return float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(params)))


def judged(scores, seen):
    """An `evaluate` that gives these scores one after another on dev, and notes what it was given."""
    left = iter(scores)

    def evaluate(params, split):
        seen.append((split, total(params)))
        return {"score": next(left) if split == "dev" else 0.125}

    return {"evaluate": evaluate, "best_metric": "score"}


def test_a_run_leaves_a_whole_work_folder(tmp_path, capsys):
    workdir = tmp_path / "new" / "folder"
    summary = fit(experiment(Copies((5,))), workdir, log_every=4)
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert set(summary) == {
        "experiment",
        "metrics",
        "dev_metrics",
        "steps",
        "seconds",
        "seconds_to_first_step",
        "examples_per_second",
        "parameters",
        "device",
        "versions",
        "seed",
    }
    assert summary["experiment"] == "tiny" and summary["steps"] == 24 and summary["seed"] == 0
    assert summary["parameters"] == 2 * 11 * 13 + 13 * 13 + 13 + 13 * 11 + 11
    assert 0 < summary["metrics"]["token_accuracy"] <= 1 and summary["examples_per_second"] > 0
    assert summary["versions"]["jax"] == jax.__version__
    assert {path.name for path in workdir.iterdir()} >= {"checkpoints", "figures", "vocabulary.json", "metrics.jsonl"}
    assert (workdir / "figures" / "curve.png").exists() and list(workdir.glob("events.out.tfevents.*"))
    assert [line["step"] for line in lines(workdir, "train")] == [4, 5, 8, 10, 12, 15, 16, 20, 24]
    assert [line["step"] for line in lines(workdir, "dev")] == [10, 20, 24]
    assert lines(workdir, "test")[0]["token_accuracy"] == summary["metrics"]["token_accuracy"]
    losses = [line["loss"] for line in lines(workdir, "train")]
    assert losses[-1] < losses[0] / 2
    assert "step 10/24  dev: token_accuracy" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(tmp_path, capsys):
    data = Copies((5,))
    summary = fit(experiment(data, steps=3), tmp_path)
    read = data.count
    assert fit(experiment(data, steps=3), tmp_path) == summary
    assert data.count == read and "is finished" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json is damaged; without it the same command judges"):
        fit(experiment(data, steps=3), tmp_path)
    (tmp_path / "summary.json").unlink()
    assert fit(experiment(data, steps=3), tmp_path)["metrics"] == summary["metrics"]
    assert len(lines(tmp_path, "test")) == 1
    assert data.count == read


def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_anew(tmp_path, capsys):
    sentence = f"There is no checkpoint in {tmp_path / 'checkpoints'}: starting from the beginning.\n"
    summary = fit(experiment(Copies((5,)), steps=3), tmp_path)
    assert sentence not in capsys.readouterr().err
    (tmp_path / "summary.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints")
    assert fit(experiment(Copies((5,)), steps=3), tmp_path)["metrics"] == summary["metrics"]
    assert capsys.readouterr().err.count(sentence) == 1
    assert len(lines(tmp_path, "dev")) == 1


@pytest.mark.parametrize("mode, scores", [("max", [0.2, 0.5, 0.4, 0.1]), ("min", [0.2, 0.1, 0.4, 0.3])])
def test_the_best_parameters_are_kept_and_tested(tmp_path, mode, scores):
    seen = []
    settings = {"steps": 12, "evaluate_every": 3, "checkpoint_every": 2, "best_mode": mode}
    run = experiment(Copies((5,)), **settings, **judged(scores, seen))
    summary = fit(run, tmp_path)
    assert [split for split, _ in seen] == ["dev"] * 4 + ["test"]
    assert seen[-1][1] == seen[1][1] != seen[3][1]
    assert summary["metrics"] == {"score": 0.125} and summary["steps"] == 12
    assert summary["dev_metrics"] == {"score": scores[1]}
    (tmp_path / "summary.json").unlink()
    assert fit(run, tmp_path)["dev_metrics"] == {"score": scores[1]}  # after a new start too
    template = jax.eval_shape(run.init, jax.random.key(0), run.data.shapes()[0])
    assert total(load_parameters(tmp_path, template)) == seen[1][1]
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {6, 10, 12}


def test_patience_counts_evaluations_without_a_new_best(tmp_path):
    seen = []
    scores = [0.3, 0.1, 0.4, 0.4, 0.2, 0.9]
    run = experiment(Copies((5,)), steps=18, evaluate_every=3, patience=2, **judged(scores, seen))
    assert fit(run, tmp_path)["steps"] == 15
    assert seen[-1][1] == seen[3][1]  # of equals the newer


def test_the_sign_of_the_score_and_what_cannot_be_one():
    assert score_of({"loss": 2.0}, experiment(best_metric="loss", best_mode="min")) == -2.0
    worst = score_of({"bleu": float("nan")}, experiment(best_metric="bleu"))
    assert worst < score_of({"bleu": -1e30}, experiment(best_metric="bleu")) and np.isfinite(worst)
    with pytest.raises(ValueError, match="best_metric 'bleu' is not among the metrics loss, chrf"):
        score_of({"loss": 1.0, "chrf": 2.0}, experiment(best_metric="bleu"))


def test_parameters_that_are_not_finite_stop_the_run(tmp_path):
    run = experiment(Copies((5,)), optimizer=optax.sgd(float("inf")))
    with pytest.raises(UserError, match="the parameters are no longer finite at step 4; a lower learning rate"):
        fit(run, tmp_path, log_every=4)
    assert not (tmp_path / "summary.json").exists() and not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_single_updates_that_are_not_finite_are_counted_and_skipped(tmp_path):
    base = experiment(Copies((5,)))

    def objective(params, batch, key):
        loss, metrics = base.objective(params, batch, key)
        return loss * jax.numpy.where(batch["target_lengths"][0] == 3, jax.numpy.nan, 1.0), metrics

    run = dataclasses.replace(base, objective=objective, optimizer=optimizer("adam", 0.02, skip_nonfinite=10))
    fit(run, tmp_path)
    assert sum(line.get("nonfinite_steps", 0) for line in lines(tmp_path, "train")) > 0


def test_a_work_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the work folder .*file/run: Not a directory"):
        fit(experiment(), tmp_path / "file" / "run")


def test_other_data_than_before_are_refused(tmp_path):
    before, after = Copies((5,)), Copies((5,))
    before.digest, after.digest = "old", "new"
    stop_at(before, 3)
    with pytest.raises(Interrupted):
        fit(experiment(before), tmp_path)
    (tmp_path / "vocabulary.json").write_text("as it was")
    with pytest.raises(UserError, match=f"the data are not those that the checkpoints in {tmp_path} were made with"):
        fit(experiment(after), tmp_path)
    assert (tmp_path / "vocabulary.json").read_text() == "as it was"


def stop_at(data, *counts, number=signal.SIGINT):
    """Sends this process a signal when the data's batch of this number is read."""
    data.on_read = lambda count: os.kill(os.getpid(), number) if count in counts else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The work folder and the summary of a run that was never stopped; not to be changed."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, fit(experiment(Copies((5,))), workdir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_step_saves_and_goes_on_to_the_same_end(whole, tmp_path, number):
    (whole, expected), parts, data = whole, tmp_path / "parts", Copies((5,))
    stop_at(data, 12, number=number)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped after step 13; the same command goes on from there"):
        fit(experiment(data), parts)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (parts / "checkpoints" / "13").is_dir() and not (parts / "summary.json").exists()
    found = fit(experiment(Copies((5,))), parts)
    assert found["metrics"] == expected["metrics"] and found["seconds_to_first_step"] > 0
    template = jax.eval_shape(experiment().init, jax.random.key(0), Copies().shapes()[0])
    jax.tree.map(np.testing.assert_array_equal, load_parameters(parts, template), load_parameters(whole, template))
    assert [line["step"] for line in lines(parts, "train")] == [5, 10, 13, 15, 20, 24]


def test_the_second_signal_ends_the_run_at_once(tmp_path):
    data = Copies((5,))
    stop_at(data, 12)
    data.on_read = lambda count: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)] if count == 12 else None
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(experiment(data), tmp_path)
    assert not isinstance(stopped.value, Interrupted)
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {5, 10}

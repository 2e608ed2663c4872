"""The meter, metrics.jsonl and the lines on a terminal that is none."""

import json
import math

import jax.numpy as jnp
import pytest

from attention_zoo.training.reporting import Meter, Reporter, rewind


def step(loss, gradient_norm=1.0, parameter_norm=2.0):
    return {
        "loss": jnp.float32(loss),
        "gradient_norm": jnp.float32(gradient_norm),
        "parameter_norm": jnp.float32(parameter_norm),
    }


def test_the_meter_gives_a_window_when_the_next_one_closes():
    meter = Meter()
    for loss in (1.0, 3.0):
        meter.add(step(loss))
    assert meter.turn(2) is None
    meter.add(step(8.0, parameter_norm=5.0))
    assert meter.turn(3) == (2, {"loss": 2.0, "gradient_norm": 1.0, "parameter_norm": 2.0})
    assert meter.turn(3) == (3, {"loss": 8.0, "gradient_norm": 1.0, "parameter_norm": 5.0})
    assert meter.turn(3) is None


def test_a_step_without_a_finite_gradient_is_counted_and_left_out_of_the_means():
    meter = Meter()
    for metrics in (step(1.0), step(math.nan, math.nan), step(2.0)):
        meter.add(metrics)
    meter.turn(3)
    _, means = meter.turn(3)
    assert means["loss"] == 1.5 and means["nonfinite_steps"] == 1
    meter.add(step(math.nan, math.nan, math.nan))
    meter.turn(4)
    _, means = meter.turn(4)
    assert math.isnan(means["loss"]) and math.isnan(means["parameter_norm"])


def test_every_record_is_a_line_of_json(tmp_path, capsys):
    with Reporter(tmp_path, "tiny", 500) as reporter:
        reporter.start(0)
        reporter.trained(20, {"loss": 1.25}, 1234.56, 61.4)
        reporter.evaluated(20, "dev", {"bleu": math.nan, "bleu_signature": "v:2"})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 20, "split": "train", "loss": 1.25, "examples_per_second": 1234.6},
        {"step": 20, "split": "dev", "bleu": None, "bleu_signature": "v:2"},
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "step 20/500  loss 1.2500  1,235 examples/s  0:01:01 left",
        "step 20/500  dev: bleu nan",
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_terminal_gets_a_bar_with_rate_and_loss(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with Reporter(tmp_path, "tiny", 500) as reporter:
        reporter.start(7)
        reporter.trained(20, {"loss": 1.25}, 1234.56, 61.4)
        reporter.advance(21)
        reporter.tell("a word [in] between")
    said = capsys.readouterr()
    assert said.out == "" and "a word [in] between" in said.err
    assert "21/500" in said.err and "loss 1.2500  1,235 examples/s" in said.err and "step 20" not in said.err


def test_a_silent_reporter_writes_and_says_nothing(tmp_path, capsys):
    with Reporter(tmp_path, "tiny", 500, silent=True) as reporter:
        reporter.start(0)
        reporter.trained(20, {"loss": 1.25}, 1.0, 1.0)
        reporter.tell("hello")
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("last", ["", '{"step": 4, "spl'])
def test_rewinding_drops_later_steps_and_a_torn_line(tmp_path, last):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": number, "split": "train"}) + "\n" for number in (2, 4, 6, 8)]
    path.write_text("".join(lines) + '{"step": 4, "split": "test"}\n' + last)
    rewind(path, 4)
    assert path.read_text() == "".join(lines[:2])
    rewind(tmp_path / "none.jsonl", 4)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]

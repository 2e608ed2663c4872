"""What the harness measures of a call, on known cases: memory, roofs, and a contestant that JAX does not compile."""

from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import harness, machine
from benchmarks.harness import Contestant, compare


def test_a_peak_is_what_the_call_holds_at_once_and_not_what_was_there_before():
    there = np.ones(20_000_000)
    assert 150e6 < machine.peak(lambda: np.ones(20_000_000), ()) < 200e6
    assert machine.peak(lambda: there[0], ()) < 10e6


def test_without_linux_there_is_no_peak(monkeypatch):
    monkeypatch.setattr(machine, "Path", lambda name: Path(f"nowhere{name}"))
    assert machine.peak(lambda: None, ()) is None


def test_the_roof_is_the_one_that_takes_longest(monkeypatch):
    monkeypatch.setattr(machine, "roofs", lambda dtype: {"matmul_gflops": 100.0, "copy_gb_per_s": 10.0})
    roof, seconds = machine.under_roof({"matmul_gflops": 5e9, "copy_gb_per_s": 1e9}, "float32")
    assert roof == "copy_gb_per_s" and seconds == pytest.approx(0.1)
    assert machine.under_roof({}, "float32") == (None, 0.0)


def test_a_function_that_is_no_jax_is_called_as_it_is_and_has_no_compilers_figures():
    x = jnp.linspace(0.0, 1.0, 7)
    calls = []

    def peer(x):
        calls.append(type(x))
        return np.sin(np.asarray(x))

    contestants = [
        Contestant("attention_zoo", jnp.sin, (x,)),
        Contestant("numpy", peer, (np.asarray(x),), jitted=False),
    ]
    ours, theirs = compare("sine", "S7", "forward", contestants, tolerance=1e-6, repetitions=2)
    assert set(calls) == {np.ndarray} and len(calls) == 1 + 1 + 3 + 1  # first, compared, warm-up and two, peak
    assert ours.temporary_bytes is not None and theirs.temporary_bytes is theirs.flops is None
    assert ours.roof is ours.roof_fraction is None


def test_another_framework_that_fails_is_named_and_left_out(capsys):
    def broken(x):
        raise RuntimeError("no compiler")

    contestants = [Contestant("attention_zoo", jnp.sin, (jnp.ones(3),))]
    peer = Contestant("peer", broken, (1,), jitted=False)
    rows = compare("sine", "S3", "forward", [*contestants, peer], tolerance=0.0, repetitions=1)
    assert [row.implementation for row in rows] == ["attention_zoo"]
    assert capsys.readouterr().err == "peer fails, and is left out: RuntimeError: no compiler\n"
    with pytest.raises(RuntimeError, match="no compiler"):
        compare("sine", "S3", "forward", [*contestants, Contestant("peer", broken, (1,))], tolerance=0.0)


def test_a_fraction_of_a_roof_is_the_least_time_over_the_median(monkeypatch):
    monkeypatch.setattr(machine, "roofs", lambda dtype: {"tanh_g_per_s": 1.0})
    times = iter([1.0, 0.5, 0.25, 0.5])
    monkeypatch.setattr("benchmarks.harness.seconds", lambda *_, calls: next(times))
    (row,) = compare("tanh", "", "forward", [Contestant("attention_zoo", jnp.tanh, (jnp.ones(3),))], tolerance=1.0,
                     repetitions=3, needs={"tanh_g_per_s": 2e8})  # fmt: skip
    assert (row.roof, row.roof_fraction, row.median_ms) == ("tanh_g_per_s", 0.4, 500.0)


def test_what_a_step_gives_is_what_the_next_one_takes(monkeypatch):
    weights = {"w": jnp.arange(3.0)}

    def step(weights, x):
        return weights["w"].sum() + x, jax.tree.map(lambda w: w + 1, weights)

    made = [harness.Contestant(name, step, (weights, jnp.ones(())), itemgetter(0), carried=1) for name in "ab"]
    first, second = harness._able(made, "float32")
    assert (first.result, second.result) == (4, 4)  # each has weights of its own, whatever the other donated
    assert [float(first.call()[0]) for _ in range(3)] == [7, 10, 13]
    assert weights["w"].tolist() == [0, 1, 2] and "input_output_alias" in first.run.as_text()

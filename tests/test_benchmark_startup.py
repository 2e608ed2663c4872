"""The startup benchmark: one pair of imports, and trainings that end at their first step."""

import os
import time

import pytest

from attention_zoo.training import UserError
from benchmarks import startup


def test_the_import_is_timed_beside_that_of_jax_and_flax():
    ours, theirs = [*startup.benchmark("small", repetitions=1)]
    assert (ours.implementation, theirs.implementation) == ("attention_zoo", "jax and flax")
    assert ours.case == theirs.case == "import"
    assert ours.beyond_ms == pytest.approx(ours.median_ms - theirs.median_ms, abs=0.2) and theirs.beyond_ms == 0
    assert (ours.ratio, theirs.ratio) == (1, pytest.approx(theirs.median_ms / ours.median_ms, abs=1e-2))
    assert min(ours.cpu_ms, theirs.cpu_ms) > 100  # both have imported jax


def test_processes_take_turns_and_the_first_round_is_not_counted():
    calls = []

    def start(name, seconds):
        calls.append(name)
        return next(seconds)

    first, second = iter([50.0, 1.0, 2.0, 9.0]), iter([50.0, 3.0, 4.0, 9.0])
    rows = startup.measure("x", {"a": lambda: start("a", first), "jax and flax": lambda: start("b", second)}, 3)
    assert calls == ["a", "b"] * 4
    assert [row.median_ms for row in rows] == [2000, 4000]
    assert [row.ratio for row in rows] == [1, 2]  # of the ratios 3, 2, 1, pair by pair
    assert [row.beyond_ms for row in rows] == [-2000, 0]


def test_a_training_is_ended_at_its_first_step():
    code = "import sys, time; print('First step after 3.5 s.', file=sys.stderr, flush=True); time.sleep(60)"
    began = time.monotonic()
    assert startup.first_step(["-c", code], os.environ) == 3.5
    assert time.monotonic() - began < 30


def test_a_training_without_a_first_step():
    code = "import sys; print('there is no such flag', file=sys.stderr)"
    with pytest.raises(UserError, match="has no first step: there is no such flag"):
        startup.first_step(["-c", code], os.environ)


def test_a_process_that_fails():
    with pytest.raises(UserError, match=r"python -c import no_such_module failed: .*No module named 'no_such_module'"):
        startup.run("-c", "import no_such_module")


def test_starts_differ_in_what_they_find(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(startup, "first_step", lambda words, environment: found.append((words[-1], environment)) or 1.0)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    for _ in range(2):
        for start in startup.first_steps(tmp_path).values():
            start()
    folders = [environment["TFDS_DATA_DIR"] for _, environment in found[:3]]
    assert folders[1] == folders[2] == str(tmp_path / "data") != folders[0]
    caches = [environment.get("JAX_COMPILATION_CACHE_DIR") for _, environment in found[:3]]
    assert caches == [None, None, str(tmp_path / "cache")]
    assert len({words for words, _ in found[:3]}) == 3


def test_an_unknown_size():
    with pytest.raises(UserError, match="there is no size 'large'; there are small, paper"):
        [*startup.benchmark("large")]

"""How calls are timed on an accelerator: profiles by hand, and a harness that is told it has one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from attention_zoo.training.errors import UserError
from benchmarks import device_time, harness, machine
from benchmarks.harness import Contestant, compare

X = jnp.linspace(0.1, 1.0, 7)
SECONDS = {"attention_zoo": 3e-3, "peer": 6e-3, "other": 1.5e-3}


def plane(name, lines):
    """A plane in text; lines: names, and of each the events: name, start and duration in microseconds."""
    names = sorted({event for events in lines.values() for event, _, _ in events})
    kinds = "".join(f'event_metadata {{ key: {i} value {{ id: {i} name: "{n}" }} }} ' for i, n in enumerate(names, 1))

    def event(name, start, duration):
        place = f"metadata_id: {names.index(name) + 1} offset_ps: {int(start * 1e6)}"
        return f"events {{ {place} duration_ps: {int(duration * 1e6)} }} "

    text = "".join(f'lines {{ name: "{n}" {"".join(event(*one) for one in found)} }} ' for n, found in lines.items())
    return f'planes {{ name: "{name}" {text}{kinds} }} '


def profile(streams, calls=((20_000, 700), (22_000, 900)), device="/device:GPU:0"):
    marks = [(f"{device_time.MARK}{number}", *call) for number, call in enumerate(calls)]
    host = plane("/host:CPU", {"python": [*marks[::-1], ("PjitFunction(f)", 20_010, 100)]})
    return ProfileData.from_text_proto(host + plane(device, streams))


STREAMS = {
    "Stream #7(Compute)": [("a", 20_100, 50), ("b", 20_130, 100), ("a", 22_090, 50), ("b", 22_500, 100)],
    "Stream #9(MemcpyD2D)": [("copy", 20_220, 50)],
    "XLA Modules": [("jit_f", 20_100, 600), ("jit_f", 22_000, 800)],
}


def test_a_call_is_busy_for_the_union_of_its_kernels_and_copies():
    assert device_time.busy(profile(STREAMS)) == pytest.approx([170e-6, 150e-6])
    assert device_time.union([(4, 5), (0, 2), (1, 3), (1, 2)]) == 4 and device_time.union([]) == 0


def test_two_clocks_are_set_by_the_first_kernel_or_refused():
    off = {name: [(one, start + 5e6, long) for one, start, long in events] for name, events in STREAMS.items()}
    assert device_time.busy(profile(off)) == pytest.approx([170e-6, 150e-6])
    for wrong in (
        [("a", 20_100, 1_800)],
        [("a", 20_100, 950)],
        [("a", 19_000, 10), ("b", 20_600, 10), ("a", 21_000, 999)],
    ):
        with pytest.raises(ValueError, match="no clock in common"):
            device_time.busy(profile({"Stream #7": wrong}))


def test_a_call_without_kernels_has_none_and_a_profile_without_a_device_is_refused():
    assert device_time.busy(profile({"Stream #7": [("a", 20_100, 50)]})) == pytest.approx([50e-6, 0.0])
    with pytest.raises(ValueError, match=r"of 2 calls shows nothing of a GPU; it has /host:CPU, /device:CUSTOM:0"):
        device_time.busy(profile(STREAMS, device="/device:CUSTOM:0"))


def test_where_the_profiler_tells_nothing_it_says_so_and_the_calls_are_marked(capsys, monkeypatch):
    made = []
    assert device_time.traced([lambda: made.append(1), lambda: made.append(2)]) is None
    assert made == [1, 2] and "ValueError: a profile of 2 calls shows nothing of a GPU" in capsys.readouterr().err
    monkeypatch.setattr(
        device_time, "busy", lambda profile: [1e-9 * (end - start) for start, end in device_time._calls(profile)]
    )
    short, long = device_time.traced([lambda: None, lambda: np.linalg.svd(np.ones((400, 400)))])
    assert 0 < short < long
    monkeypatch.setattr(device_time, "busy", lambda profile: [1.0])
    assert device_time.traced([lambda: None, lambda: None]) is None
    assert "it shows 1 of 2 calls" in capsys.readouterr().err


@pytest.fixture
def gpu(monkeypatch):
    """An accelerator whose profiler sees `SECONDS` of each contestant, named by what it returns; and how long a call
    is on the wall: ten times that."""
    called = []

    def traced(calls):
        return [SECONDS.get(name, 0.0) for name in (call() for call in calls)]

    def wall(run, arguments, wait, *, calls):
        called.append(calls)
        return 10 * SECONDS.get(wait(run(*arguments)), 2e-3)

    monkeypatch.setattr(harness, "accelerated", lambda: True)
    monkeypatch.setattr(harness, "enough", lambda *_: 5)
    monkeypatch.setattr(harness, "traced", traced)
    monkeypatch.setattr(harness, "seconds", wall)
    return called


def ready(*names):
    contestants = [Contestant(name, lambda name=name: name, (), jitted=False, wait=lambda name: name) for name in names]
    return [harness.Ready(one, one.work, 0.0, None) for one in contestants]


def test_each_has_its_own_device_time_whatever_the_order_of_the_round(gpu):
    found = harness.rounds(ready("attention_zoo", "peer", "other"), 4)
    assert [clock for _, _, clock in found] == ["profiler"] * 3 and not gpu
    for (own, ours, _), seconds in zip(found, SECONDS.values(), strict=True):
        np.testing.assert_array_equal(own, [seconds] * 4)
        np.testing.assert_array_equal(ours, [3e-3] * 4)


def test_one_that_the_profiler_does_not_see_is_compared_on_the_wall(gpu):
    ours, peer, unseen = harness.rounds(ready("attention_zoo", "peer", "unseen"), 2)
    assert (ours[2], peer[2], unseen[2]) == ("profiler", "profiler", "wall") and set(gpu) == {5}
    assert unseen[0].tolist() == [20e-3] * 2 and unseen[1].tolist() == [30e-3] * 2


@pytest.mark.parametrize("why", ["blind", "asked", "ours unseen"])
def test_without_device_time_all_are_on_the_wall(gpu, monkeypatch, why):
    if why == "blind":
        monkeypatch.setattr(harness, "traced", lambda calls: None)
    names = ("unseen", "peer") if why == "ours unseen" else ("attention_zoo", "peer")
    (_, _, first), (own, ours, second) = harness.rounds(ready(*names), 2, "wall" if why == "asked" else "profiler")
    assert first == second == "wall" and own.tolist() == [60e-3] * 2
    assert ours.tolist() == [20e-3 if why == "ours unseen" else 30e-3] * 2


def test_a_loop_is_timed_on_the_wall(gpu, monkeypatch):
    looped = jax.jit(lambda x: jax.lax.fori_loop(0, x[0].astype(int), lambda _, y: jnp.sin(y), x)).lower(X).compile()
    assert harness._loops(looped) and not harness._loops(jax.jit(jnp.sin).lower(X).compile())
    monkeypatch.setattr(harness, "_loops", lambda run: run() == "peer")
    assert [clock for _, _, clock in harness.rounds(ready("attention_zoo", "peer", "other"), 1)] == [
        "profiler",
        "wall",
        "profiler",
    ]


def accelerated(monkeypatch):
    """Only the harness is told: roofs and peaks stay those of the CPU."""
    monkeypatch.setattr(harness, "accelerated", lambda: True)
    monkeypatch.setattr(harness, "enough", lambda *_: 2)
    monkeypatch.setattr(harness, "traced", lambda calls: [call() is not None and 2.5e-5 for call in calls])


def test_on_an_accelerator_who_fails_or_differs_is_left_out(monkeypatch, capsys):
    def broken(x):
        raise NotImplementedError("no such kernel")

    accelerated(monkeypatch)
    ours, peer = Contestant("attention_zoo", jnp.sin, (X,)), Contestant("peer", lambda x: jnp.sin(x), (X,))
    wrong, fails = Contestant("wrong", jnp.cos, (X,)), Contestant("fails", broken, (X,))
    rows = compare("sine", "S7", "forward", [ours, wrong, fails, peer], tolerance=1e-6, repetitions=2)
    assert [(row.implementation, row.timed_by, row.median_ms, row.ratio) for row in rows] == [
        ("attention_zoo", "profiler", 0.025, 1.0),
        ("peer", "profiler", 0.025, 1.0),
    ]
    errors = capsys.readouterr().err
    assert "fails fails, and is left out: NotImplementedError: no such kernel" in errors
    assert "sine, S7: wrong differs from attention_zoo by" in errors
    with pytest.raises(UserError, match="wrong differs from attention_zoo by"):
        compare("sine", "S7", "forward", [ours, wrong], tolerance=1e-6, repetitions=2)
    with pytest.raises(NotImplementedError):
        compare("sine", "S7", "forward", [fails, ours], tolerance=1e-6, repetitions=2)


def test_float32_is_float32_on_an_accelerator_alone(monkeypatch):
    def text(dtype):
        return jax.jit(jnp.dot).lower(*[jnp.ones((3, 3), dtype)] * 2).as_text()

    with machine.exact("float32"):
        assert "HIGHEST" not in text("float32")
    monkeypatch.setattr(machine, "accelerated", lambda: True)
    with machine.exact("float32"):
        assert "HIGHEST" in text("float32")
    with machine.exact("bfloat16"):
        assert "HIGHEST" not in text("bfloat16")


def test_calls_back_to_back_hide_the_launch_of_an_accelerator(monkeypatch):
    assert machine.enough(lambda: 1 / 0, ()) == 1
    monkeypatch.setattr(machine, "accelerated", lambda: True)
    for time, calls in ((1e-5, 50), (4e-2, 6), (1.0, 1)):
        monkeypatch.setattr(machine, "seconds", lambda *_, time=time: time)
        assert machine.enough(lambda: None, ()) == calls
    monkeypatch.undo()
    made = []
    assert machine.seconds(made.append, (1,), made.append, calls=3) < 1 and made == [1, 1, 1, None]

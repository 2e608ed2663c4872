"""What an accelerator did for a call: the time of its kernels and copies, as JAX's profiler saw them.

The profiler sees all that the process starts on a GPU, other frameworks' kernels too.
"""

import sys
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

MARK = "attention_zoo.benchmarks.call."
PAUSE = 1e-3  # Seconds before each call; host and device may disagree about the time by less than half of it.
Interval = tuple[float, float]


def traced(calls: Sequence[Callable[[], Any]]) -> list[float] | None:
    """Makes calls, each of which waits for its result, and gives the seconds that the device was busy with each.

    A call of which the profiler saw nothing has 0. None, and a sentence on stderr, where it tells nothing of a device.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level, options.enable_hlo_proto = 0, 1, False
    try:
        with TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                for number, call in enumerate(calls):
                    time.sleep(PAUSE)
                    with jax.profiler.TraceAnnotation(f"{MARK}{number}"):
                        call()
            (file,) = Path(folder).rglob("*.xplane.pb")
            times = busy(jax.profiler.ProfileData.from_file(str(file)))
        if len(times) != len(calls):
            raise ValueError(f"it shows {len(times)} of {len(calls)} calls")
        return times
    except Exception as error:  # Whatever a profiler lacks, the clock on the wall is still there.
        print(f"the profiler fails, and calls are timed by the wall: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def busy(profile: Any) -> list[float]:
    """For each marked call of a profile, in order, the seconds of the union of its kernels' and copies' intervals.

    Each call waits for the device, so that all it does there lies within its mark.

    Raises:
        ValueError: the profile shows no call or no device, or its marks and its device have no clock in common.
    """
    calls, events = _calls(profile), _events(profile)
    if not calls or not events:
        planes = ", ".join(plane.name for plane in profile.planes)
        raise ValueError(f"a profile of {len(calls)} calls shows nothing of a GPU; it has {planes}")
    for shift in (0.0, events[0][0] - calls[0][0]):
        times = _shares(calls, [(start - shift, end - shift) for start, end in events])
        if times is not None:
            return times
    raise ValueError("its calls and its device have no clock in common")


def union(intervals: Sequence[Interval]) -> float:
    """The length of the union of intervals.

    >>> union([(4, 5), (0, 2), (1, 3)])
    4.0
    """
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


def _calls(profile: Any) -> list[Interval]:
    """The intervals of the marks, by their numbers."""
    found = {
        int(event.name.removeprefix(MARK)): (event.start_ns, event.end_ns)
        for plane in profile.planes
        if plane.name == "/host:CPU"
        for line in plane.lines
        for event in line.events
        if event.name.startswith(MARK)
    }
    return [found[number] for number in sorted(found)]


def _events(profile: Any) -> list[Interval]:
    """What ran on the GPUs; lines that are no streams only group it."""
    return sorted(
        (event.start_ns, event.end_ns)
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )


def _shares(calls: Sequence[Interval], events: Sequence[Interval]) -> list[float] | None:
    """The busy seconds of each call; None where events lie outside of their calls."""
    slack = 1e9 * PAUSE / 2
    starts, groups = [start - slack for start, _ in calls], [list[Interval]() for _ in calls]
    for start, end in events:
        number = bisect(starts, start) - 1
        if number < 0 or end > calls[number][1] + slack:
            return None
        groups[number].append((start, end))
    times = [union(group) for group in groups]
    within = all(time <= end - start for time, (start, end) in zip(times, calls, strict=True))
    return [1e-9 * time for time in times] if within else None

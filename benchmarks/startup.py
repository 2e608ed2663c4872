"""How long does it take to start: to import the package, and from a command to its first training step?

Every measurement is a process of its own, with the interpreter that runs the benchmark, in turn: A B A B ... The
package itself imports nothing, its folders do (`functional`, `modules`, ...), so each is measured, and all of them
together. `beyond_ms` is what a process takes beyond one that imports jax and flax alone. The first step is that of
`python -m experiments train dates_bahdanau`, from the start of the process: with nothing prepared, with the data set
prepared, and with JAX's compilation cache filled as well, which a user turns on with `JAX_COMPILATION_CACHE_DIR`; of
these there are MOST_STARTS repetitions at most. `cpu_ms`, the processor time of a process and its threads, is the
figure to compare on a machine that others use too. `ratio` is over the first row's time.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory

import numpy as np

from attention_zoo.training.errors import UserError
from benchmarks.harness import median_with_interval
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row

DOORS = ("functional", "modules", "models", "training", "data", "figures")
# Which doors are imported, and whether commands are run too.
SIZES: dict[str, tuple[tuple[str, ...], bool]] = {"small": ((), False), "paper": (DOORS, True)}
TOLERANCES = {"float32": 0.0}
PEERS: Peers = {"jax and flax": lambda: "import jax, flax"}
EXPERIMENT = "dates_bahdanau"
MOST_STARTS = 3
ROOT = Path(__file__).parents[1]  # where the commands are found
FIRST_STEP = re.compile(r"First step after ([\d.]+) s\.")


@dataclass(frozen=True, kw_only=True)
class StartupRow(Row):
    """Processes of one kind.

    `cpu_ms`: median of the processor time, of all threads.
    `beyond_ms`: median of the time beyond that of the process that imports jax and flax, pair by pair; None without it.
    """

    cpu_ms: float
    beyond_ms: float | None


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> Iterator[Row]:
    """Rows of the imports and, at "paper", of `python -m experiments list` and of first training steps."""
    doors, commands = SIZES[known(size, SIZES, "size")]
    imports = {OURS: f"{PEERS['jax and flax']()}, {OURS}", **bring(PEERS, peers)}
    imports |= {f"{OURS}.{door}": f"{imports[OURS]}.{door}" for door in doors}
    if doors:
        imports["every folder"] = ", ".join([imports[OURS], *(f"{OURS}.{door}" for door in doors)])
    yield from measure("import", {name: partial(run, "-c", code) for name, code in imports.items()}, repetitions)
    if commands:
        yield from measure("experiments list", {OURS: partial(run, "-m", "experiments", "list")}, repetitions)
        with TemporaryDirectory() as folder:
            yield from measure("first step", first_steps(Path(folder)), min(repetitions, MOST_STARTS))


def measure(case: str, contestants: Mapping[str, Callable[[], float]], repetitions: int) -> list[Row]:
    """Calls all in turn, after a first round that warms the disk up; each starts a process and gives its seconds."""
    rounds = [[_used(start) for start in contestants.values()] for _ in range(1 + repetitions)]
    wall, cpu = np.moveaxis(1e3 * np.array(rounds[1:]), -1, 0)  # [repetitions, contestants]
    base = next((wall[:, n] for n, name in enumerate(contestants) if name in PEERS), None)
    rows: list[Row] = []
    for number, name in enumerate(contestants):
        median, low, high = np.quantile(wall[:, number], [0.5, 0.25, 0.75]).round(1).tolist()
        ratio, ratio_low, ratio_high = median_with_interval(wall[:, number] / wall[:, 0])
        rows.append(
            StartupRow(
                benchmark="startup",
                case=case,
                direction="process",
                dtype="float32",
                implementation=name,
                median_ms=median,
                low_ms=low,
                high_ms=high,
                ratio=ratio,
                ratio_low=ratio_low,
                ratio_high=ratio_high,
                cpu_ms=round(float(np.median(cpu[:, number])), 1),
                beyond_ms=None if base is None else round(float(np.median(wall[:, number] - base)), 1),
            )
        )
    return rows


def _used(start: Callable[[], float]) -> tuple[float, float]:
    """The seconds that a start says, and the processor time of the process that it waited for."""
    before = getrusage(RUSAGE_CHILDREN)
    seconds = start()
    after = getrusage(RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(*words: str) -> float:
    """The seconds of a Python process with these arguments.

    Raises:
        UserError: it fails.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"python {' '.join(words)} failed: {(done.stderr.strip().splitlines() or ['silently'])[-1]}")
    return time.perf_counter() - began


def first_steps(folder: Path) -> dict[str, Callable[[], float]]:
    """Trainings up to their first step; everything they write is below `folder`."""
    new = count()

    def start(data: str | None = None, cache: str | None = None) -> float:
        here = folder / f"run{next(new)}"
        chosen = {"TFDS_DATA_DIR": folder / data if data else here / "data"}
        chosen |= {"JAX_COMPILATION_CACHE_DIR": folder / cache} if cache else {}
        others = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        words = ["-m", "experiments", "train", EXPERIMENT, "--workdir", str(here / "run")]
        return first_step(words, {**others, **{name: str(value) for name, value in chosen.items()}})

    return {
        OURS: start,
        f"{OURS}, data prepared": partial(start, "data"),
        f"{OURS}, and a compilation cache": partial(start, "data", "cache"),
    }


def first_step(words: Sequence[str], environment: Mapping[str, str]) -> float:
    """The seconds from the start of a training command to its first step, as it tells them; it is ended then.

    Raises:
        UserError: it ends without a first step.
    """
    said = ""
    command = [sys.executable, *words]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for said in process.stderr or ():
            if found := FIRST_STEP.search(said):
                process.kill()
                return float(found[1])
    raise UserError(f"python {' '.join(words)} has no first step: {said.strip() or 'it says nothing'}")

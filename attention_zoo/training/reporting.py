"""What a run shows and keeps on its way: progress on the terminal, metrics.jsonl and TensorBoard events."""

import json
import math
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from attention_zoo.training.noise import GradientNoise

METRICS = "metrics.jsonl"


def say(text: str) -> None:
    """Prints a line to stderr, beside the results."""
    print(text, file=sys.stderr, flush=True)


class Meter:
    """Keeps the metrics of steps on their devices and reads them one window late, so that no step waits for them."""

    def __init__(self) -> None:
        self._closed: list[Mapping[str, Any]] = []
        self._open: list[Mapping[str, Any]] = []
        self._end = 0

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of one more step, unread."""
        self._open.append(metrics)

    def turn(self, step: int) -> tuple[int, dict[str, float]] | None:
        """Closes the window at `step`; the last step and the means of the window before, None if there was none."""
        found = (self._end, _means(jax.device_get(self._closed))) if self._closed else None
        self._closed, self._open, self._end = self._open, [], step
        return found


def _means(rows: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Means over the steps that had a finite gradient; the parameters' norm as the last step left it."""
    finite = [row for row in rows if np.isfinite(row["gradient_norm"])]
    means = {name: float(np.mean([row[name] for row in finite or rows])) for name in rows[0]}
    means["parameter_norm"] = float(rows[-1]["parameter_norm"])
    return means | ({"nonfinite_steps": len(rows) - len(finite)} if len(finite) < len(rows) else {})


class Reporter:
    """Progress, metrics.jsonl and TensorBoard events of one run; silent and without files but in the first process.

    On a terminal there is a bar with rate, loss and time left, elsewhere one plain line for every window of steps.
    """

    def __init__(self, workdir: Path, name: str, steps: int, *, silent: bool = False) -> None:
        self._workdir, self._steps, self._silent = workdir, steps, silent
        console = Console(stderr=True)
        self._bar = _bar(console) if console.is_terminal and not silent else None
        self._task = self._bar.add_task(name, total=steps, note="getting ready") if self._bar else None
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._writer:
            self._writer.close()

    def tell(self, text: str) -> None:
        """Shows a line, above the bar where there is one."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        elif not self._silent:
            say(text)

    def start(self, step: int) -> None:
        """Begins after `step`: what an earlier start of the run wrote about later steps is taken back."""
        if self._silent:
            return
        rewind(self._workdir / METRICS, step)
        self._writer = SummaryWriter(str(self._workdir), purge_step=step + 1 if step else None, flush_secs=10)
        self.advance(step)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step)

    def trained(self, step: int, metrics: Mapping[str, float], examples_per_second: float, seconds_left: float) -> None:
        """Records the means of a window of training steps that ended with `step`, and shows loss and rate."""
        self._record(step, "train", {**metrics, "examples_per_second": round(examples_per_second, 1)})
        note = f"loss {metrics['loss']:.4f}  {examples_per_second:,.0f} examples/s"
        if self._bar and self._task is not None:
            self._bar.update(self._task, note=note)
        else:
            left = timedelta(seconds=round(seconds_left))
            self.tell(f"step {step}/{self._steps}  {note}  {left} left")

    def evaluated(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of a split and shows them."""
        self._record(step, split, metrics)
        numbers = [f"{name} {value:.4f}" for name, value in metrics.items() if not isinstance(value, str)]
        self.tell(f"step {step}/{self._steps}  {split}: " + "  ".join(numbers))

    def noisy(self, step: int, groups: Mapping[str, GradientNoise]) -> None:
        """Records how noisy a step's gradient is, by groups of parameters."""
        self._record(step, "gradient_variance", {name: noise.variance for name, noise in groups.items()})
        self._record(step, "gradient_snr", {name: noise.snr for name, noise in groups.items()})

    def _record(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        line = {"step": step, "split": split, **{name: plain(value) for name, value in metrics.items()}}
        with (self._workdir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in metrics.items():
            if not isinstance(value, str):
                self._writer.add_scalar(f"{split}/{name}", value, step)


def rewind(path: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl about steps after `step` or the end of the run, and one that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if found["step"] <= step and found["split"] != "test":
            kept.append(line + "\n")
    write_whole(path, "".join(kept))


def has_lines(path: Path) -> bool:
    """Whether an earlier start of the run has written about its steps."""
    return path.exists() and path.stat().st_size > 0


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there in whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def plain(value: Any) -> Any:
    """A value as JSON has it, which knows no infinity and no NaN."""
    if isinstance(value, str):
        return value
    return float(value) if math.isfinite(value) else None


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )

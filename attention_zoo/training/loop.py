"""`fit`: one loop for every model, from the first compilation to summary.json."""

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from attention_zoo.training import machine
from attention_zoo.training.checkpoint import Checkpoints, Progress
from attention_zoo.training.errors import Interrupted, UserError
from attention_zoo.training.experiment import Batch, Experiment
from attention_zoo.training.noise import NoiseMeter
from attention_zoo.training.reporting import METRICS, Meter, Reporter, has_lines, plain, say, write_whole
from attention_zoo.training.sharding import check_batch_size, make_mesh, on_one_device, shard_batch
from attention_zoo.training.step import Steps, evaluation_parameters
from attention_zoo.training.stopping import StopRequest

SUMMARY = "summary.json"


def fit(experiment: Experiment, workdir: Path | str, *, log_every: int = 50) -> dict[str, Any]:
    """Trains an experiment over all visible devices, keeps the best checkpoint and judges it by the test split.

    A work folder that holds checkpoints is gone on with, one that holds summary.json is finished. Every process
    evaluates on a device of its own; the first one writes.

    Args:
        workdir: gets checkpoints/, metrics.jsonl, TensorBoard events, figures/ and, last, summary.json.
        log_every: steps whose mean metrics make one line of metrics.jsonl.

    Returns:
        what summary.json holds: experiment, metrics (of the test split), dev_metrics (of the best checkpoint, as they
        were when it was made), steps, seconds (of the whole run, all starts together), seconds_to_first_step (from the
        start of the process), examples_per_second (while training), parameters, device, versions, seed.

    Raises:
        UserError: the work folder cannot be written, its checkpoints cannot be used, the batch size does not fit
            the devices, or the parameters are no longer finite.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    workdir = Path(workdir)
    if (workdir / SUMMARY).exists():
        return finished(workdir / SUMMARY)
    first = jax.process_index() == 0
    mesh = make_mesh()
    check_batch_size(experiment.batch_size, mesh)
    machine.make_writable(workdir)
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir))
        reporter = stack.enter_context(Reporter(workdir, experiment.name, experiment.steps, silent=not first))
        steps = Steps(experiment, mesh)
        stack.callback(steps.close)
        run = Run(experiment, checkpoints, reporter, steps)
        run.prepare(workdir)
        with StopRequest() as stop:  # Before and after it everything is saved, and Ctrl-C may end the run at once.
            run.train(stop, log_every)
        steps.close()
        return run.finish(workdir)


def finished(path: Path) -> dict[str, Any]:
    """The summary of a run that is finished.

    Raises:
        UserError: the file is damaged.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        dict(summary["metrics"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; without it the same command judges the best checkpoint again") from error
    say(f"The run in {path.parent} is finished, see {path}.")
    return summary


class Run:
    """One start of a run: what changes from step to step, and what is done with it."""

    def __init__(self, experiment: Experiment, checkpoints: Checkpoints, reporter: Reporter, steps: Steps) -> None:
        self.experiment, self.checkpoints, self.reporter, self.steps = experiment, checkpoints, reporter, steps
        self.meter, self.progress, self.noise = Meter(), Progress(), NoiseMeter(experiment, steps.mesh)
        self.warm = False
        self.began = self.mark = time.monotonic()
        data = experiment.data.train(experiment.seed, jax.process_index(), jax.process_count())
        self.iterator: Any = iter(data)
        self.batch: dict[str, jax.Array] | None = None

    def prepare(self, workdir: Path) -> None:
        """Compiles the step for the first batch's shape while the state is made; the other shapes are on their way."""
        found = self.checkpoints.restore(self.steps.state_shapes, self.iterator, self.reporter.tell)
        digest = getattr(self.experiment.data, "digest", "")
        if found and found[1].data != digest:
            raise UserError(f"the data are not those that the checkpoints in {workdir} were made with")
        if jax.process_index() == 0:
            self.experiment.data.save(workdir)
        if found:
            self.state, self.progress = found
        if not self._done():
            self.batch = self._next_batch()
            # The first batch's shape first and alone, so that training begins soon; the others while it goes on.
            shapes = sorted(self.experiment.data.shapes(), key=self._comes_later)
            self.steps.compile_ahead(shapes)
            if not found:
                self.state, self.progress = self.steps.initial(), Progress(data=digest)
            self.steps.ready(self.batch)
        self.saved = self.progress.step
        if found:
            self.reporter.tell(f"Going on after step {self.saved}.")
        elif has_lines(workdir / METRICS):
            self.reporter.tell(f"There is no checkpoint in {self.checkpoints.folder}: starting from the beginning.")
        self.reporter.start(self.saved)

    def train(self, stop: StopRequest, log_every: int) -> None:
        """Steps until all are done, patience is at its end or a stop is asked for."""
        experiment, progress = self.experiment, self.progress
        while not self._done():
            self._stop_if_asked(stop, together=progress.step % log_every == 0)
            self._advance()
            if progress.step % log_every == 0:
                self._report()
            last = progress.step == experiment.steps
            evaluating = last or progress.step % experiment.evaluate_every == 0
            if evaluating:
                self._evaluate()
            if evaluating or progress.step % experiment.checkpoint_every == 0:
                self._save()
        self._stop_if_asked(stop, together=True)

    def finish(self, workdir: Path) -> dict[str, Any]:
        """Judges the best checkpoint by the test split, draws figures, writes summary.json and gives it back."""
        self.checkpoints.wait()
        best = self.checkpoints.parameters(evaluation_parameters(self.steps.state_shapes), self.reporter.tell)
        params = on_one_device(best, self.steps.mesh)
        metrics = dict(self.experiment.evaluate(params, "test"))
        self.reporter.evaluated(self.progress.step, "test", metrics)
        summary = self._summary(metrics)
        if jax.process_index() == 0:
            (workdir / "figures").mkdir(exist_ok=True)
            self.experiment.draw(params, workdir / "figures")
            summary["seconds"] = round(self._seconds(), 2)
            write_whole(workdir / SUMMARY, json.dumps(summary, indent=2) + "\n")
        return summary

    def _comes_later(self, shape: Batch) -> bool:
        """Whether the first batch has another shape."""
        assert self.batch is not None
        return any(leaf.shape[1:] != self.batch[name].shape[1:] for name, leaf in shape.items())

    def _next_batch(self) -> dict[str, jax.Array]:
        return shard_batch(next(self.iterator), self.steps.mesh)

    def _advance(self) -> None:
        """One step. The batch after it is read while the devices work on it."""
        batch, self.batch = self.batch or self._next_batch(), None
        self._measure_noise(batch)
        self._wait_for_compiler(batch)
        self.state, metrics = self.steps(self.state, batch)
        self.progress.step += 1
        self.meter.add(metrics)
        self.reporter.advance(self.progress.step)
        if self.warm:
            self.progress.examples += self.experiment.batch_size
        else:
            self._first_step_done()

    def _wait_for_compiler(self, batch: dict[str, jax.Array]) -> None:
        """Waits for the step of this batch's shape, which is no time of training."""
        waits = self.steps.waits(batch)
        if waits:
            self._pause()
        self.steps.ready(batch)
        if waits:
            self.mark = time.monotonic()

    def _measure_noise(self, batch: dict[str, jax.Array]) -> None:
        """Records how noisy the gradient of the coming step is, where that is asked for; it is no time of training."""
        step = self.progress.step + 1
        if self.noise.due(step):
            self._pause()
            self.reporter.noisy(step, self.noise(self.state, batch))
            self.mark = time.monotonic()

    def _pause(self) -> None:
        """Ends the time of training until a new mark is set."""
        if self.warm:
            jax.block_until_ready(self.state.step)
            self._tick()

    def _first_step_done(self) -> None:
        """Starts the clock of the training speed after a start's first step."""
        jax.block_until_ready(self.state.step)
        if not self.progress.seconds_to_first_step:
            self.progress.seconds_to_first_step = round(machine.seconds_since_start(), 2)
            self.reporter.tell(f"First step after {self.progress.seconds_to_first_step:.1f} s.")
        self.warm, self.mark = True, time.monotonic()

    def _tick(self) -> None:
        now = time.monotonic()
        self.progress.training_seconds += now - self.mark
        self.mark = now

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self.began

    def _rate(self) -> float:
        return self.progress.examples / max(self.progress.training_seconds, 1e-9)

    def _report(self) -> None:
        """Closes a window of steps and records the one before it."""
        found = self.meter.turn(self.progress.step)
        self._tick()
        if found is None:
            return
        step, means = found
        left = (self.experiment.steps - self.progress.step) * self.experiment.batch_size / max(self._rate(), 1e-9)
        self.reporter.trained(step, means, self._rate(), left)
        if not math.isfinite(means["parameter_norm"]):
            raise UserError(
                f"the parameters are no longer finite at step {step}; a lower learning rate, clipping (clip=) or "
                "skip_nonfinite= may help"
            )

    def _drain(self) -> None:
        """Records all steps so far; the devices have then done them."""
        self._report()
        self._report()

    def _evaluate(self) -> None:
        """Judges the parameters by the dev split; of equals the newer is the best."""
        self._drain()
        params = on_one_device(evaluation_parameters(self.state), self.steps.mesh)
        metrics = self.experiment.evaluate(params, "dev")
        self.reporter.evaluated(self.progress.step, "dev", metrics)
        score = score_of(metrics, self.experiment)
        progress = self.progress
        better = progress.best is None or score > progress.best
        progress.evaluations_without_best = 0 if better else progress.evaluations_without_best + 1
        if better or score == progress.best:
            progress.best, progress.best_step = score, progress.step
            progress.best_metrics = {name: plain(value) for name, value in metrics.items()}
        self.mark = time.monotonic()

    def _done(self) -> bool:
        patience, progress = self.experiment.patience, self.progress
        out_of_patience = patience is not None and progress.evaluations_without_best >= patience
        return progress.step >= self.experiment.steps or out_of_patience

    def _save(self) -> None:
        self._drain()
        self.saved = self.progress.step
        self.checkpoints.save(self.state, self.iterator, replace(self.progress, seconds=self._seconds()))
        self.mark = time.monotonic()

    def _stop_if_asked(self, stop: StopRequest, together: bool) -> None:
        if not stop.asked(together):
            return
        if self.saved < self.progress.step:
            self._save()
        self.checkpoints.wait()
        raise Interrupted(f"stopped after step {self.progress.step}; the same command goes on from there")

    def _summary(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "experiment": self.experiment.name,
            "metrics": {name: plain(value) for name, value in metrics.items()},
            "dev_metrics": self.progress.best_metrics,
            "steps": self.progress.step,
            "seconds": round(self._seconds(), 2),
            "seconds_to_first_step": self.progress.seconds_to_first_step,
            "examples_per_second": round(self._rate(), 1),
            "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.steps.state_shapes.params)),
            "device": machine.device(),
            "versions": machine.versions(),
            "seed": self.experiment.seed,
        }


def score_of(metrics: Mapping[str, Any], experiment: Experiment) -> float:
    """The metric to choose the best checkpoint by, with its sign so that higher is better; NaN is worst of all.

    Raises:
        ValueError: `evaluate` does not give the metric.
    """
    if experiment.best_metric not in metrics:
        raise ValueError(f"best_metric {experiment.best_metric!r} is not among the metrics {', '.join(metrics)}")
    value = float(metrics[experiment.best_metric])
    score = value if experiment.best_mode == "max" else -value
    return -sys.float_info.max if math.isnan(score) else score

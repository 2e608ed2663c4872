"""Checkpoints with Orbax: all that a run needs to go on as if it had never stopped."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import grain
import grain.checkpoint
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from attention_zoo.training.errors import UserError
from attention_zoo.training.optimizers import averaged_parameters
from attention_zoo.training.reporting import say
from attention_zoo.training.step import KEYS, TrainState, evaluation_parameters

FOLDER = "checkpoints"


@dataclasses.dataclass
class Progress:
    """What a run remembers beside its state; the seconds add up over all its starts."""

    step: int = 0
    best: float | None = None
    evaluations_without_best: int = 0
    examples: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    seconds_to_first_step: float = 0.0


class Checkpoints:
    """The checkpoints of a work folder: the newest two and the best.

    Orbax writes in the background and gives a checkpoint its name, or its mark of success, when all of it is there:
    one that was only half written is never seen. Each holds `parameters` (those to evaluate), `training` (optimiser,
    key, step, and the parameters that are trained where an average of them is evaluated), `iterator` (the position in
    the data) and `progress`.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False) -> None:
        keep = AnyPreservationPolicy(
            [LatestN(2), BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)]
        )
        self.folder = workdir.absolute() / FOLDER
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep, best_fn=_score, read_only=read_only, cleanup_tmp_directories=not read_only
            ),
            handler_registry=_handlers(),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def save(
        self, state: TrainState, iterator: grain.DatasetIterator, progress: Progress, score: float | None = None
    ) -> None:
        """Starts writing a checkpoint and returns; the one with the highest score is kept."""
        parts = {
            "parameters": ocp.args.StandardSave(evaluation_parameters(state)),
            "training": ocp.args.StandardSave(_training(state, jax.random.key_data(state.key))),
            "iterator": grain.checkpoint.CheckpointSave(iterator),
            "progress": ocp.args.JsonSave(dataclasses.asdict(progress)),
        }
        metrics = None if score is None or not math.isfinite(score) else {"score": score}
        self._manager.save(progress.step, args=ocp.args.Composite(**parts), metrics=metrics, force=True)

    def restore(
        self, shapes: TrainState, iterator: grain.DatasetIterator, tell: Callable[[str], None] = say
    ) -> tuple[TrainState, Progress] | None:
        """The newest checkpoint that can be read, `iterator` moved to where it was; None if there is none at all.

        Damaged checkpoints newer than that one are said so and removed, so that they can be written again.

        Raises:
            UserError: there are checkpoints but none can be read, or they are of another model.
        """
        start = iterator.get_state()

        def read(step: int) -> tuple[TrainState, Progress]:
            iterator.set_state(start)
            return self._read(step, shapes, iterator)

        steps = self.steps()
        if not steps:
            return None
        found, damaged = self._first_readable(steps, read, evaluation_parameters(shapes), tell)
        for step in damaged:
            self._manager.delete(step)
        return found

    def parameters(self, template: Any, tell: Callable[[str], None] = say) -> Any:
        """The parameters of the best checkpoint, or if that is damaged of the newest that can be read."""
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder} holds no checkpoint; train first")
        best = self._manager.best_step()
        template = jax.tree.map(_somewhere, template)
        steps.sort(key=lambda step: step != best)

        def read(step: int) -> Any:
            part = ocp.args.Composite(parameters=ocp.args.StandardRestore(template))
            return self._manager.restore(step, args=part)["parameters"]

        return self._first_readable(steps, read, template, tell)[0]

    def _read(self, step: int, shapes: TrainState, iterator: grain.DatasetIterator) -> tuple[TrainState, Progress]:
        key = jax.eval_shape(jax.random.key_data, shapes.key)
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=shapes.key.sharding)
        parts = {
            "parameters": ocp.args.StandardRestore(evaluation_parameters(shapes)),
            "training": ocp.args.StandardRestore(_training(shapes, key)),
            "iterator": grain.checkpoint.CheckpointRestore(iterator),
            "progress": ocp.args.JsonRestore(),
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**parts))
        training = {"params": found["parameters"], **found["training"]}
        training["key"] = jax.random.wrap_key_data(training["key"], impl=KEYS)
        return TrainState(**training), Progress(**found["progress"])

    def _first_readable(
        self, steps: list[int], read: Callable[[int], Any], template: Any, tell: Callable[[str], None]
    ) -> tuple[Any, list[int]]:
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                self._check_fits(step, template)
                found = read(step)
            except UserError:
                raise
            except Exception as error:  # Orbax, TensorStore and grain raise anything for a file that is not as it was.
                damaged[step] = _first_line(error)
                continue
            if damaged:
                tell(f"{_damage(self.folder, damaged)}; the one of step {step} is used.")
            return found, list(damaged)
        raise UserError(f"{_damage(self.folder, damaged)}, and there is no other")

    def _check_fits(self, step: int, template: Any) -> None:
        """Refuses a checkpoint whose parameters are not those of the template."""
        there = _shapes(self._manager.item_metadata(step)["parameters"].tree)
        here = _shapes(template)
        for path in sorted({*there, *here}):
            if there.get(path) != here.get(path):
                raise UserError(
                    f"the checkpoint {self.folder / str(step)} is of another model: parameter {path} is "
                    f"{there.get(path, 'missing')} there and {here.get(path, 'missing')} here"
                )


def load_parameters(workdir: Path, template: Any, tell: Callable[[str], None] = say) -> Any:
    """The parameters of a work folder's best checkpoint: the moving average where the run kept one.

    Args:
        template: a tree of arrays or `jax.ShapeDtypeStruct`s, as `jax.eval_shape` of the experiment's `init` gives it.
        tell: is given the sentence that says which checkpoints are damaged.

    Raises:
        UserError: there is no checkpoint, none can be read, or it is of another model.
    """
    if not (workdir / FOLDER).is_dir():
        raise UserError(f"{workdir} holds no checkpoints; train first")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.parameters(template, tell)


def _handlers() -> Any:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ("parameters", "training"):
        handler = ocp.StandardCheckpointHandler()
        for kind in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add(item, kind, handler)
    return registry


def _training(state: TrainState, key: Any) -> dict[str, Any]:
    """What the parameters to evaluate leave out of a state; the key as plain numbers, which Orbax can write."""
    parts = {"step": state.step, "optimizer": state.optimizer, "key": key}
    return parts if averaged_parameters(state.optimizer) is None else {**parts, "params": state.params}


def _somewhere(leaf: Any) -> jax.ShapeDtypeStruct:
    """Where a parameter goes: as the template says, or to the first device."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): str(tuple(leaf.shape)) for path, leaf in leaves}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _damage(folder: Path, damaged: dict[int, str]) -> str:
    return f"Damaged checkpoints in {folder}: " + "; ".join(f"step {step} ({why})" for step, why in damaged.items())

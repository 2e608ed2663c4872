"""Checkpoints with Orbax: all that a run needs to go on as if it had never stopped."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grain
import grain.checkpoint
import jax
import orbax.checkpoint as ocp

from attention_zoo.training.errors import UserError
from attention_zoo.training.optimizers import averaged_parameters
from attention_zoo.training.reporting import say
from attention_zoo.training.seal import damage, seal
from attention_zoo.training.step import KEYS, TrainState, evaluation_parameters

FOLDER = "checkpoints"
PARTS = ("parameters", "training", "iterator", "progress")
Tell = Callable[[str], None]


@dataclasses.dataclass
class Progress:
    """What a run remembers beside its state; examples and seconds add up over all its starts."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluations_without_best: int = 0
    examples: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    seconds_to_first_step: float = 0.0
    data: str = ""


class Checkpoints:
    """The checkpoints of a work folder: the newest two and the best.

    Orbax writes in the background and marks a checkpoint as whole at the very end, so one that was only half written
    is never seen. Each holds `parameters` (those to evaluate), `training` (step, optimiser, key, the objective's
    carry where it has one, and the parameters that are trained where an average of them is evaluated), `iterator`
    (the place in the data), `progress`, and a list of its files by which damage is found.
    """

    def __init__(self, workdir: Path, *, only_read: bool = False) -> None:
        self.folder = workdir.absolute() / FOLDER
        self._keep = _NewestAndBest()
        self._writing = 0
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._keep,
            create=not only_read,
            cleanup_tmp_directories=not only_read,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=_handlers())

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

    def save(self, state: TrainState, iterator: grain.DatasetIterator, progress: Progress) -> None:
        """Starts writing a checkpoint and returns."""
        self.wait()
        self._writing, self._keep.best = progress.step, progress.best_step
        parts = {
            "parameters": ocp.args.StandardSave(evaluation_parameters(state)),
            "training": ocp.args.StandardSave(_training(state, jax.random.key_data(state.key))),
            "iterator": grain.checkpoint.CheckpointSave(iterator),
            "progress": ocp.args.JsonSave(dataclasses.asdict(progress)),
        }
        self._manager.save(progress.step, args=ocp.args.Composite(**parts), force=True)

    def restore(
        self, shapes: TrainState, iterator: grain.DatasetIterator, tell: Tell = say
    ) -> tuple[TrainState, Progress] | None:
        """The newest whole checkpoint, `iterator` moved to where it was; None if there is none at all.

        Newer ones, which are damaged, are told of and removed, so that they can be written again.

        Raises:
            UserError: there are checkpoints but none is whole, or they are of another model or objective.
        """
        steps = self.steps()
        if not steps:
            return None
        step = self._newest_whole(steps, PARTS, tell)
        self._check_fits(step, evaluation_parameters(shapes))
        self._check_carry(step, shapes.carry)
        key = jax.eval_shape(jax.random.key_data, shapes.key)
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=shapes.key.sharding)
        parts = {
            "parameters": ocp.args.StandardRestore(evaluation_parameters(shapes)),
            "training": ocp.args.StandardRestore(_training(shapes, key)),
            "iterator": grain.checkpoint.CheckpointRestore(iterator),
            "progress": ocp.args.JsonRestore(),
        }
        found = self._manager.restore(step, args=ocp.args.Composite(**parts))
        for newer in steps[: steps.index(step)]:
            self._manager.delete(newer)
        training = {"params": found["parameters"], **found["training"]}
        training["key"] = jax.random.wrap_key_data(training["key"], impl=KEYS)
        return TrainState(**training), Progress(**found["progress"])

    def parameters(self, template: Any, tell: Tell = say) -> Any:
        """The parameters of the best checkpoint, or if that is damaged of the newest whole one.

        Raises:
            UserError: there is no checkpoint, none is whole, or they are of another model.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"{self.folder} holds no whole checkpoint; train first")
        best = self._best_step(steps)
        step = self._newest_whole(sorted(steps, key=lambda step: step != best), PARTS[:1], tell)
        self._check_fits(step, template)
        part = ocp.args.Composite(parameters=ocp.args.StandardRestore(jax.tree.map(_somewhere, template)))
        return self._manager.restore(step, args=part)["parameters"]

    def _best_step(self, steps: list[int]) -> int | None:
        """What the newest checkpoint knows to be the best."""
        for step in steps:
            if not damage(self.folder / str(step), ["progress"]):
                found = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))
                return found["progress"]["best_step"]
        return None

    def _newest_whole(self, steps: Sequence[int], parts: Sequence[str], tell: Tell) -> int:
        """The first of the steps whose checkpoint is whole in these parts."""
        damaged: list[str] = []
        for step in steps:
            found = damage(self.folder / str(step), parts)
            if not found:
                if damaged:
                    tell(f"{'; '.join(damaged)}: the checkpoint of step {step} is used.")
                return step
            damaged.append(f"{self.folder / str(step)} is damaged ({found})")
        raise UserError(f"{'; '.join(damaged)}, and there is no other checkpoint")

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

    def _check_carry(self, step: int, template: Any) -> None:
        """Refuses a checkpoint whose objective had another carry, or had one where there is none here."""
        there = _shapes(self._manager.item_metadata(step)["training"].tree.get("carry"))
        here = _shapes(template)
        if there != here:
            raise UserError(
                f"the checkpoint {self.folder / str(step)} is of another objective: it carries {there or 'nothing'} "
                f"there and {here or 'nothing'} here"
            )

    def _seal(self) -> None:
        """Orbax calls it when all files of a checkpoint are written, just before it is marked as whole."""
        if jax.process_index() == 0:
            # The folder has its final name, or that name and a temporary ending.
            (folder,) = (path for path in self.folder.iterdir() if path.name.split(".")[0] == str(self._writing))
            seal(folder, PARTS)


class _NewestAndBest:
    """Orbax asks it which checkpoints to keep: two, in case the newest is damaged, and the best."""

    best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = [info.step for info in checkpoints][-2:]
        return [info.step in (*newest, self.best) for info in checkpoints]


def load_parameters(workdir: Path, template: Any, tell: Tell = say) -> Any:
    """The parameters of a work folder's best checkpoint: the moving average where the run kept one.

    Args:
        template: a tree of arrays or `jax.ShapeDtypeStruct`s, as `jax.eval_shape` of the experiment's `init` gives it.
        tell: is given the sentence that says which checkpoints are damaged.

    Raises:
        UserError: there is no checkpoint, none is whole, or it is of another model.
    """
    if not (Path(workdir) / FOLDER).is_dir():
        raise UserError(f"{workdir} holds no checkpoints; train first")
    with Checkpoints(Path(workdir), only_read=True) as checkpoints:
        return checkpoints.parameters(template, tell)


def _handlers() -> Any:
    """Tells Orbax how each part is written, so that it can also say what is in a checkpoint without reading it."""
    arrays = (ocp.StandardCheckpointHandler, ocp.args.StandardSave, ocp.args.StandardRestore)
    place = (grain.checkpoint.CheckpointHandler, grain.checkpoint.CheckpointSave, grain.checkpoint.CheckpointRestore)
    numbers = (ocp.JsonCheckpointHandler, ocp.args.JsonSave, ocp.args.JsonRestore)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for part, (make, save, restore) in zip(PARTS, (arrays, arrays, place, numbers), strict=True):
        handler = make()
        registry.add(part, save, handler)
        registry.add(part, restore, handler)
    return registry


def _training(state: TrainState, key: Any) -> dict[str, Any]:
    """What the parameters to evaluate leave out of a state; the key as plain numbers, which Orbax can write."""
    parts = {"step": state.step, "optimizer": state.optimizer, "key": key}
    parts |= {} if state.carry is None else {"carry": state.carry}
    return parts if averaged_parameters(state.optimizer) is None else {**parts, "params": state.params}


def _somewhere(leaf: Any) -> jax.ShapeDtypeStruct:
    """Where a parameter goes: as the template says, or to the first device."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): str(tuple(leaf.shape)) for path, leaf in leaves}

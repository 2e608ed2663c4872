"""One step of training: the state, the compiled update, and the parameters to evaluate."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from attention_zoo.training.experiment import AnyObjective, Batch, Experiment
from attention_zoo.training.optimizers import averaged_parameters
from attention_zoo.training.sharding import batch_sharding, tree_shardings

# Random bits as fast as XLA makes them: dropout with the default keys nearly doubles compile time. The bits do not
# depend on how an array is laid out over devices, so any number of devices trains alike.
KEYS = "unsafe_rbg"

TrainStep = Callable[["TrainState", Mapping[str, Any]], tuple["TrainState", dict[str, jax.Array]]]


@struct.dataclass
class TrainState:
    """All that a step changes; `carry` is the objective's own state, None where it has none."""

    step: jax.Array
    params: Any
    optimizer: optax.OptState
    key: jax.Array
    carry: Any = None


def initial_state(experiment: Experiment, batch: Mapping[str, Any]) -> TrainState:
    """The state before the first step: parameters, optimiser and key all follow from the experiment's seed."""
    carry = None if experiment.carry is None else experiment.carry()
    params = experiment.init(jax.random.key(experiment.seed), batch)
    key = jax.random.key(experiment.seed, impl=KEYS)
    return TrainState(jnp.zeros((), jnp.int32), params, experiment.optimizer.init(params), key, carry)


def carrying(objective: AnyObjective) -> AnyObjective:
    """An objective, with a carry or without, as `(params, batch, key, carry) -> (loss, (metrics, carry))`.

    Raises (when it is called):
        ValueError: the objective gives back a carry of another structure, or with other shapes or dtypes.
    """

    def called(params: Any, batch: Mapping[str, Any], key: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        if carry is None:
            loss, metrics = objective(params, batch, key)
            return loss, (metrics, None)
        loss, (metrics, after) = objective(params, batch, key, carry)
        given, got = (jax.tree.map(_shape_and_dtype, tree) for tree in (carry, after))
        if given != got:
            raise ValueError(f"the objective was given a carry of {given} and gave back one of {got}")
        return loss, (metrics, after)

    return called


def train_step(objective: AnyObjective, optimizer: optax.GradientTransformation) -> TrainStep:
    """`step(state, batch) -> (state, metrics)`: one gradient, one update, a new key; pure, not yet compiled.

    The metrics are the loss, the objective's, `gradient_norm` (before clipping) and `parameter_norm` (after).
    """
    differentiate = jax.value_and_grad(carrying(objective), has_aux=True)

    def step(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
        key, drawn = jax.random.split(state.key)
        (loss, (metrics, carry)), gradients = differentiate(state.params, batch, drawn, state.carry)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = {"gradient_norm": optax.tree.norm(gradients), "parameter_norm": optax.tree.norm(params)}
        return TrainState(state.step + 1, params, optimizer_state, key, carry), {"loss": loss, **metrics, **norms}

    return step


def evaluation_parameters(state: TrainState) -> Any:
    """What is evaluated and handed out: the parameters' moving average where the optimiser keeps one."""
    average = averaged_parameters(state.optimizer)
    return state.params if average is None else average


class Steps:
    """The train step compiled for one batch shape after another, with the state laid out over a mesh.

    `compile_ahead(batches)` compiles in a thread of its own, since XLA compiles without Python's lock; a shape that was
    not compiled ahead is compiled when it comes. `close` gives up what is not begun.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh) -> None:
        self.mesh = mesh
        self._batch_size = experiment.batch_size
        self._blank = dict(next(iter(experiment.data.shapes())))
        self._initial = partial(initial_state, experiment)
        shapes = jax.eval_shape(self._initial, self._blank)
        self.shardings = tree_shardings(shapes, mesh)
        self.state_shapes: TrainState = jax.tree.map(_placed, shapes, self.shardings)
        self.step = train_step(experiment.objective, experiment.optimizer)
        self._step = jax.jit(self.step, donate_argnums=0, out_shardings=(self.shardings, None))
        self._compiled: dict[Any, Future[Any]] = {}
        self._compiler = ThreadPoolExecutor(1)

    def initial(self) -> TrainState:
        """The state before the first step, made where it stays."""
        # It runs once: on the CPU, optimising it would take longer than running it.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
        return jax.jit(self._initial, out_shardings=self.shardings, compiler_options=options)(self._blank)

    def compile_ahead(self, batches: Sequence[Batch]) -> None:
        """Begins to compile for whole batches as wide as these, one after the other."""
        for batch in batches:
            shapes = self._whole(batch)
            self._compiled[_shape(shapes)] = self._compiler.submit(self._compile, shapes)

    def waits(self, batch: Mapping[str, Any]) -> bool:
        """Whether the step for a batch is still being compiled."""
        compiled = self._compiled.get(_shape(batch))
        return compiled is not None and not compiled.done()

    def ready(self, batch: Mapping[str, Any]) -> Callable[..., Any]:
        """The step for a batch that `shard_batch` has placed; waits until it is compiled, if that was begun."""
        compiled = self._compiled.get(_shape(batch))
        return self._step if compiled is None else compiled.result()

    def __call__(self, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step on a batch that `shard_batch` has placed; the old state is given up."""
        return self.ready(batch)(state, batch)

    def close(self) -> None:
        """Ends the compiling of shapes that nobody will need."""
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def _whole(self, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch of all processes' rows, as wide as this one."""
        rows = batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct((self._batch_size, *leaf.shape[1:]), leaf.dtype, sharding=rows)
            for name, leaf in batch.items()
        }

    def _compile(self, shapes: dict[str, jax.ShapeDtypeStruct]) -> Any:
        return self._step.lower(self.state_shapes, shapes).compile()


def _placed(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _shape_and_dtype(leaf: Any) -> str:
    return f"{jnp.shape(leaf)} {jnp.result_type(leaf)}"


def _shape(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((name, batch[name].shape, batch[name].dtype) for name in sorted(batch))

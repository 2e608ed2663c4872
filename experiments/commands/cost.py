"""What a training step of each experiment costs: time, in turns, and temporary memory."""

import statistics
import sys
import time
from itertools import islice
from typing import Any

import jax

from attention_zoo.training import Batch, Experiment, make_mesh, shard_batch
from attention_zoo.training.step import Steps

LOOKED_AT = 1000  # batches among which one of the widest shape is looked for; else a blank one is timed


def costs(experiments: dict[str, Experiment], rounds: int = 7) -> dict[str, dict[str, float]]:
    """Median milliseconds of a step on the widest batch, one experiment after the other in each round, and its memory.

    The first round warms up. Temporary bytes are the compiler's (`memory_analysis`).
    """
    prepared = {}
    for name, experiment in experiments.items():
        print(f"compiling {name} ...", file=sys.stderr)
        prepared[name] = _prepare(experiment)
    times: dict[str, list[float]] = {name: [] for name in experiments}
    for _ in range(1 + rounds):
        for name, (run, state, batch, _) in prepared.items():
            began = time.perf_counter()
            jax.block_until_ready(run(state, batch))
            times[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {"step_ms": round(statistics.median(times[name][1:]), 2), "temporary_bytes": prepared[name][3]}
        for name in experiments
    }


def _same_shapes(batch: Batch, other: Batch) -> bool:
    return all(batch[name].shape == leaf.shape for name, leaf in other.items())


def _prepare(experiment: Experiment) -> tuple[Any, Any, Any, int]:
    """The compiled step, which gives up nothing, its state and batch, and its temporary bytes."""
    steps = Steps(experiment, make_mesh())
    widest = max(experiment.data.shapes(), key=lambda shape: sum(leaf.size for leaf in shape.values()))
    batches = islice(iter(experiment.data.train(experiment.seed)), LOOKED_AT)
    wide = next((batch for batch in batches if _same_shapes(batch, widest)), widest)
    state, batch = steps.initial(), shard_batch(wide, steps.mesh)
    run = jax.jit(steps.step).lower(state, batch).compile()
    return run, state, batch, int(run.memory_analysis().temp_size_in_bytes)

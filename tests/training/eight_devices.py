"""Run by test_sharding.py in a process that sees eight devices; prints what it found as JSON."""

import json
import sys
import tempfile

import jax

from attention_zoo.training import UserError, fit, make_mesh, shard_batch, train_step
from attention_zoo.training.sharding import tree_shardings
from attention_zoo.training.step import Steps
from tests.training.tiny import Copies, experiment, rows

STEPS = 5
# A table that also divides parameters: by columns, by rows, and by rows that two devices cannot share.
RULES = ((r"Dense_0/kernel$", (None, "model")), (r"Dense_1/kernel$", ("model", None)), (r"embedding$", ("model", None)))


def losses(run, mesh):
    """The losses of some steps; every loss but the first depends on the updates, and all on the dropout."""
    steps, found = Steps(run, mesh), []
    state = steps.initial()
    for number in range(STEPS):
        state, metrics = steps(state, shard_batch(rows(number, 5), mesh))
        found.append(float(metrics["loss"]))
    return found


def losses_with_divided_parameters(run):
    mesh = make_mesh(model=2)
    state = Steps(run, mesh).initial()
    state = jax.device_put(state, tree_shardings(state, mesh, RULES))
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params)}
    step, found = jax.jit(train_step(run.objective, run.optimizer)), []
    for number in range(STEPS):
        state, metrics = step(state, shard_batch(rows(number, 5), mesh))
        found.append(float(metrics["loss"]))
    return found, sorted(specs)


def main():
    run = experiment(Copies((5,)), width=14, steps=4, evaluate_every=2, checkpoint_every=3)
    found = {
        "devices": len(jax.devices()),
        "one": losses(run, make_mesh(devices=jax.devices()[:1])),
        "eight": losses(run, make_mesh()),
        "summary": fit(run, tempfile.mkdtemp(dir=sys.argv[1])),
    }
    found["divided"], found["specs"] = losses_with_divided_parameters(run)
    try:
        fit(experiment(batch_size=12), sys.argv[1])
    except UserError as error:
        found["refusal"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

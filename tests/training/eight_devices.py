"""Run by test_sharding.py in a process that sees eight devices; prints what it found as JSON."""

import itertools
import json
import operator
import sys
import tempfile
from functools import partial

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from attention_zoo.data import reverse
from attention_zoo.models import Seq2Seq
from attention_zoo.training import UserError, fit, make_mesh, optimizer, shard_batch, train_step
from attention_zoo.training.sharding import tree_shardings
from attention_zoo.training.step import Steps
from attention_zoo.training.translation import translation
from tests.training.tiny import Copies, experiment, rows

STEPS = 5
# A table that also divides parameters: by columns, by rows, and by rows that two devices cannot share.
RULES = ((r"Dense_0/kernel$", (None, "model")), (r"Dense_1/kernel$", ("model", None)), (r"embedding$", ("model", None)))


def losses(run, mesh, batches):
    """The losses of a batch a step; every loss but the first depends on the updates, and all on the dropout."""
    steps, found = Steps(run, mesh), []
    state = steps.initial()
    for batch in batches:
        state, metrics = steps(state, shard_batch(batch, mesh))
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


def reversing():
    """A real model on real data: Luong's attention, with dropout, on a small reverse task of one shape."""
    data = reverse(8, train_examples=37, dev_examples=5, test_examples=3, train_length=5, test_length=6, buckets=1)
    model = Seq2Seq(data.source.size, data.target.size, 5, 7, decoder_units=11, attention="luong", dropout=0.3)
    return translation("reversing", model, data, optimizer=optimizer("adam", 0.02), steps=STEPS)


def gradients(size=16):
    """The largest number among the gradients of all logits' squares by the parameters, on one device; and how far those
    are from it where each of eight has its own rows of the batch: in `shard_map`, and under a mesh with explicit axes.
    """
    model = Seq2Seq(13, 13, 5, 7, decoder_units=12)
    key, rows = jax.random.key(0), PartitionSpec("data")
    source, target = jax.random.randint(key, (2, size, 5), 4, 13)
    batch = source, jax.numpy.arange(size) % 6, target
    params = jax.jit(model.init)(key, *batch)

    def total(params, batch, over=lambda total: total):
        every = jax.numpy.ones(batch[2].shape, bool)
        loss, *_ = model.apply(params, *batch, batch[2], every, method="loss")  # a mean of as many tokens everywhere
        return over((model.apply(params, *batch)[0] ** 2).sum() + loss * len(every))

    def sharded(params, batch):
        return jax.grad(total)(params, batch, over=partial(jax.lax.psum, axis_name="data"))

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(params, NamedSharding(mesh, PartitionSpec())),
            jax.device_put(batch, NamedSharding(mesh, rows)),
        )
        mapped = jax.shard_map(sharded, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=PartitionSpec())
        explicit = jax.grad(jax.sharding.auto_axes(total, out_sharding=PartitionSpec()))
        found = [jax.device_get(jax.jit(way)(*placed)) for way in (mapped, explicit)]
    alone = jax.device_get(jax.jit(jax.grad(total))(params, batch))
    largest = lambda tree: float(jax.numpy.max(jax.numpy.array([abs(leaf).max() for leaf in jax.tree.leaves(tree)])))  # noqa: E731
    return largest(alone), [largest(jax.tree.map(operator.sub, one, alone)) for one in found]


def main():
    one, eight = make_mesh(devices=jax.devices()[:1]), make_mesh()
    batches, real = [rows(number, 5) for number in range(STEPS)], reversing()
    real_batches = list(itertools.islice(real.data.train(0), STEPS))
    run = experiment(Copies((5,)), width=14, steps=4, evaluate_every=2, checkpoint_every=3)
    found = {
        "devices": len(jax.devices()),
        "one": losses(run, one, batches),
        "eight": losses(run, eight, batches),
        "real_one": losses(real, one, real_batches),
        "real_eight": losses(real, eight, real_batches),
        "summary": fit(run, tempfile.mkdtemp(dir=sys.argv[1])),
    }
    found["gradient"], found["away"] = gradients()
    found["divided"], found["specs"] = losses_with_divided_parameters(run)
    try:
        fit(experiment(batch_size=12), sys.argv[1])
    except UserError as error:
        found["refusal"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

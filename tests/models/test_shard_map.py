"""Inside `jax.shard_map`, which checks what may differ from device to device, all is as outside of it.

Here on one device, where the check is the same; tests/training/eight_devices.py has several.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from attention_zoo.functional import metrics, monotonic, scores
from attention_zoo.functional.additive_attention import additive_attention
from attention_zoo.functional.dot_product import dot_product_attention
from attention_zoo.functional.search import beam, greedy
from attention_zoo.models import Transformer
from attention_zoo.training.caption_losses import Sampling, reinforce
from tests.models import captioners, small, transformers
from tests.quick import quick

B, T, S, D = 3, 5, 7, 4
KEY = jax.random.key(0)
MASK = np.arange(S) < np.array([[S], [4], [0]])


def draw(*shape):
    return np.float32(np.random.default_rng(shape).normal(size=shape))


def dot_product(shared, batch):
    """In chunks, with a bias and dropout."""
    weights, bias = shared
    queries, keys, mask = batch
    options = {"mask": mask[:, None, None], "bias": bias, "dropout": 0.3, "key": KEY}
    return dot_product_attention(queries @ weights, keys, keys, implementation="chunked", chunk=2, **options)


def additive(shared, batch):
    weights, energy = shared
    queries, keys, mask = batch
    return additive_attention(queries @ weights, keys, keys, energy, mask=mask[:, None], dropout=0.3, key=KEY, chunk=2)


def translator(name):
    model, params, source, lengths, target = small.make(**small.MECHANISMS[name])

    def loss(params, batch):
        source, lengths, target = batch
        return model.apply(params, source, lengths, target, target, target > 5, method="loss")[0]

    return loss, params, (source, lengths, target)


def transformer(kind):
    vocabularies = {"source_vocabulary": transformers.N_SOURCE, "target_vocabulary": transformers.N_TARGET}
    model = Transformer(**vocabularies, **{**transformers.SIZES, **transformers.KINDS[kind]})
    inputs = transformers.tokens()
    return lambda params, batch: model.apply(params, *batch)[0], transformers.drawn(model, *inputs), inputs


def hard_captioner():
    model = captioners.captioner("hard")
    images, tokens = captioners.inputs()
    objective = reinforce(model, Sampling(baseline="leave_one_out", samples=2))
    batch = {"images": images, "target": tokens, "target_lengths": np.int32([T, 2, 1])}
    carry = jnp.zeros(())
    return (
        lambda params, batch: objective(params, batch, KEY, carry)[0],
        captioners.parameters(model, images, tokens),
        batch,
    )


LEARNING = {
    "dot_product": lambda: (dot_product, (draw(D, D), draw(2, T, S)), (draw(B, 2, T, D), draw(B, 2, S, D), MASK)),
    "additive": lambda: (additive, (draw(D, D), draw(D)), (draw(B, T, D), draw(B, S, D), MASK)),
    **{name: partial(translator, name) for name in ("bahdanau", "feeding", "at_once_mocha", "bahdanau_sparsemax")},
    **{f"transformer_{kind}": partial(transformer, kind) for kind in ("scanned", "window")},
    "hard_captioner": hard_captioner,
}


def shard(function, shared=True):
    """The function, of what all devices share and of a batch, or of a batch alone."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec("data")
    specs = {"in_specs": (whole, rows), "out_specs": whole} if shared else {"in_specs": rows, "out_specs": rows}
    return jax.shard_map(function, mesh=mesh, **specs)


@pytest.mark.parametrize("name", LEARNING)
def test_values_and_gradients(name):
    function, shared, batch = LEARNING[name]()

    def learn(shared, batch, total=lambda share: share):
        return jax.value_and_grad(lambda shared: total(jnp.sum(function(shared, batch) ** 2)))(shared)

    summed = partial(learn, total=partial(jax.lax.psum, axis_name="data"))
    alone, inside = jax.device_get(quick(lambda *inputs: (learn(*inputs), shard(summed)(*inputs)))(shared, batch))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), inside, alone)
    assert all(map(np.any, jax.tree.leaves(alone[1]))) or name not in ("dot_product", "additive")


def test_decoding_and_walks():
    model, params, source, lengths, target = small.make(**small.FAMILIES["feeding"])

    def decode(batch):
        source, lengths, target, queries, keys = batch
        cache, start = model.apply(params, source, lengths, method="start"), jnp.ones(len(source), jnp.int32)
        step, options = partial(model.apply, params, method="step"), {"end": 2, "max_length": T}
        walk = jax.vmap(partial(monotonic.online, scores.dot))(queries, keys, keys, lengths)
        next_stop = jax.vmap(partial(monotonic.online_step, scores.dot, position=0))(queries[:, 0], keys, lengths)
        distance = metrics.edit_distance(source, lengths, target, lengths // 2)
        return (
            greedy(step, cache, start, **options),
            beam(step, cache, start, width=2, **options),
            walk,
            next_stop,
            distance,
        )

    batch = source, lengths, target, draw(B, T, D), draw(B, S, D)
    alone, inside = jax.device_get(quick(lambda batch: (decode(batch), shard(decode, shared=False)(batch)))(batch))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), inside, alone)

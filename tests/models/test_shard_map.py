"""Inside `jax.shard_map`, which checks what may differ from device to device, all is as outside of it.

Here on one device, where the check is the same; tests/training/eight_devices.py has several.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from attention_zoo.functional import metrics, monotonic, rows, scores
from attention_zoo.functional.additive_attention import additive_attention
from attention_zoo.functional.dot_product import dot_product_attention
from attention_zoo.functional.ragged import of_real_rows
from attention_zoo.functional.rows import real_rows_matmul
from attention_zoo.functional.search import beam, greedy, sample
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


def biased(shared, batch):
    """In chunks, with a bias that is made of positions and of what is learned."""
    queries, keys, _ = batch
    bias = lambda rows, columns: shared[:, jnp.abs(columns[None] - rows[:, None])]  # noqa: E731
    return dot_product_attention(queries, keys, keys, bias=bias, implementation="chunked", chunk=2)


def real_rows(shared, batch):
    """Tanh layers of rows in parts, some of which are left out, and a product of those that are not."""
    _, keys, mask = batch
    inputs, real = keys.reshape(-1, D), mask.ravel()
    made = of_real_rows(lambda weights, inputs: jnp.tanh(inputs @ weights), shared, inputs, real)
    return jnp.where(real[:, None], made + real_rows_matmul(inputs, shared, real), 0)


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


class Logits(NamedTuple):
    model: Any

    def __call__(self, params, batch):
        return self.model.apply(params, *batch)[0]


def transformer(kind):
    vocabularies = {"source_vocabulary": transformers.N_SOURCE, "target_vocabulary": transformers.N_TARGET}
    model = Transformer(**vocabularies, **{**transformers.SIZES, **transformers.KINDS[kind]})
    inputs = transformers.tokens()
    return Logits(model), transformers.drawn(model, *inputs), inputs


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
    "biased": lambda: (biased, draw(2, S), (draw(B, 2, T, D), draw(B, 2, S, D), MASK)),
    "real_rows": lambda: (real_rows, draw(D, D), (draw(B, T, D), draw(B, S, D), MASK)),
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
def test_values_and_gradients(name, monkeypatch):
    monkeypatch.setattr(rows, "LEAST", 1)  # products of few rows leave some out too
    function, shared, batch = LEARNING[name]()

    def learn(shared, batch, total=lambda share: share):
        return jax.value_and_grad(lambda shared: total(jnp.sum(function(shared, batch) ** 2)))(shared)

    summed = partial(learn, total=partial(jax.lax.psum, axis_name="data"))
    alone, inside = jax.device_get(quick(lambda *inputs: (learn(*inputs), shard(summed)(*inputs)))(shared, batch))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), inside, alone)
    assert any(map(np.any, jax.tree.leaves(alone[1])))


def recurrent():
    model, params, source, lengths, _ = small.make(**small.FAMILIES["feeding"])
    return model, params, (source, lengths)


def scanned_transformer():
    function, params, (source, lengths, _) = transformer("scanned")
    return function.model, params, (source, lengths)


def same(function, batch):
    alone, inside = jax.device_get(quick(lambda batch: (function(batch), shard(function, shared=False)(batch)))(batch))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), inside, alone)


@pytest.mark.parametrize("make", [recurrent, scanned_transformer])
def test_decoding(make):
    model, params, batch = make()

    def decode(batch):
        cache, start = model.apply(params, *batch, method="start"), jnp.ones(len(batch[0]), jnp.int32)
        step, options = partial(model.apply, params, method="step"), {"end": 2, "max_length": T}
        drawn = sample(step, cache, start, KEY, **options)
        return greedy(step, cache, start, **options), drawn, beam(step, cache, start, width=2, **options)

    same(decode, batch)


def test_walks_and_distances():
    """The keys of all examples are the same, which do not vary, as some of what else is given."""
    keys, numbers, lengths = draw(S, D), np.int32(np.arange(B * S).reshape(B, S) % 5), np.int32([S, 4, 0])

    def walk(batch):
        queries, numbers, lengths = batch
        positions = jax.vmap(partial(monotonic.online, scores.dot), (0, None, None, 0, 0))
        position = jax.vmap(partial(monotonic.online_step, scores.dot), (0, None, None, 0))
        return (
            positions(queries, keys, keys, lengths, lengths // 2),
            position(queries[:, 0], keys, S, lengths // 2),
            metrics.edit_distance(numbers, lengths, numbers[:, ::-1], lengths // 2),
        )

    same(walk, (draw(B, T, D), numbers, lengths))

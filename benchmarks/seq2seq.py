"""How fast is a translator's training step, against the same model written plainly with flax.linen?

Batch 64, 30 source and 30 target steps, embeddings 256, bidirectional LSTM 512, decoder 512, vocabulary 8,000,
additive attention (Bahdanau's decoder with maxout). The peer uses `nn.RNN`, `nn.OptimizedLSTMCell`, `nn.Dense`,
attention inside the scan, and optax's cross-entropy; both have the same weights and must give the same loss and
the same norm of the gradient.
"""

from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.masks import within
from attention_zoo.models import Seq2Seq, seq2seq
from benchmarks.harness import Contestant, Row, compare

SIZES = {
    "small": {
        "batch": 5,
        "steps": 7,
        "fields": {
            "source_vocabulary": 97,
            "target_vocabulary": 97,
            "embedding": 16,
            "encoder_units": 16,
            "decoder_units": 32,
        },
    },
    "paper": {"batch": 64, "steps": 30, "fields": {}},
}


class PlainCell(nn.Module):
    """Bahdanau's step as one would write it first: everything inside the scan."""

    units: int

    @nn.compact
    def __call__(self, carry, embedded, keys, values, mask):  # type: ignore[no-untyped-def]
        hidden = carry[1]
        query = nn.Dense(self.units, name="query")(hidden)
        energies = nn.Dense(1, use_bias=False, name="energy")(jnp.tanh(query[:, None] + keys))[..., 0]
        weights = jax.nn.softmax(jnp.where(mask, energies, -jnp.inf))
        context = jnp.einsum("bs,bsv->bv", weights, values)
        carry, _ = nn.OptimizedLSTMCell(self.units, name="lstm")(carry, jnp.concatenate([embedded, context], -1))
        return carry, (hidden, context)


class PlainTranslator(nn.Module):
    """The benchmark's model in plain flax.linen."""

    model: Seq2Seq

    @nn.compact
    def __call__(self, source, lengths, targets):  # type: ignore[no-untyped-def]
        sizes = self.model
        embedded = nn.Embed(sizes.source_vocabulary, sizes.embedding, name="source")(source)
        forward, backward = (nn.RNN(nn.OptimizedLSTMCell(sizes.encoder_units), return_carry=True) for _ in range(2))
        carries, values = nn.Bidirectional(forward, backward, return_carry=True)(embedded, seq_lengths=lengths)
        mask = jnp.arange(source.shape[1])[None] < lengths[:, None]
        keys = nn.Dense(sizes.decoder_units, use_bias=False, name="keys")(values)
        last = jnp.concatenate([carry[1] for carry in carries], -1)
        hidden, memory = jnp.split(jnp.tanh(nn.Dense(2 * sizes.decoder_units, name="bridge")(last)), 2, -1)
        inputs = nn.Embed(sizes.target_vocabulary, sizes.embedding, name="target")(targets)
        scan = nn.scan(PlainCell, variable_broadcast="params", split_rngs={"params": False},
                       in_axes=(1, nn.broadcast, nn.broadcast, nn.broadcast), out_axes=1)  # fmt: skip
        cell = scan(sizes.decoder_units, name="cell")
        _, (before, contexts) = cell((memory, hidden), inputs, keys, values, mask)
        pairs = nn.Dense(sizes.decoder_units, name="pairs")(jnp.concatenate([before, inputs, contexts], -1))
        return nn.Dense(sizes.target_vocabulary, name="output")(jnp.maximum(*jnp.split(pairs, 2, -1)))


def benchmark(size: str = "paper", repetitions: int = 15) -> list[Row]:
    """One row each for attention_zoo and the peer: forward, gradient and an Adam update."""
    setting = SIZES[size]
    model = seq2seq("translator", **setting["fields"])
    batch = _batch(model, setting["batch"], setting["steps"])
    params = jax.jit(model.init)(jax.random.key(0), *batch[:3])["params"]
    plain = PlainTranslator(model)
    optimizer = optax.adam(1e-3)
    ours = _step(lambda params, *inputs: model.apply({"params": params}, *inputs)[0], _our_loss, optimizer)
    theirs = _step(lambda params, *inputs: plain.apply({"params": params}, *inputs), _plain_loss, optimizer)
    plain_params = to_plain(params)
    contestants = [
        Contestant("attention_zoo", ours, (params, optimizer.init(params), *batch), itemgetter(0)),
        Contestant("flax.linen", theirs, (plain_params, optimizer.init(plain_params), *batch), itemgetter(0)),
    ]
    case = f"B{setting['batch']} S{setting['steps']} T{setting['steps']} N{model.target_vocabulary}"
    return compare("seq2seq", case, "forward+gradient", contestants, tolerance=1e-5, repetitions=repetitions)


def _batch(model: Seq2Seq, size: int, steps: int) -> tuple[jax.Array, ...]:
    generator = np.random.default_rng(0)
    source = generator.integers(4, model.source_vocabulary, (size, steps))
    target = generator.integers(4, model.target_vocabulary, (size, steps))
    source_lengths, target_lengths = generator.integers(steps // 2, steps + 1, (2, size))
    inputs = np.concatenate([np.ones((size, 1), int), target[:, :-1]], 1)
    return tuple(map(jnp.int32, (source, source_lengths, inputs, target, target_lengths)))


def _step(apply, loss, optimizer):  # type: ignore[no-untyped-def]
    def step(params, state, source, source_lengths, inputs, target, target_lengths):  # type: ignore[no-untyped-def]
        def of(params):  # type: ignore[no-untyped-def]
            return loss(apply(params, source, source_lengths, inputs), target, target_lengths)

        value, gradient = jax.value_and_grad(of)(params)
        updates, state = optimizer.update(gradient, state)
        norm = optax.tree.norm(gradient)
        return {"loss": value, "gradient_norm": norm}, optax.apply_updates(params, updates), state

    return step


def _our_loss(logits: jax.Array, target: jax.Array, lengths: jax.Array) -> jax.Array:
    return cross_entropy(logits, target, within(lengths, target.shape[1]))


def _plain_loss(logits: jax.Array, target: jax.Array, lengths: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    mask = jnp.arange(target.shape[1])[None] < lengths[:, None]
    return jnp.where(mask, losses, 0).sum() / mask.sum()


def to_plain(params: Any) -> Any:
    """The same weights under flax.linen's names."""
    encoder, decoder = params["encoder"], params["decoder"]
    score, first = decoder["attention"]["score"], decoder["stack_0"]
    kernel = jnp.concatenate([first["input"]["kernel"], decoder["enter"]["kernel"]])
    return {
        "source": params["source_embedding"],
        "target": params["target_embedding"],
        "OptimizedLSTMCell_0": _plain_lstm(encoder["forward_layers_0"]),
        "OptimizedLSTMCell_1": _plain_lstm(encoder["backward_layers_0"]),
        "keys": score["key"],
        "bridge": params["bridges_0"],
        "cell": {
            "query": score["query"],
            "energy": {"kernel": score["energy"][:, None]},
            "lstm": _plain_lstm({**first, "input": {**first["input"], "kernel": kernel}}),
        },
        "pairs": decoder["combine"],
        "output": params["output"],
    }


def _plain_lstm(layer: Any) -> Any:
    split = {"recurrent": jnp.split(layer["recurrent"], 4, -1), "bias": jnp.split(layer["recurrent_bias"], 4)}
    inputs = jnp.split(layer["input"]["kernel"], 4, -1)
    plain = {f"i{gate}": {"kernel": inputs[number]} for number, gate in enumerate("ifgo")}
    for number, gate in enumerate("ifgo"):
        plain[f"h{gate}"] = {"kernel": split["recurrent"][number], "bias": split["bias"][number]}
    return plain

"""How fast is a translator's training step, against the same model written plainly with flax.linen, and in PyTorch?

Batch 64, 30 source and 30 target steps, embeddings 256, bidirectional LSTM 512, decoder 512, vocabulary 8,000,
additive attention (Bahdanau's decoder with maxout). The peer uses `nn.RNN`, `nn.OptimizedLSTMCell`, `nn.Dense`,
attention inside the scan, and optax's cross-entropy. "PyTorch" is eager: `nn.LSTM` over packed sources (cuDNN's on a
GPU), `nn.LSTMCell` in a loop; "torch.compile", on accelerators, compiles all that follows the encoder. All have the
same weights and must give the same loss and the same norm of the gradient.
"""

from collections.abc import Collection, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from attention_zoo.functional.masks import within
from attention_zoo.models import Seq2Seq, seq2seq
from benchmarks.harness import compare
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row
from benchmarks.seq2seq_pytorch import torch_peer
from benchmarks.training import LEARNING_RATE, training_step

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

TOLERANCES = {"float32": 1e-5}
PEERS: Peers = {
    "flax.linen": lambda: {"flax.linen": True, "flax.linen, output layer after the scan": False},
    "PyTorch": lambda: torch_peer(compiled=False),
    "torch.compile": lambda: torch_peer(compiled=True),
}
FIELDS = ("source_vocabulary", "target_vocabulary", "embedding", "encoder_units", "decoder_units")


class PlainCell(nn.Module):
    """Bahdanau's step as one would write it first: everything inside the scan."""

    units: int
    vocabulary: int | None

    @nn.compact
    def __call__(self, carry, embedded, keys, values, mask):  # type: ignore[no-untyped-def]
        hidden = carry[1]
        query = nn.Dense(self.units, name="query")(hidden)
        energies = nn.Dense(1, use_bias=False, name="energy")(jnp.tanh(query[:, None] + keys))[..., 0]
        weights = jax.nn.softmax(jnp.where(mask, energies, -jnp.inf))
        context = jnp.einsum("bs,bsv->bv", weights, values)
        carry, _ = nn.OptimizedLSTMCell(self.units, name="lstm")(carry, jnp.concatenate([embedded, context], -1))
        readout = jnp.concatenate([hidden, embedded, context], -1)
        return carry, readout if self.vocabulary is None else PlainReadout(self.units, self.vocabulary)(readout)


class PlainReadout(nn.Module):
    """Bahdanau's deep output and the output layer."""

    units: int
    vocabulary: int

    @nn.compact
    def __call__(self, inputs):  # type: ignore[no-untyped-def]
        pairs = nn.Dense(self.units, name="pairs")(inputs)
        return nn.Dense(self.vocabulary, name="output")(jnp.maximum(*jnp.split(pairs, 2, -1)))


class PlainTranslator(nn.Module):
    """The model in plain flax.linen; its output layer in the scan, as in Flax's own seq2seq example, or after it."""

    sizes: Mapping[str, int]
    output_in_scan: bool

    @nn.compact
    def __call__(self, source, lengths, targets):  # type: ignore[no-untyped-def]
        sizes = SimpleNamespace(**self.sizes)
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
        cell = scan(sizes.decoder_units, sizes.target_vocabulary if self.output_in_scan else None, name="cell")
        _, outputs = cell((memory, hidden), inputs, keys, values, mask)
        if self.output_in_scan:
            return outputs
        return PlainReadout(sizes.decoder_units, sizes.target_vocabulary)(outputs)


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> list[Row]:
    """One row each for attention_zoo and the peers: forward, gradient and an Adam update."""
    setting = SIZES[known(size, SIZES, "size")]
    model = seq2seq("translator", **setting["fields"])
    batch = _batch(model, setting["batch"], setting["steps"])
    params = jax.jit(model.init)(jax.random.key(0), *batch[:3])["params"]
    contestants = [training_step(OURS, partial(_our_loss, model), params, batch)]
    brought = bring(PEERS, peers)
    for name, in_scan in brought.get("flax.linen", {}).items():
        plain = PlainTranslator({field: getattr(model, field) for field in FIELDS}, in_scan)
        contestants.append(training_step(name, partial(_plain_loss, plain), to_plain(params, in_scan), batch))
    for name in ("PyTorch", "torch.compile"):
        if name in brought:
            contestants.append(brought[name](name, params, batch, LEARNING_RATE))
    case = f"B{setting['batch']} S{setting['steps']} T{setting['steps']} N{model.target_vocabulary}"
    timed = partial(compare, tolerance=TOLERANCES["float32"], repetitions=repetitions, timed_by="wall")
    needs = {"matmul_gflops": 3 * _products(model, *(int(lengths.sum()) for lengths in (batch[1], batch[4])))}
    return timed("seq2seq", case, "forward+gradient", contestants, needs=needs)


def _products(model: Seq2Seq, source: int, target: int) -> int:
    """Operations of the matrix products with weights, forward, of the real tokens; a gradient needs twice as many."""
    embedding, encoder, units = model.embedding, model.encoder_units, model.decoder_units
    read = embedding + 2 * encoder + units  # what the decoder's cell and its readout see
    encoding = 2 * (embedding + encoder) * 4 * encoder + 2 * encoder * units
    decoding = units * units + read * 5 * units + units // 2 * model.target_vocabulary
    return 2 * (source * encoding + target * decoding)


def _batch(model: Seq2Seq, size: int, steps: int) -> tuple[jax.Array, ...]:
    generator = np.random.default_rng(0)
    source = generator.integers(4, model.source_vocabulary, (size, steps))
    target = generator.integers(4, model.target_vocabulary, (size, steps))
    source_lengths, target_lengths = generator.integers(steps // 2, steps + 1, (2, size))
    inputs = np.concatenate([np.ones((size, 1), int), target[:, :-1]], 1)
    return tuple(map(jnp.int32, (source, source_lengths, inputs, target, target_lengths)))


def _our_loss(
    model: Seq2Seq, params: Any, source: Any, lengths: Any, inputs: Any, target: Any, target_lengths: Any
) -> Any:
    mask = within(target_lengths, target.shape[1])
    return model.apply({"params": params}, source, lengths, inputs, target, mask, method="loss")[0]


def _plain_loss(
    model: PlainTranslator, params: Any, source: Any, lengths: Any, inputs: Any, target: Any, target_lengths: Any
) -> Any:
    logits = model.apply({"params": params}, source, lengths, inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    mask = jnp.arange(target.shape[1])[None] < target_lengths[:, None]
    return jnp.where(mask, losses, 0).sum() / mask.sum()


def to_plain(params: Any, output_in_scan: bool) -> Any:
    """The same weights under flax.linen's names."""
    encoder, decoder = params["encoder"], params["decoder"]
    score, first = decoder["attention"]["score"], decoder["stack_0"]
    keys, query = plain_additive(score)
    kernel = jnp.concatenate([first["input"]["kernel"], decoder["enter"]["kernel"]])
    readout = {"pairs": decoder["combine"], "output": params["output"]}
    return {
        "source": params["source_embedding"],
        "target": params["target_embedding"],
        "OptimizedLSTMCell_0": plain_lstm(encoder["forward_layers_0"]),
        "OptimizedLSTMCell_1": plain_lstm(encoder["backward_layers_0"]),
        "keys": keys,
        "bridge": params["bridges_0"],
        **({} if output_in_scan else {"PlainReadout_0": readout}),
        "cell": {
            **({"PlainReadout_0": readout} if output_in_scan else {}),
            "query": query,
            "energy": {"kernel": score["energy"][:, None]},
            "lstm": plain_lstm({**first, "input": {**first["input"], "kernel": kernel}}),
        },
    }


def plain_additive(score: Any) -> tuple[Any, Any]:
    """The layers of an additive score for keys and queries, its bias with the queries, where others have it."""
    return {"kernel": score["key"]["kernel"]}, {**score["query"], "bias": score["key"]["bias"]}


def plain_lstm(layer: Any) -> Any:
    """An LSTM layer's weights as `nn.OptimizedLSTMCell` has them, one matrix for every gate."""
    split = {"recurrent": jnp.split(layer["recurrent"], 4, -1), "bias": jnp.split(layer["recurrent_bias"], 4)}
    inputs = jnp.split(layer["input"]["kernel"], 4, -1)
    plain = {f"i{gate}": {"kernel": inputs[number]} for number, gate in enumerate("ifgo")}
    for number, gate in enumerate("ifgo"):
        plain[f"h{gate}"] = {"kernel": split["recurrent"][number], "bias": split["bias"][number]}
    return plain

"""How fast is a captioner's training step: soft, hard and latent, and the soft one in plain flax.linen?

The captioners of experiments `caption_...`: batch 64, canvases of 40 x 40, a grid of 10 x 10 annotations, up to five
words of 14; no dropout. In the case "soft" the peer has the same weights and must give the same loss and the same norm
of the gradient; its recurrence is one `nn.scan`, output layer and all. In the case "kinds" all are this library's, and
do not compute the same: `ratio` is the time of a kind's step over that of soft attention. Adam, in all.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from attention_zoo.functional.positions import sinusoidal_2d
from attention_zoo.models import Captioner
from attention_zoo.modules.vision import ConvEncoder
from attention_zoo.training.caption_losses import Sampling, likelihood, reinforce, variational
from attention_zoo.training.objectives import shifted
from attention_zoo.training.step import KEYS, TrainState, train_step
from benchmarks.harness import Contestant, compare, finite
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row
from benchmarks.seq2seq import plain_additive, plain_lstm
from benchmarks.training import LEARNING_RATE

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "batch": 3,
        "canvas": 11,
        "words": 4,
        "vocabulary": 13,
        "features": (4, 8),
        "strides": (2, 2),
        "fields": {"embedding": 7, "units": 6, "attention_units": 5},
    },
    "paper": {
        "batch": 64,
        "canvas": 40,
        "words": 5,
        "vocabulary": 14,
        "features": (32, 64, 64, 64),
        "strides": (2, 2, 1, 1),
        "fields": {"embedding": 64, "units": 128, "attention_units": 64},
    },
}
TOLERANCES = {"float32": 1e-5}
PEERS: Peers = {"flax.linen": lambda: PlainCaptioner}
# How a kind of attention is trained: the model's attention, its objective, and whether that has a carry.
KINDS: dict[str, tuple[str, Callable[[Captioner], Any], bool]] = {
    "soft": ("soft", likelihood, False),
    "hard, leave-one-out, K = 4": ("hard", partial(reinforce, sampling=Sampling(samples=4, coin=0.0)), True),
    "marginal": ("marginal", likelihood, False),
    "variational, enumerated": ("variational", variational, False),
    "variational, K = 4": ("variational", partial(variational, samples=4), False),
}


class PlainCell(nn.Module):
    """Xu's step as one would write it first: attention, LSTM and output layer inside the scan."""

    vocabulary: int
    embedding: int
    units: int
    attention_units: int

    @nn.compact
    def __call__(self, carry, embedded, keys, values):  # type: ignore[no-untyped-def]
        hidden = carry[1]
        query = nn.Dense(self.attention_units, name="query")(hidden)
        energies = nn.Dense(1, use_bias=False, name="energy")(jnp.tanh(query[:, None] + keys))[..., 0]
        context = jnp.einsum("bs,bsv->bv", jax.nn.softmax(energies), values)
        context = nn.sigmoid(nn.Dense(1, name="gate")(hidden)) * context
        inputs = jnp.concatenate([embedded, context], -1)
        carry, hidden = nn.OptimizedLSTMCell(self.units, name="lstm")(carry, inputs)
        deep = embedded + nn.Dense(self.embedding, name="from_state")(hidden)
        deep = jnp.tanh(deep + nn.Dense(self.embedding, use_bias=False, name="from_context")(context))
        return carry, nn.Dense(self.vocabulary, name="output")(deep)


class PlainCaptioner(nn.Module):
    """Show, Attend and Tell in plain flax.linen."""

    vocabulary: int
    features: Sequence[int]
    strides: Sequence[int]
    embedding: int
    units: int
    attention_units: int

    @nn.compact
    def __call__(self, images, tokens):  # type: ignore[no-untyped-def]
        grid = images
        for layer, (features, stride) in enumerate(zip(self.features, self.strides, strict=True)):
            side = 3 if layer else 5
            grid = nn.relu(nn.Conv(features, (side, side), (stride, stride))(grid))
        grid = nn.LayerNorm()(grid)
        values = grid.reshape(len(grid), -1, grid.shape[-1]) + sinusoidal_2d(*grid.shape[1:])[None]
        mean = values.mean(1)
        hidden, memory = (jnp.tanh(nn.Dense(self.units, name=name)(mean)) for name in ("first_hidden", "first_memory"))
        keys = nn.Dense(self.attention_units, use_bias=False, name="keys")(values)
        embedded = nn.Embed(self.vocabulary, self.embedding, name="embed")(tokens)
        scan = nn.scan(PlainCell, variable_broadcast="params", split_rngs={"params": False},
                       in_axes=(1, nn.broadcast, nn.broadcast), out_axes=1)  # fmt: skip
        cell = scan(self.vocabulary, self.embedding, self.units, self.attention_units, name="cell")
        return cell((memory, hidden), embedded, keys, values)[1]


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> Iterator[Row]:
    """Rows of both cases: forward, gradient and an Adam update; attention_zoo's soft captioner is the first of each."""
    setting = SIZES[known(size, SIZES, "size")]
    batch, there = _batch(setting), bring(PEERS, peers)
    case = f"B{setting['batch']} {setting['canvas']} x {setting['canvas']} T{setting['words']}"
    timed = partial(compare, "captioner", tolerance=TOLERANCES["float32"], repetitions=repetitions, timed_by="wall")
    ours = _kind(OURS, "soft", setting, batch, _loss_and_norm)
    params = ours.arguments[0].params
    soft = [ours] + [_plain(name, plain, to_plain(params), setting, batch) for name, plain in there.items()]
    kinds = [_kind(name, name, setting, batch, _finite_metrics) for name in KINDS]
    yield from timed(f"soft, {case}", "forward+gradient", soft)
    yield from timed(f"kinds, {case}", "forward+gradient", kinds)


def _batch(setting: dict[str, Any]) -> dict[str, jax.Array]:
    generator = np.random.default_rng(0)
    size, canvas, words = (setting[name] for name in ("batch", "canvas", "words"))
    return {
        "images": jnp.float32(generator.uniform(size=(size, canvas, canvas, 1))),
        "target": jnp.int32(generator.integers(4, setting["vocabulary"], (size, words))),
        "target_lengths": jnp.int32(generator.integers(2, words + 1, size)),
    }


def _kind(name: str, kind: str, setting: dict[str, Any], batch: Any, compared: Callable[[Any], Any]) -> Contestant:
    """The training step of a captioner of this library."""
    attention, objective, carries = KINDS[kind]
    encoder = ConvEncoder(setting["features"], setting["strides"])
    model = Captioner(setting["vocabulary"], encoder, attention, **setting["fields"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch["images"], batch["target"])["params"]
    normal = np.random.default_rng(1).normal
    params = jax.tree.map(lambda leaf: jnp.float32(normal(0, 0.1, leaf.shape)), shapes)  # biases too: no two alike
    carry = jnp.zeros(()) if carries else None
    return _contestant(name, objective(model), params, batch, carry, compared)


def _plain(name: str, plain: Any, params: Any, setting: dict[str, Any], batch: Any) -> Contestant:
    model = plain(setting["vocabulary"], setting["features"], setting["strides"], **setting["fields"])

    def objective(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, target = model.apply({"params": params}, batch["images"], shifted(batch["target"])), batch["target"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        mask = jnp.arange(target.shape[1])[None] < batch["target_lengths"][:, None]
        return jnp.where(mask, losses, 0).sum() / mask.sum(), {}

    return _contestant(name, objective, params, batch, None, _loss_and_norm)


def _contestant(
    name: str, objective: Any, params: Any, batch: Any, carry: Any, compared: Callable[[Any], Any]
) -> Contestant:
    optimizer = optax.adam(LEARNING_RATE)
    key = jax.random.key(1, impl=KEYS)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, carry)
    train = train_step(objective, optimizer)
    return Contestant(name, lambda *given: train(*given)[::-1], (state, batch), compared, carried=1)


def _loss_and_norm(given: tuple[dict[str, jax.Array], TrainState]) -> dict[str, jax.Array]:
    return {name: given[0][name] for name in ("loss", "gradient_norm")}


def _finite_metrics(given: tuple[dict[str, jax.Array], TrainState]) -> float:
    return finite(given[0])


def to_plain(params: Any) -> Any:
    """The same weights under flax.linen's names."""
    score, cell = params["score"], params["cell"]
    keys, query = plain_additive(score)
    kernel = jnp.concatenate([cell["input"]["kernel"], params["enter"]["kernel"]])
    return {
        **params["encoder"],
        **{name: params[name] for name in ("embed", "first_hidden", "first_memory")},
        "keys": keys,
        "cell": {
            **{name: params[name] for name in ("gate", "from_state", "from_context", "output")},
            "query": query,
            "energy": {"kernel": score["energy"][:, None]},
            "lstm": plain_lstm({**cell, "input": {"kernel": kernel}}),
        },
    }

"""How fast is a Transformer's training step, against Flax's wmt example and PyTorch's nn.Transformer?

Loss, gradient and an Adam update, pre-norm and without dropout: an encoder-decoder of 6 + 6 layers that translates
(one embedding of 8,000 tokens for source, target and output layer) and an encoder of 6 layers that classifies; width
256, 4 heads, 1024 hidden units, batch 32, 64 positions. "long", on accelerators alone, is Vaswani's base model: 32,000
tokens, width 512, 8 heads, 2048 hidden units, 256 positions, and the paper's 25,000 tokens of each language, which is a
batch of 96. "flax wmt" is that example's model written with flax.linen, with whole logits and optax's cross-entropy;
"PyTorch" has nn.Transformer and nn.TransformerEncoder with fused Adam, and "torch.compile" compiles them. All have the
same weights and must give the same loss and the same norm of the gradient. In bfloat16 parameters, their gradients and
Adam stay float32.
"""

import sys
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention_zoo.functional.masks import within
from attention_zoo.models.encoder import Classifier, Encoder
from attention_zoo.models.transformer import Transformer
from benchmarks.harness import compare
from benchmarks.machine import OF_PEAK, PEAKS, roofs, utilisation
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row
from benchmarks.rows import show as show_rows
from benchmarks.training import Loss, training_step
from benchmarks.transformer_peers import Work, flax_wmt
from benchmarks.transformer_pytorch import torch_peer

_NAMES = ("batch", "source", "target", "vocabulary", "width", "layers", "heads", "hidden", "classes", "epsilon")
SIZES = {
    "small": dict(zip(_NAMES, (5, 7, 11, 97, 6, 2, 3, 13, 17, 1e-6), strict=True)),
    "paper": dict(zip(_NAMES, (32, 64, 64, 8_000, 256, 6, 4, 1024, 32, 1e-6), strict=True)),
    "long": dict(zip(_NAMES, (96, 256, 256, 32_000, 512, 6, 8, 2048, 32, 1e-6), strict=True)),
}
# The norm of the gradient is the root of a sum of millions of squares. bfloat16 errs by up to 2^-9 in each of about 70
# roundings on the way through all layers; such errors add up as their root, to 8 * 2^-9.
TOLERANCES = {"float32": 1e-4, "bfloat16": 8 * 2.0**-9}
PEERS: Peers = {
    "flax wmt": lambda: flax_wmt,
    "PyTorch": lambda: torch_peer(compiled=False),
    "torch.compile": lambda: torch_peer(compiled=True),
}


def benchmark(
    size: str = "paper", repetitions: int = 15, *, dtype: str = "float32", peers: Collection[str] | None = None
) -> Iterator[Row]:
    """Rows of the encoder and of the encoder-decoder, one for attention_zoo and for each peer, by default all."""
    sizes = SimpleNamespace(**SIZES[known(size, SIZES, "size")], dtype=jnp.dtype(known(dtype, TOLERANCES, "dtype")))
    if size == "long" and jax.default_backend() == "cpu":
        print("transformer: its size long is for accelerators, and left out", file=sys.stderr)
        return
    found = bring(PEERS, peers)
    timed = partial(compare, tolerance=TOLERANCES[dtype], repetitions=repetitions, dtype=dtype, timed_by="wall")
    for name, prepare in (("encoder", _classification), ("encoder-decoder", _translation)):
        loss, work = prepare(sizes)
        contestants = [training_step(OURS, loss, work.params, work.batch)]
        contestants += [enter(peer, work) for peer, enter in found.items()]
        steps = f"S{sizes.source} T{sizes.target}" if work.translates else f"S{sizes.source}"
        case = f"{name}, B{sizes.batch} {steps} D{sizes.width} N{sizes.vocabulary}"
        needs = {"matmul_gflops": 3 * _products(work)}
        yield from timed("transformer", case, "forward+gradient", contestants, needs=needs)


def show(rows: Sequence[Row]) -> None:
    """Prints the table, and the share of the device's peak in bfloat16 where a data sheet's figure is known."""
    show_rows(rows)
    kind = jax.devices()[0].device_kind
    for row in rows:
        if kind in PEAKS and row.dtype == "bfloat16" and row.roof_fraction is not None:
            share = utilisation(row.roof_fraction, roofs(row.dtype), kind)
            print(f"{row.case}, {row.implementation}: {share:.1%} model FLOP utilisation ({kind}, {OF_PEAK})")


def _translation(sizes: SimpleNamespace) -> tuple[Loss, Work]:
    """Our encoder-decoder, with its vocabulary shared by both languages."""
    vocabularies = {"source_vocabulary": sizes.vocabulary, "target_vocabulary": sizes.vocabulary}
    model = Transformer(**vocabularies, shared=True, **_fields(sizes))
    source, lengths = _tokens(sizes, sizes.source, 0)
    targets, target_lengths = _tokens(sizes, sizes.target, 1)
    inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=1)
    batch = (source, lengths, inputs, targets, target_lengths)

    def loss(params: Any, source: Any, lengths: Any, inputs: Any, targets: Any, target_lengths: Any) -> Any:
        mask = within(target_lengths, targets.shape[1])
        return model.apply({"params": params}, source, lengths, inputs, targets, mask, method="loss")[0]

    return loss, Work(sizes, _drawn(model, source, lengths, inputs), batch, translates=True)


def _classification(sizes: SimpleNamespace) -> tuple[Loss, Work]:
    """Our encoder, and a layer over the mean of what it makes of the real tokens."""
    encoder = Encoder(vocabulary=sizes.vocabulary, **_fields(sizes))
    model = Classifier(encoder, sizes.classes, pooling="mean", pooler=False)
    source, lengths = _tokens(sizes, sizes.source, 0)
    classes = jnp.int32(np.random.default_rng(2).integers(0, sizes.classes, sizes.batch))

    def loss(params: Any, source: Any, lengths: Any, classes: Any) -> Any:
        logits, _ = model.apply({"params": params}, source, lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

    return loss, Work(sizes, _drawn(model, source, lengths), (source, lengths, classes), translates=False)


def _fields(sizes: SimpleNamespace) -> dict[str, Any]:
    return {name: getattr(sizes, name) for name in ("width", "layers", "heads", "hidden", "epsilon", "dtype")}


def _drawn(model: Any, *inputs: jax.Array) -> Any:
    """Weights of the model's shapes, none of them zero or one, where peers might hold another."""
    normal = np.random.default_rng(3).normal

    def draw(path: Any, leaf: Any) -> jax.Array:
        name, noise = path[-1].key, normal(size=leaf.shape)
        if name == "scale":
            return jnp.float32(1 + 0.1 * noise)
        fan_in = leaf.shape[-1 if name == "embedding" else 0]
        return jnp.float32(noise * fan_in**-0.5)

    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def _tokens(sizes: SimpleNamespace, steps: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, T] with padding 0, and lengths from half of T to all of it."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(steps // 2, steps + 1, sizes.batch)
    tokens = generator.integers(4, sizes.vocabulary, (sizes.batch, steps))
    return jnp.int32(np.where(np.arange(steps) < lengths[:, None], tokens, 0)), jnp.int32(lengths)


def _products(work: Work) -> float:
    """Operations of a forward pass's matrix products, padding included."""
    sizes, width = work.sizes, work.sizes.width

    def stack(steps: int, *seen: int) -> int:
        """Layers whose queries, `steps` of a row, see so many keys in each of their attentions."""
        attention = sum(2 * width**2 * (steps + keys) + 2 * steps * keys * width for keys in seen)
        return sizes.layers * (attention + 2 * steps * width * sizes.hidden)

    if work.translates:
        decoder = stack(sizes.target, sizes.target, sizes.source) + sizes.target * width * sizes.vocabulary
        return 2.0 * sizes.batch * (stack(sizes.source, sizes.source) + decoder)
    return 2.0 * sizes.batch * (stack(sizes.source, sizes.source) + width * sizes.classes)

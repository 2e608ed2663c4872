"""The models of Flax's wmt example with attention_zoo's weights."""

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.harness import Contestant
from benchmarks.training import training_step


class Work(NamedTuple):
    """What to train on what.

    sizes: vocabulary, width, layers, heads, hidden, epsilon, classes, and the dtype of the computation. params: of
    ours, float32. batch: source [B, S] and lengths [B]; where it translates, target inputs [B, T], targets [B, T] and
    their lengths [B], otherwise classes [B]. Padding is token 0.
    """

    sizes: SimpleNamespace
    params: Any
    batch: tuple[jax.Array, ...]
    translates: bool


def positions(steps: int, width: int) -> np.ndarray:
    """Sinusoidal vectors of positions 0, 1, ..., [T, D]."""
    angles = np.arange(steps)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(steps, width).astype(np.float32)


class PlainBlock(nn.Module):
    """A block of the wmt example: pre-norm, with cross-attention where there are annotations."""

    sizes: Any

    @nn.compact
    def __call__(self, inputs, mask, annotations=None, across=None):  # type: ignore[no-untyped-def]
        sizes, dtype = self.sizes, self.sizes.dtype
        attend = partial(nn.MultiHeadDotProductAttention, sizes.heads, dtype=dtype)
        norm, dense = partial(nn.LayerNorm, sizes.epsilon, dtype=dtype), partial(nn.Dense, dtype=dtype)
        outputs = inputs + attend(name="own")(norm(name="own_norm")(inputs), mask=mask)
        if annotations is not None:
            queries = norm(name="cross_norm")(outputs)
            outputs = outputs + attend(name="cross")(queries, annotations, mask=across)
        hidden = nn.relu(dense(sizes.hidden, name="enter")(norm(name="forward_norm")(outputs)))
        return outputs + dense(inputs.shape[-1], name="leave")(hidden)


class PlainStack(nn.Module):
    """Blocks, and a norm after the last."""

    sizes: Any

    @nn.compact
    def __call__(self, vectors, *seen):  # type: ignore[no-untyped-def]
        for number in range(self.sizes.layers):
            vectors = PlainBlock(self.sizes, name=f"each_{number}")(vectors, *seen)
        return nn.LayerNorm(self.sizes.epsilon, dtype=self.sizes.dtype, name="last_norm")(vectors)


class PlainTransformer(nn.Module):
    """The wmt example's model: one embedding for source, target and output layer; masks from the padding."""

    sizes: Any

    @nn.compact
    def __call__(self, source, inputs, targets):  # type: ignore[no-untyped-def]
        sizes = self.sizes
        embedding = nn.Embed(sizes.vocabulary, sizes.width, dtype=sizes.dtype, name="embedding")
        real, wanted = source > 0, targets > 0
        causal = nn.combine_masks(nn.make_attention_mask(wanted, wanted), nn.make_causal_mask(targets))

        def embed(tokens: jax.Array) -> jax.Array:
            places = positions(tokens.shape[1], sizes.width).astype(sizes.dtype)
            return embedding(tokens) * sizes.width**0.5 + places[None]

        annotations = PlainStack(sizes, name="encoder")(embed(source), nn.make_attention_mask(real, real))
        across = nn.make_attention_mask(wanted, real)
        return embedding.attend(PlainStack(sizes, name="decoder")(embed(inputs), causal, annotations, across))


class PlainClassifier(nn.Module):
    """The encoder alone, and a layer over the mean of what it makes of the real tokens."""

    sizes: Any

    @nn.compact
    def __call__(self, source):  # type: ignore[no-untyped-def]
        sizes, real = self.sizes, source > 0
        vectors = nn.Embed(sizes.vocabulary, sizes.width, dtype=sizes.dtype, name="embedding")(source)
        vectors = vectors + positions(source.shape[1], sizes.width).astype(sizes.dtype)[None]
        outputs = PlainStack(sizes, name="encoder")(vectors, nn.make_attention_mask(real, real))
        mean = jnp.where(real[..., None], outputs, 0).sum(1) / real.sum(1)[:, None]
        return nn.Dense(sizes.classes, dtype=sizes.dtype, name="output")(mean)


def flax_wmt(name: str, work: Work) -> Contestant:
    """The models above, with whole logits and optax's cross-entropy, in float32 whatever the logits are."""

    def cross_entropy(logits: Any, wanted: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), wanted)

    def translate(params: Any, source: Any, lengths: Any, inputs: Any, targets: Any, target_lengths: Any) -> Any:
        losses = cross_entropy(PlainTransformer(work.sizes).apply({"params": params}, source, inputs, targets), targets)
        return jnp.where(targets > 0, losses, 0).sum() / (targets > 0).sum()

    def classify(params: Any, source: Any, lengths: Any, classes: Any) -> Any:
        return cross_entropy(PlainClassifier(work.sizes).apply({"params": params}, source), classes).mean()

    loss = translate if work.translates else classify
    return training_step(name, loss, _to_flax(work.params, work.sizes.heads), work.batch)


def _to_flax(params: Any, heads: int) -> Any:
    """The same weights under the names of the models above."""

    def attention(part: Any) -> Any:
        split = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-1], heads, -1), dict(part))
        kernel = part["output"]["kernel"]
        out = {"kernel": kernel.reshape(heads, -1, kernel.shape[-1]), "bias": part["output"]["bias"]}
        return {name: split[name] for name in ("query", "key", "value")} | {"out": out}

    def block(made: Any) -> Any:
        attentions = {name: attention(made[name]) for name in ("own", "cross") if name in made}
        return {name: part for name, part in made.items() if name.endswith("norm")} | attentions | made["forward"]

    def stack(layers: Any) -> Any:
        return {name: block(part["made"]) if "made" in part else part for name, part in layers.items()}

    embedding, stacks, output = parts(params)
    return {"embedding": {"embedding": embedding}} | {name: stack(part) for name, part in stacks.items()} | output


def parts(params: Any) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
    """The embedding [N, D], the stacks by name, and the classifier's output layer where there is one."""
    if "target_embedding" in params:
        return params["target_embedding"]["embedding"], {n: params[n] for n in ("encoder", "decoder")}, {}
    encoder = params["encoder"]
    return encoder["embedding"]["embedding"], {"encoder": encoder["blocks"]}, {"output": params["output"]}

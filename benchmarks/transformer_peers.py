"""The Transformers of Flax's wmt example and of PyTorch, with attention_zoo's weights, as whole training steps."""

import warnings
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks import pytorch
from benchmarks.harness import Contestant

Loss = Callable[..., Any]


class Work(NamedTuple):
    """What to train on what.

    sizes: vocabulary, width, layers, heads, hidden, epsilon, classes. params: of ours. batch: source [B, S] and
    lengths [B]; where it translates, target inputs [B, T], targets [B, T] and their lengths [B], otherwise classes [B].
    Padding is token 0.
    """

    sizes: SimpleNamespace
    params: Any
    batch: tuple[jax.Array, ...]
    translates: bool


def training_step(name: str, loss: Loss, params: Any, batch: tuple[jax.Array, ...]) -> Contestant:
    """The loss, its gradient and Adam's update, in JAX; compared by the loss and the gradient's norm."""
    optimizer = optax.adam(1e-3)

    def step(params: Any, state: Any, *batch: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(gradient, state)
        compared = {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
        return compared, optax.apply_updates(params, updates), state

    return Contestant(name, step, (params, optimizer.init(params), *batch), itemgetter(0))


def positions(steps: int, width: int) -> np.ndarray:
    """Sinusoidal vectors of positions 0, 1, ..., [T, D]."""
    angles = np.arange(steps)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(steps, width).astype(np.float32)


class PlainBlock(nn.Module):
    """A block of the wmt example: pre-norm, with cross-attention where there are annotations."""

    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, inputs, mask, annotations=None, across=None):  # type: ignore[no-untyped-def]
        attend, norm = partial(nn.MultiHeadDotProductAttention, self.heads), partial(nn.LayerNorm, self.epsilon)
        outputs = inputs + attend(name="own")(norm(name="own_norm")(inputs), mask=mask)
        if annotations is not None:
            queries = norm(name="cross_norm")(outputs)
            outputs = outputs + attend(name="cross")(queries, annotations, mask=across)
        hidden = nn.relu(nn.Dense(self.hidden, name="enter")(norm(name="forward_norm")(outputs)))
        return outputs + nn.Dense(inputs.shape[-1], name="leave")(hidden)


class PlainStack(nn.Module):
    """Blocks, and a norm after the last."""

    sizes: Any

    @nn.compact
    def __call__(self, vectors, *seen):  # type: ignore[no-untyped-def]
        for number in range(self.sizes.layers):
            block = PlainBlock(self.sizes.heads, self.sizes.hidden, self.sizes.epsilon, name=f"each_{number}")
            vectors = block(vectors, *seen)
        return nn.LayerNorm(self.sizes.epsilon, name="last_norm")(vectors)


class PlainTransformer(nn.Module):
    """The wmt example's model: one embedding for source, target and output layer; masks from the padding."""

    sizes: Any

    @nn.compact
    def __call__(self, source, inputs, targets):  # type: ignore[no-untyped-def]
        sizes = self.sizes
        embedding = nn.Embed(sizes.vocabulary, sizes.width, name="embedding")
        real, wanted = source > 0, targets > 0
        causal = nn.combine_masks(nn.make_attention_mask(wanted, wanted), nn.make_causal_mask(targets))

        def embed(tokens: jax.Array) -> jax.Array:
            return embedding(tokens) * sizes.width**0.5 + positions(tokens.shape[1], sizes.width)[None]

        annotations = PlainStack(sizes, name="encoder")(embed(source), nn.make_attention_mask(real, real))
        across = nn.make_attention_mask(wanted, real)
        return embedding.attend(PlainStack(sizes, name="decoder")(embed(inputs), causal, annotations, across))


class PlainClassifier(nn.Module):
    """The encoder alone, and a layer over the mean of what it makes of the real tokens."""

    sizes: Any

    @nn.compact
    def __call__(self, source):  # type: ignore[no-untyped-def]
        sizes, real = self.sizes, source > 0
        vectors = nn.Embed(sizes.vocabulary, sizes.width, name="embedding")(source)
        vectors = vectors + positions(source.shape[1], sizes.width)[None]
        outputs = PlainStack(sizes, name="encoder")(vectors, nn.make_attention_mask(real, real))
        mean = jnp.where(real[..., None], outputs, 0).sum(1) / real.sum(1)[:, None]
        return nn.Dense(sizes.classes, name="output")(mean)


def flax_wmt(name: str, work: Work) -> Contestant:
    """The models above, with whole logits and optax's cross-entropy."""
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

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

    def stack(parts: Any) -> Any:
        return {name: block(part["made"]) if "made" in part else part for name, part in parts.items()}

    embedding, stacks, output = _parts(params)
    return {"embedding": {"embedding": embedding}} | {name: stack(part) for name, part in stacks.items()} | output


def _parts(params: Any) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
    """The embedding [N, D], the stacks by name, and the classifier's output layer where there is one."""
    if "target_embedding" in params:
        return params["target_embedding"]["embedding"], {n: params[n] for n in ("encoder", "decoder")}, {}
    encoder = params["encoder"]
    return encoder["embedding"]["embedding"], {"encoder": encoder["blocks"]}, {"output": params["output"]}


def torch_peer(compiled: bool) -> Callable[[str, Work], Contestant]:
    """Makes PyTorch's training step: its layers and its fused Adam, eager or with `torch.compile`.

    Raises:
        Exception: there is no PyTorch, or `torch.compile` does not run on this machine (it needs a C++ compiler).
    """
    torch = pytorch.load()
    if compiled:
        torch.compile(torch.sin)(torch.ones(2))

    def contestant(name: str, work: Work) -> Contestant:
        module, loss = (_torch_transformer if work.translates else _torch_classifier)(torch, work)
        loss = torch.compile(loss) if compiled else loss
        # Without a learning rate Adam does all of its work and leaves the weights for the next repetition as they are.
        optimizer = torch.optim.Adam(module.parameters(), lr=0.0, fused=True)

        def step(*batch: Any) -> Any:
            optimizer.zero_grad()
            value = loss(*batch)
            value.backward()
            norm = torch.nn.utils.get_total_norm([weight.grad for weight in module.parameters()])
            optimizer.step()
            return {"loss": value, "gradient_norm": norm}

        return pytorch.contestant(name, step, work.batch)

    return contestant


def _torch_transformer(torch: Any, work: Work) -> tuple[Any, Loss]:
    sizes, functional = work.sizes, torch.nn.functional
    arguments = (sizes.width, sizes.heads, sizes.layers, sizes.layers, sizes.hidden)
    with warnings.catch_warnings(action="ignore"):  # It warns of nested tensors, which it does not use by itself.
        layers = torch.nn.Transformer(*arguments, **_torch_options(sizes))
    module = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(sizes.vocabulary, sizes.width), "layers": layers})
    module.load_state_dict(_to_torch(work.params, "layers."))
    steps = work.batch[2].shape[1]
    causal = torch.ones(steps, steps, dtype=torch.bool).triu(1)
    places = [torch.from_numpy(positions(size, sizes.width)) for size in (work.batch[0].shape[1], steps)]

    def loss(source: Any, lengths: Any, inputs: Any, targets: Any, target_lengths: Any) -> Any:
        vectors, wanted = (
            module["embedding"](tokens) * sizes.width**0.5 + place
            for tokens, place in zip((source, inputs), places, strict=True)
        )
        hidden = {"src_key_padding_mask": source == 0, "memory_key_padding_mask": source == 0}
        features = layers(vectors, wanted, tgt_mask=causal, tgt_is_causal=True, **hidden)
        logits = functional.linear(features, module["embedding"].weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=0)

    return module, loss


def _torch_classifier(torch: Any, work: Work) -> tuple[Any, Loss]:
    sizes = work.sizes
    layer = torch.nn.TransformerEncoderLayer(sizes.width, sizes.heads, sizes.hidden, **_torch_options(sizes))
    norm = torch.nn.LayerNorm(sizes.width, sizes.epsilon)
    module = torch.nn.ModuleDict({
        "embedding": torch.nn.Embedding(sizes.vocabulary, sizes.width),
        "encoder": torch.nn.TransformerEncoder(layer, sizes.layers, norm, enable_nested_tensor=False),
        "output": torch.nn.Linear(sizes.width, sizes.classes),
    })  # fmt: skip
    module.load_state_dict(_to_torch(work.params, ""))
    places = torch.from_numpy(positions(work.batch[0].shape[1], sizes.width))

    def loss(source: Any, lengths: Any, classes: Any) -> Any:
        outputs = module["encoder"](module["embedding"](source) + places, src_key_padding_mask=source == 0)
        mean = outputs.masked_fill((source == 0)[..., None], 0).sum(1) / lengths[:, None]
        return torch.nn.functional.cross_entropy(module["output"](mean), classes.long())

    return module, loss


def _torch_options(sizes: SimpleNamespace) -> dict[str, Any]:
    return {"dropout": 0.0, "layer_norm_eps": sizes.epsilon, "batch_first": True, "norm_first": True}


def _to_torch(params: Any, prefix: str) -> dict[str, Any]:
    """The same weights under PyTorch's names, those of the stacks behind the prefix."""
    embedding, stacks, output = _parts(params)
    named = {"embedding.weight": embedding}
    for name, part in output.items():
        named |= {f"{name}.weight": part["kernel"].T, f"{name}.bias": part["bias"]}
    for name, stack in stacks.items():
        named |= _torch_norm(f"{prefix}{name}.norm", stack["last_norm"])
        for number in range(len(stack) - 1):
            named |= _torch_block(f"{prefix}{name}.layers.{number}", stack[f"each_{number}"]["made"])
    return pytorch.tensors(named)


def _torch_block(prefix: str, made: Any) -> dict[str, jax.Array]:
    attentions = {"own": "self_attn"} | ({"cross": "multihead_attn"} if "cross" in made else {})
    named: dict[str, jax.Array] = {}
    for ours, theirs in attentions.items():
        three = [made[ours][part] for part in ("query", "key", "value")]
        named[f"{prefix}.{theirs}.in_proj_weight"] = jnp.concatenate([part["kernel"].T for part in three])
        named[f"{prefix}.{theirs}.in_proj_bias"] = jnp.concatenate([part["bias"] for part in three])
        named |= _torch_linear(f"{prefix}.{theirs}.out_proj", made[ours]["output"])
    for number, ours in enumerate([*attentions, "forward"], 1):
        named |= _torch_norm(f"{prefix}.norm{number}", made[f"{ours}_norm"])
    for number, ours in enumerate(["enter", "leave"], 1):
        named |= _torch_linear(f"{prefix}.linear{number}", made["forward"][ours])
    return named


def _torch_linear(name: str, part: Any) -> dict[str, jax.Array]:
    return {f"{name}.weight": part["kernel"].T, f"{name}.bias": part["bias"]}


def _torch_norm(name: str, part: Any) -> dict[str, jax.Array]:
    return {f"{name}.weight": part["scale"], f"{name}.bias": part["bias"]}

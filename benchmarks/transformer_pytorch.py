"""PyTorch's nn.Transformer and nn.TransformerEncoder with attention_zoo's weights, as whole training steps."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import pytorch
from benchmarks.harness import Contestant
from benchmarks.training import Loss
from benchmarks.transformer_peers import Work, parts, positions


def torch_peer(compiled: bool) -> Callable[[str, Work], Contestant]:
    """Makes PyTorch's training step: its layers and its fused Adam, eager or with `torch.compile`.

    In bfloat16 the loss is under `torch.autocast`, which leaves norms, residual sums and cross-entropy in float32.

    Raises:
        Exception: there is no PyTorch, or `torch.compile` does not run on this machine (it needs a C++ compiler).
    """
    torch = pytorch.load()
    if compiled:
        torch.compile(torch.sin)(pytorch.tensors(np.ones(2)))

    def contestant(name: str, work: Work) -> Contestant:
        device = pytorch.tensors(work.batch[0]).device
        module, plain = (_transformer if work.translates else _classifier)(torch, work, device)
        half = torch.autocast(device.type, torch.bfloat16, enabled=work.sizes.dtype == "bfloat16")
        loss = torch.compile(half(plain)) if compiled else half(plain)
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


def _transformer(torch: Any, work: Work, device: Any) -> tuple[Any, Loss]:
    sizes, functional = work.sizes, torch.nn.functional
    arguments = (sizes.width, sizes.heads, sizes.layers, sizes.layers, sizes.hidden)
    with warnings.catch_warnings(action="ignore"):  # It warns of nested tensors, which it does not use by itself.
        layers = torch.nn.Transformer(*arguments, **_options(sizes))
    module = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(sizes.vocabulary, sizes.width), "layers": layers})
    module.to(device).load_state_dict(_to_torch(work.params, "layers."))
    steps = work.batch[2].shape[1]
    causal = torch.ones(steps, steps, dtype=torch.bool, device=device).triu(1)
    places = pytorch.tensors([positions(size, sizes.width) for size in (work.batch[0].shape[1], steps)])

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


def _classifier(torch: Any, work: Work, device: Any) -> tuple[Any, Loss]:
    sizes = work.sizes
    layer = torch.nn.TransformerEncoderLayer(sizes.width, sizes.heads, sizes.hidden, **_options(sizes))
    norm = torch.nn.LayerNorm(sizes.width, sizes.epsilon)
    module = torch.nn.ModuleDict({
        "embedding": torch.nn.Embedding(sizes.vocabulary, sizes.width),
        "encoder": torch.nn.TransformerEncoder(layer, sizes.layers, norm, enable_nested_tensor=False),
        "output": torch.nn.Linear(sizes.width, sizes.classes),
    })  # fmt: skip
    module.to(device).load_state_dict(_to_torch(work.params, ""))
    places = pytorch.tensors(positions(work.batch[0].shape[1], sizes.width))

    def loss(source: Any, lengths: Any, classes: Any) -> Any:
        outputs = module["encoder"](module["embedding"](source) + places, src_key_padding_mask=source == 0)
        mean = outputs.masked_fill((source == 0)[..., None], 0).sum(1) / lengths[:, None]
        return torch.nn.functional.cross_entropy(module["output"](mean), classes.long())

    return module, loss


def _options(sizes: SimpleNamespace) -> dict[str, Any]:
    return {"dropout": 0.0, "layer_norm_eps": sizes.epsilon, "batch_first": True, "norm_first": True}


def _to_torch(params: Any, prefix: str) -> dict[str, Any]:
    """The same weights under PyTorch's names, those of the stacks behind the prefix."""
    embedding, stacks, output = parts(params)
    named = {"embedding.weight": embedding}
    for name, part in output.items():
        named |= {f"{name}.weight": part["kernel"].T, f"{name}.bias": part["bias"]}
    for name, stack in stacks.items():
        named |= _norm(f"{prefix}{name}.norm", stack["last_norm"])
        for number in range(len(stack) - 1):
            named |= _block(f"{prefix}{name}.layers.{number}", stack[f"each_{number}"]["made"])
    return pytorch.tensors(named)


def _block(prefix: str, made: Any) -> dict[str, jax.Array]:
    attentions = {"own": "self_attn"} | ({"cross": "multihead_attn"} if "cross" in made else {})
    named: dict[str, jax.Array] = {}
    for ours, theirs in attentions.items():
        three = [made[ours][part] for part in ("query", "key", "value")]
        named[f"{prefix}.{theirs}.in_proj_weight"] = jnp.concatenate([part["kernel"].T for part in three])
        named[f"{prefix}.{theirs}.in_proj_bias"] = jnp.concatenate([part["bias"] for part in three])
        named |= _linear(f"{prefix}.{theirs}.out_proj", made[ours]["output"])
    for number, ours in enumerate([*attentions, "forward"], 1):
        named |= _norm(f"{prefix}.norm{number}", made[f"{ours}_norm"])
    for number, ours in enumerate(["enter", "leave"], 1):
        named |= _linear(f"{prefix}.linear{number}", made["forward"][ours])
    return named


def _linear(name: str, part: Any) -> dict[str, jax.Array]:
    return {f"{name}.weight": part["kernel"].T, f"{name}.bias": part["bias"]}


def _norm(name: str, part: Any) -> dict[str, jax.Array]:
    return {f"{name}.weight": part["scale"], f"{name}.bias": part["bias"]}

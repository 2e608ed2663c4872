"""Multi-head attention and the blocks against torch's: results, weights and gradients, from golden files."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from attention_zoo.modules.multihead import Asked, MultiHeadAttention, Sight
from attention_zoo.modules.transformer import FeedForward, TransformerBlock
from tests.quick import quick

WIDTH, HEADS, HIDDEN = 6, 3, 11


def differentiated(forward: Callable) -> Callable:
    """`forward(arrays, *masks) -> results`, compiled together with the gradients that cotangents give."""

    def both(arrays, cotangents, *masks):
        results, pull_back = jax.vjp(lambda arrays: forward(arrays, *masks), arrays)
        return results, *pull_back(cotangents)

    return quick(both)


def compare(case: dict[str, np.ndarray], both: Callable, names: tuple[str, ...], *masks: np.ndarray) -> None:
    """What `differentiated` made gives the golden results and, by their cotangents, the golden gradients."""
    arrays = {name: case[name] for name in case if f"gradients/{name}" in case}
    results, gradients = both(arrays, tuple(case[f"cotangents/{name}"] for name in names), *masks)
    found = dict(zip(names, results, strict=True)) | {f"gradients/{name}": g for name, g in gradients.items()}
    for name, value in found.items():
        np.testing.assert_allclose(value, case[name], rtol=1e-10, atol=1e-10, err_msg=name)


def of_torch(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {key.removeprefix("weights/"): value for key, value in arrays.items() if key.startswith("weights/")}


def under(weights: dict[str, jax.Array], name: str) -> dict[str, jax.Array]:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def attention_parameters(weights: dict[str, jax.Array]) -> dict[str, Any]:
    """The parameters of a torch.nn.MultiheadAttention."""
    if "in_proj_weight" in weights:
        kernels = jnp.split(weights["in_proj_weight"], 3)
    else:
        kernels = [weights[f"{letter}_proj_weight"] for letter in "qkv"]
    parts = zip(("query", "key", "value"), kernels, jnp.split(weights["in_proj_bias"], 3), strict=True)
    parameters = {name: {"kernel": kernel.T, "bias": bias} for name, kernel, bias in parts}
    return parameters | {"output": {"kernel": weights["out_proj.weight"].T, "bias": weights["out_proj.bias"]}}


def block_parameters(weights: dict[str, jax.Array], cross: bool) -> dict[str, Any]:
    """The parameters of a torch.nn.TransformerEncoderLayer, or, with `cross`, of a TransformerDecoderLayer."""
    names = {"own": "self_attn"} | ({"cross": "multihead_attn"} if cross else {})
    parameters = {ours: attention_parameters(under(weights, theirs)) for ours, theirs in names.items()}
    for number, ours in enumerate([*parameters, "forward"], start=1):
        norm = under(weights, f"norm{number}")
        parameters[f"{ours}_norm"] = {"scale": norm["weight"], "bias": norm["bias"]}
    linear = {"enter": under(weights, "linear1"), "leave": under(weights, "linear2")}
    forward = {ours: {"kernel": part["weight"].T, "bias": part["bias"]} for ours, part in linear.items()}
    return parameters | {"forward": forward}


@cache
def attention(causal: bool) -> Callable:
    """Outputs and weights of `MultiHeadAttention`, over its inputs or a source, compiled once for all masks."""

    def seen(module, inputs, source, mask):
        return module(inputs, module.remember(source), Sight(mask), causal=causal, asked=Asked())

    def forward(arrays, mask):
        variables = {"params": attention_parameters(of_torch(arrays))}
        attend = nn.apply(seen, MultiHeadAttention(HEADS, WIDTH))
        return attend(variables, arrays["inputs"], arrays.get("source", arrays["inputs"]), mask)

    return differentiated(forward)


@pytest.mark.parametrize("kind", ["open", "padding", "causal", "both"])
def test_self_attention_equals_torch(kind, golden, float64):
    case = golden("torch_transformer", f"self/{kind}")
    mask = case.get("mask", np.ones((2, 5), bool))[:, None, None]
    compare(case, attention(kind in ("causal", "both")), ("outputs", "alignment"), mask)


@pytest.mark.parametrize("kind", ["open", "padding", "pairs", "both"])
def test_cross_attention_equals_torch(kind, golden, float64):
    case = golden("torch_transformer", f"cross/{kind}")
    padding, pairs = case.get("mask", np.ones((2, 7), bool)), case.get("pairs", np.ones((5, 7), bool))
    compare(case, attention(False), ("outputs", "alignment"), padding[:, None, None] & pairs[None, None])


def block(activation: str, norm: str, cross: bool) -> TransformerBlock:
    attend = partial(MultiHeadAttention, HEADS, WIDTH)
    feed = partial(FeedForward, HIDDEN, WIDTH, activation)
    norms = partial(nn.LayerNorm, epsilon=1e-5)
    return TransformerBlock(attend, feed, norms, attend if cross else None, causal=cross, norm_first=norm == "pre")


@pytest.mark.parametrize(("activation", "norm"), [("gelu", "post"), ("relu", "pre")])
def test_encoder_block_equals_torchs_layer(activation, norm, golden, float64):
    def forward(arrays, mask):
        variables = {"params": block_parameters(of_torch(arrays), cross=False)}
        return (block(activation, norm, cross=False).apply(variables, arrays["inputs"], Sight(mask))[0],)

    case = golden("torch_transformer", f"encoder/{activation}/{norm}")
    compare(case, differentiated(forward), ("outputs",), case["mask"][:, None, None])


@pytest.mark.parametrize(("activation", "norm"), [("relu", "post"), ("gelu", "pre")])
def test_decoder_block_equals_torchs_layer(activation, norm, golden, float64):
    def decode(module, inputs, source, mask, source_mask):
        return module(inputs, Sight(mask), None, module.remember(source), Sight(source_mask))[0]

    def forward(arrays, *masks):
        variables = {"params": block_parameters(of_torch(arrays), cross=True)}
        module = block(activation, norm, cross=True)
        return (nn.apply(decode, module)(variables, arrays["inputs"], arrays["source"], *masks),)

    case = golden("torch_transformer", f"decoder/{activation}/{norm}")
    masks = (case[name][:, None, None] for name in ("mask", "source_mask"))
    compare(case, differentiated(forward), ("outputs",), *masks)

"""Writes torch_sdpa.npz: torch.nn.functional.scaled_dot_product_attention with every kind of mask it knows, in float64.

Run with `python tests/golden/torch_sdpa.py`; made with Python 3.11.7, torch 2.13.0 (CPU), numpy 2.4.6.

Cases, and what is given beside queries, keys and values:
    plain: nothing
    causal: is_causal, with as many queries as keys
    mask: a boolean attn_mask [B, 1, T, S]; every row may attend to something
    bias: a float attn_mask [H, T, S], with a gradient
    grouped: enable_gqa, three heads of keys for six of queries, and scale 0.7
Arrays of a case, with sizes B 2, H 6 (grouped: 3 of keys and values), T 5 (causal: 7), S 7, D 2, V 3:

    queries [B, H, T, D], keys [B, H, S, D], values [B, H, S, V]; mask, bias where there is one
    context [B, H, T, V]
    cotangent: C in the loss sum(C * context)
    gradients/{queries,keys,values,bias}: of that loss
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

BATCH, HEADS, GROUPS, QUERIES, SOURCE, WIDTH, VALUE = 2, 6, 3, 5, 7, 2, 3


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def case(name: str, queries: int = QUERIES, groups: int = HEADS, **options: object) -> dict[str, np.ndarray]:
    differentiated = {
        "queries": draw(BATCH, HEADS, queries, WIDTH),
        "keys": draw(BATCH, groups, SOURCE, WIDTH),
        "values": draw(BATCH, groups, SOURCE, VALUE),
    }
    context = scaled_dot_product_attention(*differentiated.values(), **options)
    cotangent = torch.randn_like(context)
    (cotangent * context).sum().backward()
    arrays = differentiated | {"context": context, "cotangent": cotangent}
    over = options.get("attn_mask")
    if over is not None and over.dtype == torch.bool:
        arrays["mask"] = over
    elif over is not None:
        arrays["bias"] = differentiated["bias"] = over
    arrays |= {f"gradients/{key}": value.grad for key, value in differentiated.items()}
    return {f"{name}/{key}": value.detach().numpy() for key, value in arrays.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    mask = torch.rand(BATCH, 1, QUERIES, SOURCE) < 0.5
    mask[..., 2] = True
    cases = [
        case("plain"),
        case("causal", queries=SOURCE, is_causal=True),
        case("mask", attn_mask=mask),
        case("bias", attn_mask=draw(HEADS, QUERIES, SOURCE)),
        case("grouped", groups=GROUPS, enable_gqa=True, scale=0.7),
    ]
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **{k: v for arrays in cases for k, v in arrays.items()})

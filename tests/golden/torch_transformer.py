"""Writes torch_transformer.npz: torch's attention and Transformer layers, with gradients, in float64.

Run with `python tests/golden/torch_transformer.py`; made with Python 3.11.7, torch 2.13.0 (CPU), numpy 2.4.6.

Cases, with sizes B 2, T 5, S 7, W 6 (width), H 3 (heads), 11 (hidden units), E 13 (width of what `cross` looks at):

    self/{open,padding,causal,both}: torch.nn.MultiheadAttention over its own inputs
    cross/{open,padding,pairs,both}: over a source [B, S, E]; `pairs` is a mask of its own for each query
    encoder/{gelu/post,relu/pre}: torch.nn.TransformerEncoderLayer; post- or pre-norm
    decoder/{relu/post,gelu/pre}: torch.nn.TransformerDecoderLayer
Arrays of a case; masks are True = may attend:

    inputs [B, T, W]; source [B, S, E] (cross) or [B, S, W] (decoder)
    mask: [B, T] of the inputs' padding (self, encoder, decoder) or [B, S] of the source's (cross); source_mask [B, S]
        (decoder); pairs [T, S] (cross). Each kind of self and cross has the masks that it is called after; the decoder
        is causal.
    outputs [B, T, W]; alignment [B, H, T, T] or [B, H, T, S] of self and cross
    weights/NAME: NAME as torch has it
    cotangents/{outputs,alignment}: C in the loss sum(C * result)
    gradients/{inputs,source,weights/NAME}: of that loss
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

BATCH, QUERIES, SOURCE, WIDTH, HEADS, HIDDEN, OUTSIDE = 2, 5, 7, 6, 3, 11, 13
LENGTHS, SOURCE_LENGTHS = [2, 5], [7, 3]
Arrays = dict[str, torch.Tensor]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def within(lengths: list[int], size: int) -> torch.Tensor:
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def hides(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Torch's masks are True where nothing may be seen."""
    return None if mask is None else ~mask


def shaken(module: nn.Module) -> nn.Module:
    """No bias is zero and no gain is one."""
    for weight in module.parameters():
        weight.data = weight.data.double() + 0.3 * torch.randn_like(weight, dtype=torch.float64)
    return module.double()


def record(module: nn.Module, inputs: Arrays, masks: dict[str, torch.Tensor | None], results: Arrays) -> Arrays:
    cotangents = {name: torch.randn_like(result) for name, result in results.items()}
    sum((cotangents[name] * result).sum() for name, result in results.items()).backward()
    differentiated = inputs | {f"weights/{name}": weight for name, weight in module.named_parameters()}
    arrays = differentiated | results | {name: mask for name, mask in masks.items() if mask is not None}
    arrays |= {f"cotangents/{name}": value for name, value in cotangents.items()}
    return arrays | {f"gradients/{name}": value.grad for name, value in differentiated.items()}


def own_attention(kind: str) -> Arrays:
    module = shaken(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    inputs = draw(BATCH, QUERIES, WIDTH)
    mask = within(LENGTHS, QUERIES) if kind in ("padding", "both") else None
    past = torch.ones(QUERIES, QUERIES, dtype=torch.bool).tril() if kind in ("causal", "both") else None
    options = {"key_padding_mask": hides(mask), "attn_mask": hides(past), "average_attn_weights": False}
    outputs, alignment = module(inputs, inputs, inputs, **options)
    return record(module, {"inputs": inputs}, {"mask": mask}, {"outputs": outputs, "alignment": alignment})


def cross_attention(kind: str) -> Arrays:
    module = shaken(nn.MultiheadAttention(WIDTH, HEADS, kdim=OUTSIDE, vdim=OUTSIDE, batch_first=True))
    inputs, source = draw(BATCH, QUERIES, WIDTH), draw(BATCH, SOURCE, OUTSIDE)
    mask = within(SOURCE_LENGTHS, SOURCE) if kind in ("padding", "both") else None
    pairs = torch.rand(QUERIES, SOURCE) < 0.6 if kind in ("pairs", "both") else None
    if pairs is not None:
        pairs[:, 0] = True  # torch gives NaN where a query sees nothing
    options = {"key_padding_mask": hides(mask), "attn_mask": hides(pairs), "average_attn_weights": False}
    outputs, alignment = module(inputs, source, source, **options)
    results = {"outputs": outputs, "alignment": alignment}
    return record(module, {"inputs": inputs, "source": source}, {"mask": mask, "pairs": pairs}, results)


def options(activation: str, norm: str) -> dict:
    return {"activation": activation, "norm_first": norm == "pre", "batch_first": True, "dropout": 0.0}


def encoder(activation: str, norm: str) -> Arrays:
    module = shaken(nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, **options(activation, norm)))
    inputs, mask = draw(BATCH, QUERIES, WIDTH), within(LENGTHS, QUERIES)
    outputs = module(inputs, src_key_padding_mask=hides(mask))
    return record(module, {"inputs": inputs}, {"mask": mask}, {"outputs": outputs})


def decoder(activation: str, norm: str) -> Arrays:
    module = shaken(nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, **options(activation, norm)))
    inputs, source = draw(BATCH, QUERIES, WIDTH), draw(BATCH, SOURCE, WIDTH)
    masks = {"mask": within(LENGTHS, QUERIES), "source_mask": within(SOURCE_LENGTHS, SOURCE)}
    past = torch.ones(QUERIES, QUERIES, dtype=torch.bool).tril()
    hidden = {"tgt_key_padding_mask": hides(masks["mask"]), "memory_key_padding_mask": hides(masks["source_mask"])}
    outputs = module(inputs, source, tgt_mask=hides(past), **hidden)
    return record(module, {"inputs": inputs, "source": source}, masks, {"outputs": outputs})


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = {f"self/{kind}": own_attention(kind) for kind in ("open", "padding", "causal", "both")}
    cases |= {f"cross/{kind}": cross_attention(kind) for kind in ("open", "padding", "pairs", "both")}
    layers = [(encoder, "gelu", "post"), (encoder, "relu", "pre"), (decoder, "relu", "post"), (decoder, "gelu", "pre")]
    cases |= {f"{layer.__name__}/{activation}/{norm}": layer(activation, norm) for layer, activation, norm in layers}
    named = {f"{case}/{name}": value for case, arrays in cases.items() for name, value in arrays.items()}
    arrays = {name: value.detach().numpy() for name, value in named.items()}
    assert all(np.isfinite(value).all() for value in arrays.values())
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)

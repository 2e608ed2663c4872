"""Writes torch_scores.npz: scores built from torch's own parts, with gradients, in float64.

Run with `python tests/golden/torch_scores.py`; made with Python 3.11.7, torch 2.13.0 (CPU), numpy 2.4.6.

Cases, and the parts they are made of:
    cosine: sharpness times torch.nn.functional.cosine_similarity of Linear(q) and k
    normalised: weight_norm(Linear(H, 1)) of tanh(Linear(q) + Linear(k)), the weight norm with one gain
    concat: Linear(H, 1) of tanh(Linear([q; k])), with the vectors joined
    location: Linear(q), one output a position
Arrays of a case, with sizes B 2, T 3, S 7, Q 5 (queries), V 11 (keys, which are also the values), H 13:

    queries [B, T, Q], values [B, S, V], mask [B, S], True = may attend; the last source has nothing hidden
    context [B, T, V], alignment [B, T, S]: torch's softmax of the scores with -inf where the mask hides
    weights/NAME: cosine: query.weight [V, Q], sharpness []; normalised: query.weight [H, Q], query.bias [H],
        key.weight [H, V], energy.original0 [] (g) and energy.original1 [1, H] (v); concat: joint.weight [H, Q + V],
        energy.weight [1, H]; location: positions.weight [S, Q]
    cotangents/{context,alignment}: C in the loss sum(C * result)
    gradients/{queries,values,weights/NAME}: of that loss
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

BATCH, QUERIES, SOURCE, QUERY, VALUE, HIDDEN = 2, 3, 7, 5, 11, 13


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)


def pairs(queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every query beside every key, both [B, T, S, width]."""
    return queries[:, :, None].expand(-1, -1, keys.shape[1], -1), keys[:, None].expand(-1, queries.shape[1], -1, -1)


def cosine() -> tuple[nn.Module, Callable]:
    query = linear(QUERY, VALUE)
    module = nn.ModuleDict({"query": query})
    module.register_parameter("sharpness", nn.Parameter(torch.tensor(3.7, dtype=torch.float64)))
    similarity = torch.nn.functional.cosine_similarity
    return module, lambda q, k: module.sharpness * similarity(*pairs(query(q), k), dim=-1)


def normalised() -> tuple[nn.Module, Callable]:
    query, key = linear(QUERY, HIDDEN, bias=True), linear(VALUE, HIDDEN)
    energy = nn.utils.parametrizations.weight_norm(linear(HIDDEN, 1), dim=None)
    score = lambda q, k: energy(torch.tanh(sum(pairs(query(q), key(k)))))[..., 0]  # noqa: E731
    return nn.ModuleDict({"query": query, "key": key, "energy": energy}), score


def concat() -> tuple[nn.Module, Callable]:
    joint, energy = linear(QUERY + VALUE, HIDDEN), linear(HIDDEN, 1)
    score = lambda q, k: energy(torch.tanh(joint(torch.cat(pairs(q, k), -1))))[..., 0]  # noqa: E731
    return nn.ModuleDict({"joint": joint, "energy": energy}), score


def location() -> tuple[nn.Module, Callable]:
    positions = linear(QUERY, SOURCE)
    return nn.ModuleDict({"positions": positions}), lambda q, k: positions(q)


def case(name: str, module: nn.Module, score: Callable) -> dict[str, np.ndarray]:
    queries = torch.randn(BATCH, QUERIES, QUERY, dtype=torch.float64, requires_grad=True)
    values = torch.randn(BATCH, SOURCE, VALUE, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 0], [1] * 7], dtype=torch.bool)
    alignment = score(queries, values).masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    context = alignment @ values
    cotangents = {"context": torch.randn_like(context), "alignment": torch.randn_like(alignment)}
    ((cotangents["context"] * context).sum() + (cotangents["alignment"] * alignment).sum()).backward()

    weights = {key.replace("parametrizations.weight.", ""): weight for key, weight in module.named_parameters()}
    differentiated = {"queries": queries, "values": values}
    differentiated |= {f"weights/{key}": weight for key, weight in weights.items()}
    arrays = differentiated | {"mask": mask, "context": context, "alignment": alignment}
    arrays |= {f"cotangents/{key}": value for key, value in cotangents.items()}
    arrays |= {f"gradients/{key}": value.grad for key, value in differentiated.items()}
    return {f"{name}/{key}": value.detach().numpy() for key, value in arrays.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = [case(make.__name__, *make()) for make in (cosine, normalised, concat, location)]
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **{k: v for arrays in cases for k, v in arrays.items()})

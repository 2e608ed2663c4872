"""Writes joeynmt_attention.npz: JoeyNMT's BahdanauAttention and LuongAttention, with gradients, in float64.

Run with `python tests/golden/joeynmt_attention.py`; made with Python 3.11.7, joeynmt 2.3.0, torch 2.13.0 (CPU),
numpy 2.4.6. JoeyNMT takes one query a call; the queries are stacked here.

Cases `bahdanau` (additive score) and `luong` (general score: its key layer is W^T). Arrays of a case, with sizes
B 2, T 3, S 7, V 5 (values, which are also the keys), D 11 (hidden size, and the width of Luong's queries), Q 13
(width of Bahdanau's queries):

    queries [B, T, Q or D], values [B, S, V], mask [B, S], True = may attend
    context [B, T, V], alignment [B, T, S]
    weights/NAME as JoeyNMT has it: key_layer.weight [D, V]; Bahdanau also query_layer.weight [D, Q] and
        energy_layer.weight [1, D]
    cotangents/{context,alignment}: C in the loss sum(C * result)
    gradients/{queries,values,weights/NAME}: of that loss
"""

from pathlib import Path

import numpy as np
import torch
from joeynmt.attention import BahdanauAttention, LuongAttention

BATCH, QUERIES, SOURCE, VALUE, HIDDEN, QUERY = 2, 3, 7, 5, 11, 13


def case(name: str, attention: torch.nn.Module, query_width: int) -> dict[str, np.ndarray]:
    attention = attention.double()
    queries = torch.randn(BATCH, QUERIES, query_width, dtype=torch.float64, requires_grad=True)
    values = torch.randn(BATCH, SOURCE, VALUE, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0, 1]], dtype=torch.bool)
    attention.compute_proj_keys(values)
    steps = [attention(query, mask[:, None, :], values) for query in queries.split(1, dim=1)]
    context, alignment = (torch.cat(parts, dim=1) for parts in zip(*steps, strict=True))
    cotangents = {"context": torch.randn_like(context), "alignment": torch.randn_like(alignment)}
    ((cotangents["context"] * context).sum() + (cotangents["alignment"] * alignment).sum()).backward()

    differentiated = {"queries": queries, "values": values}
    differentiated |= {f"weights/{key}": weight for key, weight in attention.named_parameters()}
    arrays = differentiated | {"mask": mask, "context": context, "alignment": alignment}
    arrays |= {f"cotangents/{key}": value for key, value in cotangents.items()}
    arrays |= {f"gradients/{key}": value.grad for key, value in differentiated.items()}
    return {f"{name}/{key}": value.detach().numpy() for key, value in arrays.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    arrays = case("bahdanau", BahdanauAttention(HIDDEN, VALUE, QUERY), QUERY)
    arrays |= case("luong", LuongAttention(HIDDEN, VALUE), HIDDEN)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)

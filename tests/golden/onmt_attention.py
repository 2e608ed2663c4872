"""Writes onmt_attention.npz: OpenNMT-py's GlobalAttention of every kind, with gradients, in float64.

Run with `python tests/golden/onmt_attention.py`; made with Python 3.11.7, OpenNMT-py 3.0.4, torch 2.13.0 (CPU),
numpy 2.4.6.

Cases `dot`, `general` (its linear_in acts on the query: W^T) and `mlp` (additive, a bias on the query's projection).
Arrays of a case, with sizes B 2, T 3, S 7, D 5 (queries, values, which are also the keys, and result):

    queries [B, T, D], values [B, S, D], lengths [B]
    attentional [B, T, D]: tanh(W_c [c; h]) (Luong 2015, eq. 5); `mlp` has W_c [c; h] + b, without tanh
    alignment [B, T, S]
    weights/NAME as OpenNMT-py has it: linear_out.weight [D, 2D]; general: linear_in.weight [D, D]; mlp:
        linear_context.weight, linear_query.weight [D, D], linear_query.bias [D], v.weight [1, D], linear_out.bias [D]
    cotangents/{attentional,alignment}: C in the loss sum(C * result)
    gradients/{queries,values,weights/NAME}: of that loss
"""

from pathlib import Path

import numpy as np
import torch
from onmt.modules.global_attention import GlobalAttention

BATCH, QUERIES, SOURCE, WIDTH = 2, 3, 7, 5


def case(kind: str) -> dict[str, np.ndarray]:
    attention = GlobalAttention(WIDTH, attn_type=kind).double()
    queries = torch.randn(BATCH, QUERIES, WIDTH, dtype=torch.float64, requires_grad=True)
    values = torch.randn(BATCH, SOURCE, WIDTH, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([4, 7])
    attentional, alignment = attention(queries, values, lengths)
    cotangents = {"attentional": torch.randn_like(attentional), "alignment": torch.randn_like(alignment)}
    ((cotangents["attentional"] * attentional).sum() + (cotangents["alignment"] * alignment).sum()).backward()

    differentiated = {"queries": queries, "values": values}
    differentiated |= {f"weights/{key}": weight for key, weight in attention.named_parameters()}
    arrays = differentiated | {"lengths": lengths.int(), "attentional": attentional, "alignment": alignment}
    arrays |= {f"cotangents/{key}": value for key, value in cotangents.items()}
    arrays |= {f"gradients/{key}": value.grad for key, value in differentiated.items()}
    return {f"{kind}/{key}": value.detach().numpy() for key, value in arrays.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = [case(kind) for kind in ("dot", "general", "mlp")]
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **{k: v for arrays in cases for k, v in arrays.items()})

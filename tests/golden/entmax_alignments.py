"""Writes entmax_alignments.npz: sparsemax and entmax-1.5 of the authors' package, with gradients, in float64.

Run with `python tests/golden/entmax_alignments.py`; made with Python 3.11.7, entmax 1.3, torch 2.13.0 (CPU) and
numpy 2.4.6.

Cases `sparsemax` and `entmax15`: the functions of that name. Arrays of a case, with sizes B 2, T 3, S 29:

    scores [B, T, S], of spread 0.1, 1 and 10 in the three rows, so that supports are wide and narrow
    mask [B, T, S], True = may attend; the first example has nothing hidden
    weights [B, T, S]: of the allowed scores alone, hidden ones being taken out before the call; zero where hidden
    cotangents [B, T, S]: C in the loss sum(C * weights)
    gradients [B, T, S]: of that loss by the scores
"""

from collections.abc import Callable
from pathlib import Path

import entmax
import numpy as np
import torch

BATCH, QUERIES, SOURCE = 2, 3, 29


def case(name: str, align: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, np.ndarray]:
    spread = torch.tensor([[0.1], [1.0], [10.0]], dtype=torch.float64)
    scores = (spread * torch.randn(BATCH, QUERIES, SOURCE, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(BATCH, QUERIES, SOURCE) < torch.tensor([1.0, 0.6])[:, None, None]
    weights = torch.zeros_like(scores)
    for b, t in np.ndindex(BATCH, QUERIES):
        weights[b, t, mask[b, t]] = align(scores[b, t, mask[b, t]])
    cotangents = torch.randn_like(weights)
    (cotangents * weights).sum().backward()
    arrays = {"scores": scores, "mask": mask, "weights": weights, "cotangents": cotangents, "gradients": scores.grad}
    return {f"{name}/{key}": value.detach().numpy() for key, value in arrays.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = [case("sparsemax", entmax.sparsemax), case("entmax15", entmax.entmax15)]
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **{k: v for arrays in cases for k, v in arrays.items()})

"""Writes torch_location.npz: location features from torch's Conv1d, with gradients, in float64.

Run with `python tests/golden/torch_location.py`; made with Python 3.11.7, torch 2.13.0 (CPU), numpy 2.4.6.

Cases: narrow (S 7, width 5), wide (S 7, width 11: filters longer than the source), long (S 149, width 7)
Arrays of a case, with sizes B 2, F 3:

    previous [B, S]: softmax of random scores
    weight [F, 1, R]: of Conv1d(1, F, R, padding=R // 2, bias=False)
    features [B, F, S]: its output for previous[:, None]
    cotangents/features: C in the loss sum(C * features)
    gradients/{previous,weight}: of that loss
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

BATCH, FILTERS = 2, 3
CASES = {"narrow": (7, 5), "wide": (7, 11), "long": (149, 7)}


def case(name: str, size: int, width: int) -> dict[str, np.ndarray]:
    convolution = nn.Conv1d(1, FILTERS, width, padding=width // 2, bias=False, dtype=torch.float64)
    previous = torch.randn(BATCH, size, dtype=torch.float64).softmax(-1).requires_grad_()
    features = convolution(previous[:, None])
    cotangents = torch.randn_like(features)
    (cotangents * features).sum().backward()
    arrays = {"previous": previous, "weight": convolution.weight, "features": features}
    arrays |= {"cotangents/features": cotangents}
    arrays |= {"gradients/previous": previous.grad, "gradients/weight": convolution.weight.grad}
    return {f"{name}/{key}": value.detach().numpy() for key, value in arrays.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = [case(name, *sizes) for name, sizes in CASES.items()]
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **{k: v for arrays in cases for k, v in arrays.items()})

"""Writes cross_entropy.npz: torch's cross_entropy with label smoothing and ignore_index, in float64.

Run with `python tests/golden/cross_entropy.py`; made with Python 3.11.7, torch 2.13.0 (CPU), numpy 2.4.6.

Arrays `torch/NAME`, with sizes B 3, T 5, N 7: logits [B, T, N], targets [B, T], 0 (the ignored index) in padding,
label_smoothing [3], losses [3] and gradients [3, B, T, N] of the logits, one for each smoothing.
"""

from pathlib import Path

import numpy as np
import torch

SMOOTHING = (0.0, 0.1, 0.37)


def main() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 5, 7, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([[3, 1, 6, 2, 5], [4, 2, 0, 0, 0], [1, 0, 0, 0, 0]])
    losses = [
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0, label_smoothing=s)
        for s in SMOOTHING
    ]
    arrays = {
        "logits": logits.detach().numpy(),
        "targets": targets.int().numpy(),
        "label_smoothing": np.array(SMOOTHING),
        "losses": torch.stack(losses).detach().numpy(),
        "gradients": torch.stack([torch.autograd.grad(loss, logits)[0] for loss in losses]).numpy(),
    }
    np.savez_compressed(
        Path(__file__).with_suffix(".npz"), **{f"torch/{name}": array for name, array in arrays.items()}
    )


if __name__ == "__main__":
    main()

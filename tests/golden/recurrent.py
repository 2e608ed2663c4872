"""Writes recurrent.npz: torch's nn.LSTM and nn.GRU, outputs, final states and gradients, in float64.

Run with `python tests/golden/recurrent.py`; made with Python 3.11.7, torch 2.13.0 (CPU), numpy 2.4.6.

Cases, KIND being `lstm` or `gru`: `KIND/plain` is one layer, one direction, every sequence S steps long;
`KIND/packed` is two layers, two directions, sequences of their own lengths, packed (and unsorted);
`KIND/encoder` is like that, but starts from zeros.
Arrays of a case, with sizes B 5, S 7, I 2, D 3; L layers (the directions of a layer side by side):

    inputs [B, S, I], lengths [B], initial_hidden [L, B, D], initial_memory [L, B, D] (LSTM only)
    outputs [B, S, D or 2D], zeros in padding; final_hidden, final_memory as the initial ones
    weights/NAME, NAME as torch has it: weight_ih_l0 [G, I], weight_hh_l0 [G, D], bias_ih_l0, bias_hh_l0 [G], with
        `_l1` for the second layer, `_reverse` for the second direction; gates i, f, g, o (LSTM) or r, z, n (GRU)
    cotangents/{outputs,final_hidden,final_memory}: C in the loss sum(C * result)
    gradients/{inputs,initial_hidden,initial_memory,weights/NAME}: of that loss
"""

from pathlib import Path

import numpy as np
import torch

BATCH, STEPS, INPUT, WIDTH = 5, 7, 2, 3
LENGTHS = {"plain": [7, 7, 7, 7, 7], "packed": [4, 7, 1, 6, 3], "encoder": [4, 7, 1, 6, 3]}
RESULTS = ("outputs", "final_hidden", "final_memory")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def run(layer: torch.nn.LSTM | torch.nn.GRU, inputs: torch.Tensor, lengths: list[int], states: list[torch.Tensor]):
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    outputs, finals = layer(packed, tuple(states) if len(states) > 1 else states[0])
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True, total_length=STEPS)
    return [outputs, *(finals if len(states) > 1 else [finals])]


def case(kind: str, packing: str) -> dict[str, np.ndarray]:
    layers = 1 if packing == "plain" else 2
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
    layer = make(INPUT, WIDTH, layers, batch_first=True, bidirectional=layers == 2).double()
    inputs, states = draw(BATCH, STEPS, INPUT), [draw(layers**2, BATCH, WIDTH) for _ in range(2 - (kind == "gru"))]
    if packing == "encoder":
        states = [torch.zeros_like(state, requires_grad=True) for state in states]
    results = run(layer, inputs, LENGTHS[packing], states)
    cotangents = [torch.randn_like(result) for result in results]
    sum((c * result).sum() for c, result in zip(cotangents, results, strict=True)).backward()

    differentiated = {"inputs": inputs, "initial_hidden": states[0]}
    differentiated |= {"initial_memory": states[1]} if kind == "lstm" else {}
    differentiated |= {f"weights/{name}": weight for name, weight in layer.named_parameters()}
    arrays = differentiated | dict(zip(RESULTS, results, strict=False))
    arrays |= {f"cotangents/{name}": c for name, c in zip(RESULTS, cotangents, strict=False)}
    arrays |= {f"gradients/{name}": value.grad for name, value in differentiated.items()}
    arrays |= {"lengths": torch.tensor(LENGTHS[packing], dtype=torch.int32)}
    return {f"{kind}/{packing}/{name}": value.detach().numpy() for name, value in arrays.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    cases = [case(kind, packing) for kind in ("lstm", "gru") for packing in LENGTHS]
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **{k: v for arrays in cases for k, v in arrays.items()})

"""Writes huggingface_positions.npz: what transformers' models do with positions.

Run with `python tests/golden/huggingface_positions.py`; made with Python 3.11.7, transformers 5.24.0, torch 2.13.0
(CPU), numpy 2.4.6.

Cases:
    buckets: T5Attention._relative_position_bucket of distances [521], -260 ... 260 (key - query). Arrays are named
        BUCKETS_MAXDISTANCE_{both,past}; both = bidirectional
    rotary: apply_rotary_pos_emb of modeling_llama, base 10000, float32: queries [B, H, T, D], keys [B, G, T, D],
        positions [B, T], turned_queries, turned_keys; B 2, H 3, G 1, T 5, D 14
    sinusoidal: MarianSinusoidalPositionalEmbedding: table [13, 22], sines first
    alibi: build_alibi_tensor of modeling_bloom, for 7 positions: heads8, heads12 [H, 7], which
        is the bias of the last query plus 6 slopes
"""

from pathlib import Path

import numpy as np
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

SETTINGS = [(32, 128), (32, 20), (8, 20), (64, 256)]


def buckets() -> dict[str, torch.Tensor]:
    distances = torch.arange(-260, 261)
    found = {"distances": distances}
    for number, largest in SETTINGS:
        for name, both in (("both", True), ("past", False)):
            found[f"{number}_{largest}_{name}"] = T5Attention._relative_position_bucket(
                distances, both, number, largest
            )
    return found


def rotary() -> dict[str, torch.Tensor]:
    queries, keys, positions = torch.randn(2, 3, 5, 14), torch.randn(2, 1, 5, 14), torch.randint(0, 97, (2, 5))
    angles = positions[..., None] * 10_000.0 ** (-torch.arange(0, 14, 2) / 14)
    angles = torch.cat([angles, angles], -1)
    turned = apply_rotary_pos_emb(queries, keys, angles.cos(), angles.sin())
    return {"queries": queries, "keys": keys, "positions": positions} | dict(
        zip(("turned_queries", "turned_keys"), turned, strict=True)
    )


def sinusoidal() -> dict[str, torch.Tensor]:
    return {"table": MarianSinusoidalPositionalEmbedding(13, 22).create_weight()}


def alibi() -> dict[str, torch.Tensor]:
    real = torch.ones(1, 7, dtype=torch.int64)
    return {f"heads{heads}": build_alibi_tensor(real, heads, torch.float32)[:, 0] for heads in (8, 12)}


if __name__ == "__main__":
    torch.manual_seed(0)
    arrays = {
        f"{f.__name__}/{k}": v.detach().numpy() for f in (buckets, rotary, sinusoidal, alibi) for k, v in f().items()
    }
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)

"""The heads of multi-head attention, side by side in one vector or apart: transposes that XLA:CPU is slow at.

It takes [B, T, H, D] to [B, H, T, D] number by number; a head's slice of all vectors it copies in runs of D numbers.
"""

import jax
import jax.numpy as jnp

from attention_zoo.functional.arrays import one_cpu
from attention_zoo.notation import Array, Float, checked


@checked
def split_heads(vectors: Float[Array, "*b T W"], heads: int) -> Float[jax.Array, "*b H T D"]:
    """`head_h = vectors[..., h D : (h + 1) D]` for H heads of width D = W / H.

    Raises:
        ValueError: W is not a multiple of H.
    """
    if heads < 1 or vectors.shape[-1] % heads:
        raise ValueError(f"vectors of {vectors.shape[-1]} numbers do not make {heads} heads of one width")
    vectors, width = jnp.asarray(vectors), vectors.shape[-1] // heads
    if _transposed(vectors.shape[-2]):
        return jnp.swapaxes(vectors.reshape(*vectors.shape[:-1], heads, width), -2, -3)
    parts = jax.lax.split(vectors, [width] * heads, axis=vectors.ndim - 1)
    return jnp.concatenate([part[..., None, :, :] for part in parts], axis=-3)


@checked
def join_heads(heads: Float[Array, "*b H T D"]) -> Float[jax.Array, "*b T W"]:
    """`concat(head_1, ..., head_H)` (Vaswani 2017, section 3.2.2), W = H D: takes back `split_heads`."""
    heads = jnp.asarray(heads)
    *lead, number, steps, width = heads.shape
    if _transposed(steps) or not number:
        return jnp.swapaxes(heads, -2, -3).reshape(*lead, steps, number * width)
    parts = jax.lax.split(heads, [1] * number, axis=heads.ndim - 3)
    return jnp.concatenate([jnp.squeeze(part, -3) for part in parts], axis=-1)


def _transposed(steps: int) -> bool:
    """Whether a transpose is as good: of one step it moves nothing, other compilers are quick at it, and what several
    devices share by heads stays where it is."""
    return steps == 1 or not one_cpu()

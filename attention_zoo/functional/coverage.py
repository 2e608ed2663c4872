"""What past alignments say to the next one: location features and coverage."""

import math

import jax
import jax.numpy as jnp

from attention_zoo.functional.products import product, project
from attention_zoo.notation import Array, Float, checked


@checked
def location_features(previous: Float[Array, "*b S"], filters: Float[Array, "R F"]) -> Float[Array, "*b S F"]:
    """Location features, `f_t = F * alpha_{t-1}` (Chorowski 2015, eq. 8): what the last alignment looked like nearby.

    `f_s = sum_r F_r alpha_{s + r - R // 2}`, with zeros around the source: torch's Conv1d, which does not flip the
    filters, with `weight = F^T` and padding R // 2.

    Args:
        previous: the alignment before, zero in padding, [..., S].
        filters: F filters of odd width R, [R, F].

    Raises:
        ValueError: the width is even: there would be no middle.

    >>> location_features(jnp.array([0.0, 1.0, 0.0, 0.0]), jnp.array([[2.0], [3.0], [5.0]]))[:, 0]
    Array([5., 3., 2., 0.], dtype=float32)
    """
    if filters.shape[0] % 2 == 0:
        raise ValueError(f"location_features: filters have an odd width; got {filters.shape[0]}")
    return product(_correlate, jnp.asarray(previous), filters, join=lambda steps: steps)


# Blocks of up to this many positions are one product with a banded matrix: on a CPU faster in a scan than products with
# copies of every neighbourhood, and than XLA's convolution.
_BLOCK = 64


def _correlate(previous: Array, filters: Array) -> jax.Array:
    """[..., S] and [R, F] to [..., S, F]: overlapping frames of the source times the filters at every shift."""
    (width, features), size = filters.shape, previous.shape[-1]
    block = max(width - 1, min(size, _BLOCK), 1)
    count = -(-size // block)
    around = (width // 2, (count + 1) * block - width // 2 - size)
    rows = previous.reshape(math.prod(previous.shape[:-1]), size)
    blocks = jnp.pad(rows, ((0, 0), around)).reshape(-1, count + 1, block)
    frames = jnp.concatenate([blocks[:, :-1], blocks[:, 1:, : width - 1]], axis=-1)  # [B, count, block + R - 1]
    found = frames.reshape(-1, block + width - 1) @ _banded(filters, block)
    return found.reshape(*previous.shape[:-1], count * block, features)[..., :size, :]


def _banded(filters: Array, block: int) -> jax.Array:
    """[block + R - 1, block F], with `F_{i - s}` at input i and output s."""
    width, features = filters.shape
    rows = jnp.broadcast_to(jnp.pad(filters, ((0, block), (0, 0))), (block, width + block, features))
    # Read in rows shorter by one, each row begins one place further to the left.
    shifted = rows.reshape(-1, features)[: block * (width + block - 1)].reshape(block, -1, features)
    return jnp.moveaxis(shifted, 0, 1).reshape(width + block - 1, block * features)


@checked
def coverage(
    previous: Float[Array, "*b S"], weights: Float[Array, "*b T S"]
) -> tuple[Float[Array, "*b T S"], Float[Array, "*b S"]]:
    """Coverage, `c_t = sum_{t' < t} alpha_t'` (See 2017, eq. 10): how much each position has been looked at before.

    Tu 2016's linguistic coverage is this over `fertility`.

    Args:
        previous: the coverage after earlier steps, zeros at first, [..., S]. Keep it in float32: small weights
            are lost in a narrower sum.
        weights: alignments, [..., T, S].

    Returns:
        the coverage before each of the T steps [..., T, S], and after the last [..., S], in the dtype of `previous`.

    >>> coverage(jnp.zeros(2), jnp.array([[0.5, 0.5], [1.0, 0.0]]))
    (Array([[0. , 0. ],
           [0.5, 0.5]], dtype=float32), Array([1.5, 0.5], dtype=float32))
    """
    previous = jnp.asarray(previous)
    wide = jnp.promote_types(previous.dtype, jnp.float32)
    steps = jnp.concatenate([previous.astype(wide)[..., None, :], weights.astype(wide)], axis=-2)
    sums = jnp.cumsum(steps, axis=-2).astype(previous.dtype)
    return sums[..., :-1, :], sums[..., -1, :]


@checked
def fertility(annotations: Float[Array, "*b S V"], weight: Float[Array, " V"], largest: float) -> Float[Array, "*b S"]:
    """Fertility, `Phi_s = N sigmoid(U_f h_s)` (Tu 2016): how much each source position is expected to be looked at.

    Args:
        annotations: h_s, [..., S, V]. weight: `U_f`, [V]. largest: N, in the authors' code 2.

    Returns:
        Phi [..., S], between 0 and N, in float32 at least.
    """
    wide = jnp.promote_types(annotations.dtype, jnp.float32)
    return largest * jax.nn.sigmoid(project(annotations.astype(wide), weight.astype(wide)[:, None])[..., 0])

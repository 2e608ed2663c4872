"""Where a query or key stands: vectors to add, rotations, and biases of the scores that know only the distance.

A bias is a function `(query positions [..., t], key positions [..., s]) -> [..., H, t, s]`, so that an attention
that goes through its queries a chunk at a time never needs the whole of it.
"""

import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from attention_zoo.functional.masks import same_rank
from attention_zoo.notation import Array, Float, Int, checked

Bias = Callable[[Array, Array], jax.Array]


@checked
def sinusoidal(
    positions: Int[Array, "*b T"],
    width: int,
    *,
    interleaved: bool = True,
    longest: float = 10_000.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "*b T D"]:
    """Sinusoidal positions, `PE(p, 2i) = sin(p / L^(2i/D)), PE(p, 2i+1) = cos(...)` (Vaswani 2017, section 3.5).

    Args:
        positions: p, [..., T].
        width: D, even.
        interleaved: False puts all sines before all cosines, as Marian does. (So does tensor2tensor, whose
            exponents are i/(D/2 - 1): its last wave is L times the first.)
        longest: L; the waves are 2 pi L^(2i/D) positions long.
        dtype: of the result; angles are float32 at least.

    Returns:
        vectors [..., T, D].

    Raises:
        ValueError: the width is not even, or not above zero.

    >>> sinusoidal(jnp.array([0]), 4)
    Array([[0., 1., 0., 1.]], dtype=float32)
    """
    _check_width("sinusoidal", width, multiple=2)
    angles = _angles(positions, width, longest, dtype)
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1 if interleaved else -2)
    return waves.reshape(*angles.shape[:-1], width).astype(dtype)


@checked
def sinusoidal_2d(
    rows: int,
    columns: int,
    width: int,
    *,
    longest: float = 10_000.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "S D"]:
    """Sinusoidal positions of a grid, row by row: the row's vector, then the column's (Parmar 2018, section 3.2).

    Args:
        rows, columns: of the grid; the cell (r, c) stands at s = r columns + c.
        width: D, a multiple of 4: half for each axis, each half as `sinusoidal` makes it.
        longest, dtype: as in `sinusoidal`.

    Returns:
        vectors [rows columns, D].

    Raises:
        ValueError: the width is not a multiple of 4, or not above zero.
    """
    _check_width("sinusoidal_2d", width, multiple=4)
    halves = [sinusoidal(jnp.arange(size), width // 2, longest=longest, dtype=dtype) for size in (rows, columns)]
    shape = (rows, columns, width // 2)
    grid = [jnp.broadcast_to(halves[0][:, None], shape), jnp.broadcast_to(halves[1][None], shape)]
    return jnp.concatenate(grid, -1).reshape(rows * columns, width)


@checked
def rotary(
    vectors: Float[Array, "*b T D"],
    positions: Int[Array, "*#b T"],
    *,
    base: float = 10_000.0,
    interleaved: bool = False,
) -> Float[Array, "*b T D"]:
    """Rotary positions: pair i of q or k is turned by the angle `p base^(-2i/D)` (Su 2021, eq. 34).

    The product of a query at m and a key at n then depends on m - n alone. Angles are float32 at least.

    Args:
        vectors: queries or keys, such as [B, H, T, D]; D even.
        positions: p, [..., T]; leading axes broadcast: [T], or [B, 1, T] where each row has its own.
        base: 10000 in the paper.
        interleaved: pairs are features (2i, 2i + 1), as in the paper; by default (i, i + D/2), as in GPT-NeoX, Llama
            and Hugging Face. Weights trained with the one do not fit the other.

    Returns:
        turned vectors [..., T, D], in the dtype of `vectors`.

    Raises:
        ValueError: the width is not even, or not above zero.
    """
    vectors, width = jnp.asarray(vectors), vectors.shape[-1]
    _check_width("rotary", width, multiple=2)
    pairs = vectors.reshape(*vectors.shape[:-1], *((width // 2, 2) if interleaved else (2, width // 2)))
    axis = -1 if interleaved else -2
    angles = _angles(positions, width, base, vectors.dtype)
    first, second, angles = same_rank(*jnp.unstack(pairs, axis=axis), angles)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis)
    return turned.reshape(vectors.shape).astype(vectors.dtype)


@checked
def alibi_slopes(heads: int) -> Float[Array, " H"]:
    """Slopes of ALiBi, `2^(-8 h / H)` for h = 1 ... H where H is a power of two (Press 2022, section 3).

    Otherwise the slopes of the next smaller power of two P, then every second one of 2 P, as in the authors' code.

    Raises:
        ValueError: there is not even one head.

    >>> alibi_slopes(3)
    Array([0.0625    , 0.00390625, 0.25      ], dtype=float32)
    """
    if heads < 1:
        raise ValueError(f"alibi_slopes: heads is at least 1; got {heads}")
    power = 1 << (heads.bit_length() - 1)
    whole, between = np.arange(1, power + 1) / power, np.arange(1, 2 * power, 2) / (2 * power)
    return jnp.asarray(2.0 ** (-8 * np.concatenate([whole, between[: heads - power]])), jnp.float32)


def alibi(heads: int) -> Bias:
    """ALiBi, the bias `-slope_h |t - s|` (Press 2022, section 3); under a causal mask that is the paper's.

    >>> alibi(8)(jnp.arange(3), jnp.arange(3))[0]
    Array([[-0. , -0.5, -1. ],
           [-0.5, -0. , -0.5],
           [-1. , -0.5, -0. ]], dtype=float32)
    """
    slopes = alibi_slopes(heads)

    @checked
    def bias(queries: Int[Array, "*#b T"], keys: Int[Array, "*#b S"]) -> Float[Array, "*b H T S"]:
        distance, slope = same_rank(jnp.abs(_distance(queries, keys))[..., None, :, :], slopes[:, None, None])
        return -slope * distance

    return bias


@checked
def relative_buckets(
    distance: Int[Array, "*b"], *, buckets: int = 32, max_distance: int = 128, bidirectional: bool
) -> Int[Array, "*b"]:
    """Buckets of T5's relative positions: one a distance up to half of them, then ever wider (Raffel 2020, 2.1).

    With n buckets a direction and m = n // 2, a distance d falls into bucket d below m, above it into
    `min(n - 1, m + floor((n - m) log(d / m) / log(max_distance / m)))`.

    Args:
        distance: position of the key - position of the query, [...].
        buckets: their number, of both directions together.
        max_distance: all that is as far or farther shares the last bucket.
        bidirectional: True: the upper half of the buckets is for keys after the query. False: they share bucket 0.

    Raises:
        ValueError: too few buckets, an odd number for two directions, or a max_distance that leaves no room for them.
    """
    table = _bucket_of_distance(buckets // 2 if bidirectional else buckets, max_distance)
    if bidirectional and buckets % 2:
        raise ValueError(f"relative_buckets: an even number of buckets serves two directions; got {buckets}")
    distance = jnp.asarray(distance)
    behind = jnp.abs(distance) if bidirectional else -jnp.minimum(distance, 0)
    near = jnp.asarray(table, jnp.int32)[jnp.minimum(behind, max_distance)]
    return near + jnp.where(distance > 0, buckets // 2, 0) if bidirectional else near


def relative(table: Float[Array, "N H"], *, max_distance: int = 128, bidirectional: bool) -> Bias:
    """T5's relative bias, `table[bucket(s - t), h]` (Raffel 2020, section 2.1): its gradient reaches the table.

    The function is a pytree, so that it may go through `jax.checkpoint` and `lax.scan` as an argument.
    """
    return Partial(_reader(max_distance, bidirectional), table)


@cache  # one function for equal sizes: what is compiled for a pytree is found again by its functions
def _reader(max_distance: int, bidirectional: bool) -> Callable[..., jax.Array]:
    @checked
    def bias(
        table: Float[Array, "N H"], queries: Int[Array, "*#b T"], keys: Int[Array, "*#b S"]
    ) -> Float[Array, "*b H T S"]:
        distance, buckets = _distance(queries, keys), len(table)
        bucket = relative_buckets(distance, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional)
        return jnp.moveaxis(jnp.asarray(table).T[:, bucket], 0, -3)

    return bias


def _check_width(function: str, width: int, multiple: int) -> None:
    if width < 1 or width % multiple:
        raise ValueError(f"{function}: the width is a multiple of {multiple}, above zero; got {width}")


def _angles(positions: Array, width: int, longest: float, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Angles `p longest^(-2i/D)`, [..., T, D/2]. The powers are taken once, on the host, in float64."""
    wide = jnp.promote_types(dtype, jnp.float32)
    frequencies = jnp.asarray(longest ** (-np.arange(0, width, 2) / width), wide)
    return jnp.asarray(positions).astype(wide)[..., None] * frequencies.reshape((1,) * positions.ndim + (-1,))


def _distance(queries: Array, keys: Array) -> jax.Array:
    """Position of the key - position of the query, [..., t, s]."""
    queries, keys = same_rank(jnp.asarray(queries), jnp.asarray(keys))
    return keys[..., None, :] - queries[..., :, None]


def _bucket_of_distance(buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of every distance 0 ... max_distance, counted by edges: a logarithm on the device would round."""
    exact = buckets // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            "relative_buckets: at least 2 buckets a direction, and a max_distance above half their number; "
            f"got {buckets} a direction and max_distance {max_distance}"
        )
    steps = np.arange(1, buckets - exact) / (buckets - exact)
    # An edge that is a whole number must not be rounded up past it.
    wider = np.ceil(exact * np.exp(steps * math.log(max_distance / exact)) - 1e-6)
    edges = np.concatenate([np.arange(1, exact + 1), wider])
    return np.searchsorted(edges, np.arange(max_distance + 1), side="right")

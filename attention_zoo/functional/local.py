"""Local alignments: attention inside a window around a centre p_t, over all scores or over the window's alone.

A window of half-width D holds the source positions in [p_t - D, p_t + D], which are at most 2D + 1 (Luong 2015,
section 3.2). What of it hangs over either end of the source is ignored.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.attend import read
from attention_zoo.functional.masks import combine
from attention_zoo.functional.products import project
from attention_zoo.notation import Array, Bool, Float, Int, Shaped, checked


@checked
def local_m(
    scores: Float[Array, "*b T S"],
    mask: Bool[Array, "*#b #T S"] | None,
    centers: Float[Array, "*#b T"] | Int[Array, "*#b T"],
    *,
    window: int,
) -> Float[Array, "*b T S"]:
    """Local alignment, the softmax over the window alone; local-m has `p_t = t` (Luong 2015, section 3.2).

    A row whose window holds no position that may be attended to has zero weights and zero gradient. So has, with
    `p_t = t`, a target that runs on past `S + D`: the authors' code then keeps `p_t` at the last real position.

    Args:
        scores: [..., T, S]; those outside the window may be anything, as masked ones may.
        mask: True = may attend; broadcasts against `scores`.
        centers: p_t, whole or not, [..., T]; they get no gradient.
        window: D; 0 leaves the centre alone (and nothing at all, if it is not whole).

    Raises:
        ValueError: the window is negative.

    >>> local_m(jnp.zeros((3, 4)), None, jnp.arange(3), window=1)
    Array([[0.5       , 0.5       , 0.        , 0.        ],
           [0.33333334, 0.33333334, 0.33333334, 0.        ],
           [0.        , 0.33333334, 0.33333334, 0.33333334]], dtype=float32)
    """
    _check_window("local_m", window, least=0)
    return softmax(scores, combine(mask, _distance(scores, centers, window)[1]))


@checked
def local_p(
    scores: Float[Array, "*b T S"],
    mask: Bool[Array, "*#b #T S"] | None,
    centers: Float[Array, "*#b T"] | Int[Array, "*#b T"],
    *,
    window: int,
    renormalise: bool = False,
) -> Float[Array, "*b T S"]:
    """Predictive local alignment, `softmax(e_t)_s exp(-(s - p_t)^2 / (2 sigma^2))`, sigma = D/2 (Luong 2015, eq. 10).

    The softmax is over the window. The Gaussian's gradient reaches the centres; the window's edges have none.

    Args:
        scores, mask: as in `local_m`.
        centers: p_t, from `predicted_centers` for instance, [..., T].
        window: D, at least 1.
        renormalise: divide by the sum of the row. The authors' code does not, so a row sums to at most one.

    Raises:
        ValueError: the window is below 1, where sigma would be 0.
    """
    _check_window("local_p", window, least=1)
    scores = jnp.asarray(scores)
    distance, inside = _distance(scores, centers, window)
    wide, allowed = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), combine(mask, inside)
    # 2 sigma^2 = D^2 / 2. Inside the window the Gaussian is e^-2 at least: nothing that counts can underflow.
    exponent = -2 * jnp.square(distance / window)
    weights = softmax(wide, allowed) * jnp.exp(exponent)
    if renormalise:  # not softmax(e + g), which would round g away where e is large
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights / jnp.where(total == 0, 1, total)
    return weights.astype(scores.dtype)


@checked
def predicted_centers(
    queries: Float[Array, "*b T Q"],
    weight: Float[Array, "Q U"],
    energy: Float[Array, " U"],
    lengths: Int[Array, "*b"],
) -> Float[Array, "*b T"]:
    """Centres of predicted windows, `p_t = S sigmoid(v_p^T tanh(W_p h_t))` (Luong 2015, section 3.2), as it stands.

    So 0 <= p_t <= S though the last position is S - 1; with D >= 1 the window still holds a real position. (The
    authors' code multiplies by S - 1 instead.)

    Args:
        queries: h_t, [..., T, Q].
        weight, energy: `W_p` [Q, U] and `v_p` [U].
        lengths: S, the number of real positions, [...]: padding does not move the centres.

    Returns:
        p_t [..., T], in float32 at least: a bfloat16 knows no odd position above 256.
    """
    hidden = jnp.tanh(project(queries, weight))
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    share = jax.nn.sigmoid(project(hidden.astype(wide), energy.astype(wide)[:, None])[..., 0])
    return jnp.asarray(lengths).astype(wide)[..., None] * share


@checked
def local_attend(
    queries: Float[Array, "*b T Q"],
    keys: Float[Array, "*b S K"],
    values: Float[Array, "*b S V"],
    mask: Bool[Array, "*#b #T S"] | None,
    centers: Float[Array, "*b T"] | Int[Array, "*b T"],
    *,
    score: Callable[[Array, Array], Array],
    window: int,
    align: Callable[..., Array] = local_p,
) -> tuple[Float[Array, "*b T V"], Float[Array, "*b T S"]]:
    """Local attention that reads the windows alone: the arithmetic of the context does not grow with S.

    Equal to `align(score(queries, keys), mask, centers, window=window)` and its reading, to rounding. Keys and
    values are copied for each query, [..., T, 2D + 1, K]: made for decoding, where T is 1.

    Args:
        queries, keys, values, mask: as in `attend`.
        centers: p_t, [..., T].
        score: `(queries [..., T, 1, Q], keys [..., T, 2D + 1, K]) -> [..., T, 1, 2D + 1]`. It must look at the keys,
            not at their positions, which are those in the window: `scores.location` would be wrong.
        window: D.
        align: `local_m`, `local_p` or `partial(local_p, renormalise=True)`.

    Returns:
        context [..., T, V], and the weights put back into place, [..., T, S].

    Raises:
        ValueError: the window is negative, or below what `align` takes.
    """
    size, starts = keys.shape[-2], window_starts(centers, keys.shape[-2], window=window)
    allowed = jnp.broadcast_to(True if mask is None else mask, (*starts.shape, size))
    # Positions past the end, where the source is shorter than a window, read False.
    allowed = take_window(allowed[..., None], starts[..., None], 2 * window + 1)[..., 0, :, 0]
    scores = score(queries[..., None, :], take_window(keys, starts, 2 * window + 1))[..., 0, :]
    # The same alignment, in coordinates that begin with the window.
    weights = align(scores, allowed, _wide(centers) - starts, window=window)
    context = read(weights[..., None, :], take_window(values, starts, 2 * window + 1))[..., 0, :]
    return context, put_window(weights, starts, size)


@checked
def window_starts(centers: Float[Array, "*b T"] | Int[Array, "*b T"], size: int, *, window: int) -> Int[Array, "*b T"]:
    """Where slices of 2D + 1 positions start that hold every source position inside the windows.

    They do not hang over the source's ends, unless it is shorter than a slice: then they start at 0. So a slice may
    hold positions outside the window.

    Args:
        centers: p_t, [..., T]. size: S. window: D.

    Raises:
        ValueError: the window is negative.

    >>> window_starts(jnp.array([-3.0, 4.2, 7.0]), 8, window=2)
    Array([0, 3, 3], dtype=int32)
    """
    _check_window("window_starts", window, least=0)
    first = jnp.ceil(_wide(centers)) - window
    return jnp.clip(first, 0, max(size - 2 * window - 1, 0)).astype(jnp.int32)


@checked
def take_window(
    array: Shaped[Array, "*b S K"], starts: Int[Array, "*b T"], size: int
) -> Shaped[Array, "*b T {size} K"]:
    """Slices of `size` positions, one for each start (0 or more); past the array's end they hold zeros or False."""
    positions = jnp.asarray(starts)[..., None] + _range(size, starts.ndim + 1)
    flat = positions.reshape(*starts.shape[:-1], starts.shape[-1] * size, 1)
    taken = jnp.take_along_axis(array, flat, axis=-2, mode="fill", fill_value=0)
    return taken.reshape(*positions.shape, array.shape[-1])


@checked
def put_window(weights: Float[Array, "*b T W"], starts: Int[Array, "*b T"], size: int) -> Float[Array, "*b T {size}"]:
    """Puts slices of weights back to where they start, among `size` positions; what lies beyond these is dropped.

    >>> put_window(jnp.array([[0.25, 0.75]]), jnp.array([1]), 4)
    Array([[0.  , 0.25, 0.75, 0.  ]], dtype=float32)
    """
    # Every position looks up its weight: a scatter would have to deal with what hangs over.
    offsets = _range(size, starts.ndim + 1) - jnp.asarray(starts)[..., None]
    inside = (offsets >= 0) & (offsets < weights.shape[-1])
    return jnp.where(inside, jnp.take_along_axis(weights, jnp.where(inside, offsets, 0), axis=-1), 0)


def _distance(scores: Array, centers: Array, window: int) -> tuple[jax.Array, jax.Array]:
    """`s - p_t` (0 outside the window) and whether s is inside, with as many axes as the scores."""
    centers = _wide(centers)[..., None]
    centers = jnp.expand_dims(centers, tuple(range(scores.ndim - centers.ndim)))
    positions = _range(scores.shape[-1], scores.ndim).astype(centers.dtype)
    # D is whole, so these bounds are exact, also in a slice's coordinates; those of p_t -+ D would be rounded.
    inside = (jnp.ceil(centers) - window <= positions) & (positions <= jnp.floor(centers) + window)
    return jnp.where(inside, positions - centers, 0), inside


def _wide(centers: Array) -> jax.Array:
    """Positions as floats of 32 bits at least: whole numbers up to 2^24 are exact."""
    centers = jnp.asarray(centers)
    return centers.astype(jnp.promote_types(centers.dtype, jnp.float32))


def _range(size: int, axes: int) -> jax.Array:
    return jnp.arange(size, dtype=jnp.int32).reshape((1,) * (axes - 1) + (size,))


def _check_window(function: str, window: int, least: int) -> None:
    if window < least:
        raise ValueError(f"{function}: window is a half-width of at least {least} positions; got {window}")

"""Masks: boolean, True = may attend; they broadcast against scores [..., T, S]."""

import jax.numpy as jnp

from attention_zoo.notation import Array, Bool, Int, Shaped, checked


@checked
def within(lengths: Int[Array, "*b"], size: int) -> Bool[Array, "*b S"]:
    """Which of `size` positions are real: True at s < length.

    >>> within(jnp.array([2, 0]), 3)
    Array([[ True,  True, False],
           [False, False, False]], dtype=bool)
    """
    positions = jnp.arange(size).reshape((1,) * lengths.ndim + (size,))
    return positions < jnp.expand_dims(lengths, -1)


@checked
def alive(lengths: Int[Array, "*b"] | None, steps: int) -> Bool[Array, "S *b"] | None:
    """Which sequences have not ended, step by step: True at s < length, time first; None where no length is given.

    >>> alive(jnp.array([2, 0]), 3).tolist()
    [[True, False], [True, False], [False, False]]
    """
    return None if lengths is None else jnp.moveaxis(within(lengths, steps), -1, 0)


@checked
def padding(lengths: Int[Array, "*b"], size: int) -> Bool[Array, "*b 1 S"]:
    """Hides padding from every query: True at source positions s < length, [..., 1, S]."""
    return within(lengths, size)[..., None, :]


@checked
def causal(queries: int, keys: int, offset: int | Int[Array, ""] = 0) -> Bool[Array, "T S"]:
    """Hides the future: query t, standing at position t + offset, sees keys s <= t + offset."""
    return jnp.arange(keys)[None, :] <= jnp.arange(queries)[:, None] + offset


@checked
def window(queries: int, keys: int, left: int, right: int, offset: int | Int[Array, ""] = 0) -> Bool[Array, "T S"]:
    """Keeps a band: query t, standing at position p = t + offset, sees keys p - left <= s <= p + right."""
    distance = jnp.arange(keys)[None, :] - jnp.arange(queries)[:, None] - offset
    return (-left <= distance) & (distance <= right)


@checked
def segments(queries: Int[Array, "*#b T"], keys: Int[Array, "*#b S"]) -> Bool[Array, "*b T S"]:
    """Isolates packed sequences: True where query and key carry the same segment number; 0 marks padding."""
    return (queries[..., :, None] == keys[..., None, :]) & (keys[..., None, :] != 0)


@checked
def reach(mask: Bool[Array, "*b T"]) -> Int[Array, "*b"]:
    """How far each row goes up to its last True: what a causal network has to read for the positions of a mask.

    >>> reach(jnp.array([[True, False, True, False], [False, False, False, False]]))
    Array([3, 0], dtype=int32)
    """
    positions = jnp.arange(1, mask.shape[-1] + 1, dtype=jnp.int32).reshape((1,) * (mask.ndim - 1) + (-1,))
    return jnp.max(jnp.where(mask, positions, 0), axis=-1, initial=0)


def combine(*masks: Bool[Array, "..."] | None) -> Bool[Array, "..."] | None:
    """Allows what every mask allows; None allows everything, and so does no mask at all.

    Raises:
        TypeError: a mask is not boolean (an additive mask of 0 and -inf would be silently wrong).
    """
    combined = None
    for mask in masks:
        if mask is not None and mask.dtype != jnp.bool_:
            raise TypeError(f"combine: masks are boolean, True = may attend; got {mask.dtype}")
        if mask is not None:
            combined = mask if combined is None else jnp.logical_and(*same_rank(combined, mask))
    return combined


def same_rank(*arrays: Shaped[Array, "..."]) -> list[Shaped[Array, "..."]]:
    """Gives arrays equal numbers of axes, by leading ones: they may then broadcast where rank promotion is refused."""
    rank = max(array.ndim for array in arrays)
    return [jnp.expand_dims(array, tuple(range(rank - array.ndim))) for array in arrays]

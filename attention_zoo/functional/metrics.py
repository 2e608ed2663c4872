"""Metrics: token and sequence accuracy, edit distance, and the quality of alignments.

Every share has a divisor of at least one, so that where nothing is counted it is zero and never NaN. All are float32.
"""

import jax
import jax.numpy as jnp
from jax import lax

from attention_zoo.functional.arrays import varying
from attention_zoo.functional.masks import within
from attention_zoo.notation import Array, Bool, Float, Int, checked


@checked
def token_accuracy(
    predicted: Int[Array, "*b T"], targets: Int[Array, "*b T"], mask: Bool[Array, "*b T"]
) -> Float[Array, ""]:
    """The share of the tokens that `mask` counts in which `predicted` is the target; 0 where none is counted."""
    return _share((predicted == targets) & mask, mask)


@checked
def sequence_accuracy(
    predicted: Int[Array, "*b T"], targets: Int[Array, "*b T"], mask: Bool[Array, "*b T"]
) -> Float[Array, ""]:
    """The share of sequences right in every token that `mask` counts (exact match, if it counts END as well).

    Sequences of which no token is counted (filler rows) are left out; 0 where none is left.
    """
    return _share(jnp.all((predicted == targets) | ~mask, axis=-1) & jnp.any(mask, axis=-1), jnp.any(mask, axis=-1))


@checked
def edit_distance(
    a: Int[Array, "*b M"], a_length: Int[Array, "*b"], b: Int[Array, "*b O"], b_length: Int[Array, "*b"]
) -> Int[Array, "*b"]:
    """The least number of insertions, deletions and substitutions that turn sequence a into b (Levenshtein 1966).

    The rows of Wagner and Fischer's table (1974), `d_ij = min(d_i-1,j + 1, d_i,j-1 + 1, d_i-1,j-1 + [a_i != b_j])`.

    Args:
        a, b: symbols [..., M] and [..., O]; what lies beyond the lengths plays no part.
        a_length, b_length: their lengths, [...].

    Returns:
        distances, int32 [...].

    >>> edit_distance(jnp.array([1, 2, 3]), jnp.array(3), jnp.array([2, 3, 4, 9]), jnp.array(3))
    Array(2, dtype=int32)
    """
    columns = jnp.broadcast_to(jnp.arange(b.shape[-1] + 1, dtype=jnp.int32), (*b.shape[:-1], b.shape[-1] + 1))

    def row(above: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        symbol, inside = at  # [...], [...]
        diagonal = above[..., :-1] + (symbol[..., None] != b)
        best = jnp.concatenate([above[..., :1] + 1, jnp.minimum(above[..., 1:] + 1, diagonal)], axis=-1)
        # d_ij = min over j' <= j of best_ij' + (j - j'): the insertions along a row are one cumulative minimum.
        best = lax.cummin(best - columns, axis=best.ndim - 1) + columns
        return jnp.where(inside[..., None], best, above), None

    rows = jnp.moveaxis(a, -1, 0), jnp.moveaxis(within(a_length, a.shape[-1]), -1, 0)
    columns, rows, b = varying(columns, rows, b)
    last, _ = lax.scan(row, columns, rows)
    return jnp.take_along_axis(last, jnp.asarray(b_length)[..., None], axis=-1)[..., 0]


@checked
def error_rate(
    predicted: Int[Array, "*b M"],
    predicted_length: Int[Array, "*b"],
    references: Int[Array, "*b O"],
    reference_length: Int[Array, "*b"],
) -> Float[Array, ""]:
    """The sum of edit distances divided by the sum of reference lengths (by 1, if there is no reference symbol).

    Rows to be left out (filler) have both lengths 0. It exceeds 1 where the predictions are much too long.
    """
    distance = jnp.sum(edit_distance(predicted, predicted_length, references, reference_length))
    return distance.astype(jnp.float32) / jnp.maximum(jnp.sum(reference_length), 1)


@checked
def alignment_accuracy(
    weights: Float[Array, "*b T S"], spans: Int[Array, "*b T 2"], mask: Bool[Array, "*b T"] | None = None
) -> Float[Array, ""]:
    """The share of target positions whose strongest source position lies inside their gold span.

    Args:
        weights: the alignment, [..., T, S]; of equal weights the first counts, and a row of zeros is a miss.
        spans: the source positions [start, end) that each target position is written from, [..., T, 2]; positions
            without one (end <= start) are left out.
        mask: True = count; [..., T]. None counts all that have a span.

    Returns:
        a share in [0, 1]; 0 where no position is counted.
    """
    start, end = spans[..., 0], spans[..., 1]
    strongest = jnp.argmax(weights, axis=-1)
    hit = (start <= strongest) & (strongest < end) & (jnp.max(weights, axis=-1) > 0)
    counted = end > start if mask is None else (end > start) & mask
    return _share(hit & counted, counted)


@checked
def pointing_accuracy(
    weights: Float[Array, "*b T S"],
    boxes: Float[Array, "*b T 4"],
    grid: tuple[int, int],
    picture: tuple[int, int],
    mask: Bool[Array, "*b T"] | None = None,
    margin: float = 0.0,
) -> Float[Array, ""]:
    """The share of words whose strongest cell of a picture lies in the box of what they name.

    Args:
        weights: the alignment over the grid's cells, row by row, [..., T, S]; of equal weights the first counts, and a
            row of zeros is a miss.
        boxes: (top, left, bottom, right) in pixels, [..., T, 4]; words without one (bottom <= top) are left out.
        grid: rows and columns of the cells. picture: height and width, in pixels; a cell counts by its centre.
        mask: True = count; [..., T]. None counts all that have a box.
        margin: by how many pixels every box is widened on each side.

    Returns:
        a share in [0, 1]; 0 where no word is counted.
    """
    strongest = jnp.argmax(weights, axis=-1)
    places = jnp.stack([strongest // grid[1], strongest % grid[1]], -1)
    sides = jnp.array(picture, jnp.float32) / jnp.array(grid, jnp.float32)
    centres = (places + 0.5) * sides.reshape((1,) * strongest.ndim + (2,))
    inside = (boxes[..., :2] - margin <= centres) & (centres < boxes[..., 2:] + margin)
    hit = jnp.all(inside, -1) & (jnp.max(weights, axis=-1) > 0)
    has_box = boxes[..., 2] > boxes[..., 0]
    counted = has_box if mask is None else has_box & mask
    return _share(hit & counted, counted)


@checked
def map_distance(weights: Float[Array, "*b T S"], mask: Bool[Array, "*b T"] | None = None) -> Float[Array, ""]:
    """How far the maps of successive words are apart, the mean of `sum_s |alpha_ts - alpha_{t-1,s}| / 2`.

    Args:
        weights: the alignment, [..., T, S]. mask: True = a real word, [..., T]; a pair counts if both are.

    Returns:
        0 (every word has the map of the one before) to 1 (they share no location); 0 where there is no pair.
    """
    weights = jnp.asarray(weights, jnp.float32)
    distances = jnp.sum(jnp.abs(weights[..., 1:, :] - weights[..., :-1, :]), -1) / 2
    counted = jnp.ones(distances.shape, bool) if mask is None else mask[..., 1:] & mask[..., :-1]
    return jnp.sum(distances, where=counted) / jnp.maximum(jnp.sum(counted), 1)


@checked
def alignment_error_rate(
    predicted: Bool[Array, "*b T S"], sure: Bool[Array, "*b T S"], possible: Bool[Array, "*b T S"]
) -> Float[Array, ""]:
    """AER, `1 - (|A & S| + |A & P|) / (|A| + |S|)` over all examples (Och and Ney 2003).

    Args:
        predicted: A, the links proposed, [..., T, S]: for instance the strongest source position of each target.
        sure: S, links that must be found. Links of padding must be False here and in A.
        possible: P, links that may be found; sure links are possible ones, whether marked here or not.

    Returns:
        an error in [0, 1]; 0 where nothing is proposed and nothing is sure.
    """
    found = jnp.sum(predicted & sure) + jnp.sum(predicted & (possible | sure))
    total = jnp.sum(predicted) + jnp.sum(sure)
    return (total - found).astype(jnp.float32) / jnp.maximum(total, 1)


@checked
def alignment_entropy(weights: Float[Array, "*b T S"], mask: Bool[Array, "*b T"] | None = None) -> Float[Array, ""]:
    """The mean entropy of alignment rows in nats, `H = -sum_s p_s log p_s` with `p = weights / sum weights`.

    Args:
        weights: not negative, [..., T, S]; rows of zeros, which look nowhere, are left out.
        mask: True = count; [..., T]. None counts all other rows.

    Returns:
        0 (every row looks at one position) to log S (at all alike); 0 where no row is counted.
    """
    weights = jnp.asarray(weights, jnp.float32)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    shares = weights / jnp.where(total > 0, total, 1)
    # Two wheres, for 0 log 0 is 0 and so is its gradient.
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0), axis=-1)
    counted = total[..., 0] > 0 if mask is None else (total[..., 0] > 0) & mask
    return jnp.sum(jnp.where(counted, entropy, 0)) / jnp.maximum(jnp.sum(counted), 1)


def _share(hits: Array, counted: Array) -> jax.Array:
    """How many of the counted are hits, over how many are counted (over 1, if none is)."""
    return jnp.sum(hits).astype(jnp.float32) / jnp.maximum(jnp.sum(counted), 1)

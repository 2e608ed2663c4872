"""How much of `chunked` attention is worked on at a time: chunks of queries, loops over them, blocks of heads."""

import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.functional.arrays import cores
from attention_zoo.functional.tiles import Call

_CHUNK = 256  # queries at a time
# On a CPU less of them, where each sees only a window: fewer keys are computed that none of them sees. More, where all
# keys are computed for all.
_CHUNK_OF_WINDOW, _CHUNK_OF_ALL = 64, 512
_THIN = 160  # queries, for which leaving out keys that come later is not worth two chunks of thinner products
# Scores of a block going forward: XLA:CPU keeps few of them at a time, but wants many rows to share out.
FORWARD = 2**21
_ALONE = 2**19  # scores of a head in a chunk that a core does by itself, even where they leave its own cache
_LOOPS = 8  # causal: each loop leaves out the keys that none of its chunks may see; 8 loops do 9/16 of the work
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")  # of a core's second level, as Linux tells it: "2048K"


def at_once(call: Call) -> int:
    """The most queries of a chunk."""
    settings = call.settings
    if jax.default_backend() != "cpu":
        return _CHUNK
    if settings.left is not None and settings.right is not None:
        return _CHUNK_OF_WINDOW
    if settings.right is None or settings.offset is None:  # as in `loops`
        return _CHUNK_OF_ALL
    return min(_CHUNK, max(_THIN, -(-call.keys.shape[2] // 4)))


def blocks(call: Call, scores: int) -> tuple[jax.Array, tuple[int, int]]:
    """Numbers of the blocks, and the examples and heads of keys of each: on a CPU about so many scores, else all.

    There small heads are at least as many as cores, where that divides them: what several cores share takes longer.
    """
    examples, heads, size, _ = call.keys.shape
    rows = call.queries.shape[2] * call.settings.rows
    tile = rows * max(columns for *_, columns in loops(call))
    fitting = max(cores() if tile <= _ALONE else 1, scores // (rows * size))
    if jax.default_backend() != "cpu":
        fitting = examples * heads
    if call.settings.bias is not None:  # the function makes those of all heads
        fitting = max(fitting, heads)
    block = _largest_divisor(examples, fitting // heads), _largest_divisor(heads, fitting)
    return jnp.arange(examples * heads // (block[0] * block[1])), block


def few() -> int:
    """Scores that fit the caches of all cores."""
    return cores() * _share()


@cache
def _share() -> int:
    """Scores a core works on at a time: in float32 its second-level cache, or 512 KB where nobody tells its size."""
    try:
        size = _CACHE.read_text(encoding="utf-8").strip()
    except OSError:
        size = ""
    return 2**10 * int(size[:-1]) // 4 if re.fullmatch(r"[1-9]\d*K", size) else 2**17


def _largest_divisor(number: int, limit: int) -> int:
    return max(divisor for divisor in range(1, number + 1) if number % divisor == 0 and divisor <= max(limit, 1))


def loops(call: Call) -> list[tuple[int, int, int]]:
    """(first chunk, end, columns) of the loops over chunks; the chunks of one loop need equally many columns."""
    settings, size = call.settings, call.keys.shape[2]
    count = call.queries.shape[3] // settings.rows
    if settings.left is not None and settings.right is not None:
        return [(0, count, min(size, settings.rows + settings.left + settings.right))]
    if settings.right is None or settings.offset is None:
        return [(0, count, size)]
    edges = sorted({round(edge) for edge in np.linspace(0, count, _LOOPS + 1)})
    seen = [min(size, max(1, end * settings.rows + settings.offset + settings.right)) for end in edges[1:]]
    return list(zip(edges[:-1], edges[1:], seen, strict=True))

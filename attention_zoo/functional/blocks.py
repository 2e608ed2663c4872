"""How much of `chunked` attention is worked on at a time: chunks of queries, loops over them, blocks of heads."""

import os
import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.functional.tiles import Call

_CHUNK = 256  # queries at a time
# On a CPU less, where they all see but a window: their keys are the fewer. More, where every query sees all keys.
_CHUNK_OF_WINDOW, _CHUNK_OF_ALL = 64, 512
_LEAST_CHUNK = 160  # where a chunk sees the keys up to its own place, of which four leave out the most
# Scores of a block going forward: XLA:CPU keeps few of them at a time, but wants many rows to share out.
FORWARD = 2**21
_ALONE = 2**19  # scores of a head of keys that a core may have to itself, though they leave its second-level cache
_LOOPS = 8  # causal: each loop leaves out the keys that none of its chunks may see; 8 loops do 9/16 of the work
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")  # of a core's second level, as Linux tells it: "2048K"


def at_once(call: Call) -> int:
    """Queries of a chunk."""
    settings = call.settings
    if jax.default_backend() != "cpu":
        return _CHUNK
    if settings.left is not None and settings.right is not None:
        return _CHUNK_OF_WINDOW
    if settings.right is None or settings.offset is None:  # as in `loops`
        return _CHUNK_OF_ALL
    return min(_CHUNK, max(_LEAST_CHUNK, call.queries.shape[3] // 4))


def blocks(call: Call, scores: int) -> tuple[jax.Array, tuple[int, int]]:
    """Numbers of the blocks, and the examples and heads of keys of each: on a CPU about so many scores, else all.

    There no core shares its products with another, where a head of keys is small enough for one of them.
    """
    examples, heads, size, _ = call.keys.shape
    own = call.queries.shape[2] * call.settings.rows * size
    fitting = max(_cores() if own <= _ALONE else 1, scores // own)
    if jax.default_backend() != "cpu":
        fitting = examples * heads
    if call.settings.bias is not None:  # the function makes those of all heads
        fitting = max(fitting, heads)
    block = _largest_divisor(examples, fitting // heads), _largest_divisor(heads, fitting)
    return jnp.arange(examples * heads // (block[0] * block[1])), block


def few() -> int:
    """Scores that fit the caches of all cores."""
    return _cores() * _share()


def _cores() -> int:
    return os.cpu_count() or 1


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

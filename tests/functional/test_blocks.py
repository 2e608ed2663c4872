"""What attention in chunks works on at a time: chunks, blocks, and what needs no clearing; and that it is less work."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import blocks
from attention_zoo.functional.dot_product import dot_product_attention
from attention_zoo.functional.tiles import Call, Laid, Loose, Settings
from attention_zoo.functional.weighing import seen


def call(queries: int, keys: int, examples: int = 1, heads: int = 1, shared: int = 1, **settings) -> Call:
    """A call of these sizes; without others, a causal one."""
    settings = {"left": None, "right": 0, "offset": 0, "rows": queries, **settings}
    shapes = (examples, heads, shared, queries, 1), (examples, heads, keys, 1), (examples, heads, keys, 1)
    return Call(Settings(1.0, None, **settings), *map(jnp.zeros, shapes), Laid(), Loose(offset=jnp.array(0)))


@pytest.mark.parametrize(
    ("expected", "settings"),
    [
        ((5, 512, 512), {"right": None}),
        ((5, 512, 512), {"right": None, "left": 3}),  # whoever comes after is seen
        ((5, 512, 512), {"offset": None}),
        ((5, 160, 256), {}),
        ((5, 64, 64), {"left": 3}),
        ((5, 64, 64), {"left": 3, "offset": None}),
    ],
)
def test_queries_of_a_chunk_on_a_cpu(expected, settings):
    """Few queries see but a window, many see all; of a causal mask a chunk has a quarter, within bounds."""
    chunks = [blocks.at_once(call(size, size, **settings)) for size in (5, 641, 4096)]
    assert tuple(min(size, chunk) for size, chunk in zip((5, 641, 4096), chunks, strict=True)) == expected
    if expected[1:] == (160, 256):
        assert blocks.at_once(call(900, 900)) == 225


def test_a_block_has_a_head_for_every_core_where_they_are_small(monkeypatch):
    monkeypatch.setattr(blocks, "_cores", lambda: 3)

    def sizes(size, heads, scores, **options):
        numbers, block = blocks.blocks(call(size, size, heads=heads, **options), scores)
        assert len(numbers) * block[0] * block[1] == heads * options.get("examples", 1)
        return block

    assert sizes(512, 12, 1) == (1, 3)
    assert sizes(512, 12, 6 * 512 * 512) == (1, 6)
    assert sizes(512, 2, 1, examples=5) == (1, 2)
    assert sizes(512, 1, 1, examples=9) == (3, 1)
    assert sizes(1024, 12, 1) == (1, 1)  # 2^20 scores
    assert sizes(512, 12, 1, shared=4) == (1, 1)


@pytest.mark.parametrize("queries", [1, 3, 5])
@pytest.mark.parametrize("keys", [1, 4, 5])
def test_nothing_is_cleared_that_everybody_sees(queries, keys):
    """The rule against every pair of a query and a key."""
    for offset in range(-6, 7):
        for left, right in ((None, 0), (2, None), (2, 0), (0, 1), (4, 4)):
            one = call(queries, keys, left=left, right=right, offset=offset)
            distances = np.arange(keys)[None] - np.arange(queries)[:, None] - offset
            bounds = [distances >= -left] if left is not None else []
            bounds += [distances <= right] if right is not None else []
            rules = seen(one)
            told = len(rules.queries) + len(rules.keys)
            assert told == 2 * sum(not (bound.any(0).all() and bound.any(1).all()) for bound in bounds)
    assert seen(call(4, 4, offset=None)).keys


def test_a_band_and_half_a_square_are_less_work():
    def products(**arguments):
        """Multiplications in the loops of the forward pass, from its jaxpr."""
        arrays = [jnp.zeros((1, 2, 1024, 8))] * 3
        run = partial(dot_product_attention, implementation="chunked", chunk=64, **arguments)
        return _multiplications(jax.make_jaxpr(run)(*arrays).jaxpr)

    whole = products()
    assert whole == 2 * 2 * 1024 * 1024 * 8
    assert products(causal=True) == whole * 9 / 16
    assert products(window=(20, 44)) == whole * 128 / 1024


def _multiplications(jaxpr) -> int:
    total = 0
    for line in jaxpr.eqns:
        if line.primitive.name == "dot_general":
            (contracted, _), _ = line.params["dimension_numbers"]
            total += line.outvars[0].aval.size * line.invars[0].aval.shape[contracted[0]]
        inner = [value for value in line.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        for value in inner:
            total += line.params.get("length", 1) * _multiplications(getattr(value, "jaxpr", value))
    return total


def test_a_core_works_on_what_fills_its_cache(monkeypatch, tmp_path):
    for text, share in (("512K\n", 2**17), ("2048K\n", 2**19), ("much", 2**17), (None, 2**17)):
        file = tmp_path / "size"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text, encoding="utf-8")
        monkeypatch.setattr(blocks, "_CACHE", file)
        assert blocks._share.__wrapped__() == share

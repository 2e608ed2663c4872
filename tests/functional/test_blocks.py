"""What attention in chunks works on at a time, and that leaving out what nobody sees is less work."""

from functools import partial

import jax
import jax.numpy as jnp

from attention_zoo.functional import blocks
from attention_zoo.functional.dot_product import dot_product_attention
from attention_zoo.functional.tiles import Call, Laid, Loose, Settings


def call(queries: int, keys: int, examples: int = 1, heads: int = 1, shared: int = 1, **settings) -> Call:
    """A call of these sizes; without others, a causal one."""
    settings = {"left": None, "right": 0, "offset": 0, "rows": queries, **settings}
    shapes = (examples, heads, shared, queries, 1), (examples, heads, keys, 1), (examples, heads, keys, 1)
    return Call(Settings(1.0, None, **settings), *map(jnp.zeros, shapes), Laid(), Loose(offset=jnp.array(0)))


def chunks(sizes, **settings) -> list[int]:
    """Queries of a chunk, for sequences of these sizes."""
    return [blocks.at_once(call(size, size, **settings)) for size in sizes]


def test_queries_of_a_chunk(monkeypatch):
    sizes = 5, 641, 901, 4096
    assert chunks(sizes) == [160, 161, 226, 256]  # of a causal mask a quarter of the keys, within bounds
    assert chunks(sizes, right=None) == chunks(sizes, offset=None) == [512] * 4  # all keys are computed for all
    assert chunks(sizes, left=3) == chunks(sizes, left=3, offset=None) == [64] * 4  # a window
    assert blocks.at_once(call(200, 9999, offset=9799)) == 256
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chunks(sizes) == chunks(sizes, left=3) == [256] * 4


def test_a_block_has_a_head_for_every_core_where_they_are_small(monkeypatch):
    monkeypatch.setattr(blocks, "cores", lambda: 3)

    def block(size, heads, scores, **options):
        numbers, found = blocks.blocks(call(size, size, heads=heads, **options), scores)
        assert len(numbers) * found[0] * found[1] == heads * options.get("examples", 1)
        return found

    assert block(512, 12, 1) == (1, 3)
    assert block(512, 12, 6 * 512 * 512) == (1, 6)
    assert block(512, 2, 1, examples=5) == (1, 2)
    assert block(512, 1, 1, examples=9) == (3, 1)
    assert block(512, 7, 1) == (1, 1)  # which three does not divide
    assert block(1024, 12, 1) == (1, 1)  # 2^20 scores
    assert block(512, 12, 1, shared=4) == (1, 1)
    assert block(2**14, 12, 1, rows=64, left=512) == (1, 3)  # of which each chunk computes 576 columns
    assert block(2**14, 12, 1, rows=64, right=None) == (1, 1)
    assert block(1024, 12, 1, bias=lambda *_: None) == (1, 12)


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

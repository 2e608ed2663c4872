"""The attention benchmark on its smallest size: everyone agrees, and every case has its rows."""

import sys
from types import SimpleNamespace

import jax
import pytest

from benchmarks import attention


def test_everyone_agrees_in_every_case():
    rows = attention.benchmark("small", repetitions=1)
    assert {row.benchmark for row in rows} == {"attention"}
    found = [(row.case.split()[-1], row.direction, row.implementation) for row in rows]
    peers = ["attention_zoo", "flax.linen", "jax.nn"]
    if any(row.implementation == "tokamax" for row in rows):
        peers.append("tokamax")
    directions = ("forward", "forward+gradient")
    assert found == [(case, direction, peer) for case in attention.CASES for direction in directions for peer in peers]
    assert all(row.error_vs_reference < 1e-4 for row in rows)


def test_a_mask_that_is_ignored_is_found_out(monkeypatch):
    def careless(*arrays, mask=None, is_causal=False):
        return jax.nn.dot_product_attention(*arrays)

    monkeypatch.setitem(sys.modules, "tokamax", SimpleNamespace(dot_product_attention=careless, __spec__=object()))
    with pytest.raises(ValueError, match=r"causal: tokamax differs from attention_zoo by .* not timed"):
        attention.benchmark("small", repetitions=1)

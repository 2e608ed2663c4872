"""The attention benchmark on its smallest size: everyone agrees, and every case has its rows."""

import sys
from types import SimpleNamespace

import jax
import pytest

from benchmarks import attention


def test_everyone_agrees_in_every_case():
    rows = [*attention.benchmark("small", repetitions=1)]
    assert {row.benchmark for row in rows} == {"attention"}
    found = [(row.case.split()[-1], row.direction, row.implementation) for row in rows]
    peers = ["attention_zoo", "flax.linen", "jax.nn"]
    peers += [name for name in ("tokamax", "keras", "PyTorch") if any(row.implementation == name for row in rows)]
    assert found == [
        (case, direction, peer)
        for case in attention.CASES
        for direction in ("forward", "forward+gradient")
        for peer in peers
        if (case, peer) not in (("grouped", "flax.linen"), ("grouped", "keras"), ("windowed", "keras"))
    ]
    assert all(row.error_vs_reference < 1e-4 for row in rows)


def test_what_a_head_needs_is_the_pairs_that_a_case_leaves(monkeypatch):
    needs = {}

    def kept(_, case, direction, contestants, **options):
        needs[case, direction] = options["needs"]
        return []

    monkeypatch.setattr(attention, "compare", kept)
    [*attention.benchmark("small", 1, peers=())]
    ((batch, heads, steps, width),) = attention.SIZES["small"]
    product = 2 * batch * heads * width
    found = {(case.split()[-1], way): need["matmul_gflops"] / product for (case, way), need in needs.items()}
    assert found["plain", "forward"] == found["grouped", "forward"] == 2 * steps**2
    assert found["causal", "forward+gradient"] == 3 * steps**2
    pairs = sum(min(step + 1, steps // 8) for step in range(steps))
    assert found["windowed", "forward"] == 2 * pairs
    assert steps**2 <= found["masked", "forward"] < 2 * steps**2


def test_a_mask_that_is_ignored_is_found_out(monkeypatch):
    def careless(*arrays, **_):
        return jax.nn.dot_product_attention(*arrays)

    monkeypatch.setitem(sys.modules, "tokamax", SimpleNamespace(dot_product_attention=careless, __spec__=object()))
    with pytest.raises(ValueError, match=r"causal: tokamax differs from attention_zoo by .* not timed"):
        [*attention.benchmark("small", repetitions=1)]

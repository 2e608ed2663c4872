"""The kernels benchmark on its smallest size, with stand-ins for the kernels that a CPU has not."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from attention_zoo.functional.dot_product import dot_product_attention
from benchmarks import attention, kernels, machine
from benchmarks.attention import Entrant


@pytest.fixture(autouse=True)
def roof(monkeypatch):
    monkeypatch.setattr(machine, "roofs", lambda dtype: {"matmul_gflops": 1.0})


@pytest.fixture
def told(monkeypatch):
    """What a stand-in for tokamax, which is jax.nn's by XLA, is told: shapes, and the other arguments."""
    calls = []

    def kernel(query, key, value, **options):
        calls.append((query.shape, key.shape, value.shape, {name for name, one in options.items() if one}))
        return jax.nn.dot_product_attention(query, key, value, **options)

    monkeypatch.setitem(sys.modules, "tokamax", SimpleNamespace(dot_product_attention=kernel, __spec__=object()))
    return calls


def test_ours_is_compared_with_the_raw_call_case_by_case(told, monkeypatch, capsys):
    assert kernels.CASES == ("plain", "causal", "masked", "by lengths", "grouped")
    monkeypatch.setattr(kernels, "CASES", ("causal", "grouped"))
    rows = [*kernels.benchmark("small", repetitions=1, dtype="bfloat16")]
    assert capsys.readouterr().err == "cudnn is missing, and left out: it runs on NVIDIA's GPUs alone\n"
    label = "tokamax, B2 H4 T38 D16"
    assert [(row.case, row.direction, row.implementation) for row in rows] == [
        (f"{label} {case}", direction, name)
        for case in ("causal", "grouped")
        for direction in ("forward", "forward+gradient")
        for name in ("attention_zoo", "tokamax")
    ]
    assert {row.dtype for row in rows} == {"bfloat16"} and max(row.error_vs_reference for row in rows) < 2**-6
    whole, few = (2, 38, 4, 16), (2, 38, 1, 16)  # both are called with the heads behind the positions
    assert len(told) == len(rows) and {call[0] for call in told} == {whole}
    assert [call[1:] for call in told] == [
        (keys, keys, options)
        for keys, options in ((whole, {"is_causal"}), (few, set()))
        for _ in ("forward", "forward+gradient")
        for options in (options | {"scale"}, options)
    ]


def test_cudnn_takes_no_float32_and_the_door_is_told_lengths(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "PEERS", {"cudnn": lambda: {"raw": Entrant(attention.jax_nn)}})
    assert [*kernels.benchmark("small", 1, dtype="float32")] == []
    assert capsys.readouterr().err == "cudnn takes no float32: left out\n"
    asked = []

    def door(*arrays, implementation, **options):
        asked.append((implementation, *options))
        return dot_product_attention(*arrays, **options)

    monkeypatch.setattr(kernels, "dot_product_attention", door)
    monkeypatch.setattr(kernels, "CASES", ("masked", "by lengths"))
    rows = [*kernels.benchmark("small", 1, dtype="bfloat16")]
    assert [row.implementation for row in rows] == ["attention_zoo", "raw"] * 4
    assert [row.case for row in rows[::4]] == [f"cudnn, B2 H4 T38 D16 {case}" for case in ("masked", "by lengths")]
    assert set(asked) == {("cudnn", "mask"), ("cudnn", "lengths")}


def test_cudnn_is_given_a_mask_of_every_pair(monkeypatch):
    shapes = []
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *_, mask, **options: shapes.append((mask.shape, options))
    )
    queries, keys, mask = jnp.zeros((2, 5, 3, 7)), jnp.zeros((2, 11, 3, 7)), jnp.ones((2, 1, 1, 11), bool)
    attention.jax_nn(queries, keys, keys, mask=mask, implementation="cudnn")
    attention.jax_nn(queries, keys, keys, mask=mask)
    assert [shape for shape, _ in shapes] == [(2, 1, 5, 11), (2, 1, 1, 11)]
    assert [options["implementation"] for _, options in shapes] == ["cudnn", "xla"]


def test_jax_nn_enters_twice_on_a_gpu_in_bfloat16(monkeypatch):
    assert [*attention._entrants(["jax.nn"], "bfloat16")] == ["attention_zoo", "jax.nn"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [*attention._entrants(["jax.nn"], "bfloat16")] == ["attention_zoo", "jax.nn", "jax.nn cudnn"]
    assert [*attention._entrants(["jax.nn"], "float32")] == ["attention_zoo", "jax.nn"]
    assert [*attention._entrants([], "bfloat16")] == ["attention_zoo"]

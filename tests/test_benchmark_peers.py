"""Who is compared and in which dtype: peers by name, peers that are missing, and a function of one's own."""

import json
import sys

import jax.numpy as jnp
import pytest
import tyro

from attention_zoo.training.errors import UserError
from benchmarks import __main__ as command
from benchmarks import additive, attention, hard, harness, seq2seq
from benchmarks.__main__ import main

SMALL = ("--sizes", "small", "--repetitions", "1")
# The lines of README.md.
OWN = """
from jax.nn import softmax
from benchmarks import attention, rows
def mine(queries, keys, values):  # [B, H, T, D]
    return softmax(queries @ keys.mT * queries.shape[-1] ** -0.5) @ values
rows.show(attention.contest("mine", mine, size="small", cases=["plain"]))
"""


@pytest.fixture
def bare(monkeypatch):
    """Neither Keras nor tokamax nor PyTorch can be imported."""
    tyro.cli(lambda: None, args=[])  # at its first call tyro imports PyTorch where `sys.modules` has the name
    for name in ("keras", "tokamax", "torch"):
        monkeypatch.setitem(sys.modules, name, None)


def test_only_the_named_peers_stay_and_a_missing_one_is_named(bare, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "roofs", lambda dtype: {})
    file = tmp_path / "rows.json"
    given = ["additive", *SMALL, "--dtype", "bfloat16", "--json", str(file)]
    assert main([*given, "--peers", "keras"]) == 0
    assert [(row["implementation"], row["dtype"]) for row in json.loads(file.read_text())["rows"]] == [
        ("attention_zoo", "bfloat16")
    ]
    assert capsys.readouterr().err.count("keras is missing, and left out: import of keras") == 1
    assert main([*given, "--peers", "plain JAX"]) == 0
    assert [row["implementation"] for row in json.loads(file.read_text())["rows"]] == ["attention_zoo", "plain JAX"]
    assert "missing" not in capsys.readouterr().err


def test_missing_peers_are_named_once_without_being_asked_for(bare, monkeypatch, capsys):
    monkeypatch.setattr(attention, "SIZES", {})
    assert main(["additive", "attention", "--sizes", "small,small", "--repetitions", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("keras is missing") == captured.err.count("tokamax is missing") == 1
    assert captured.out.count("attention_zoo") == captured.out.count("plain JAX") == 2


def test_a_package_that_breaks_at_import_is_missing_too(monkeypatch, capsys):
    def broken():
        raise AttributeError("module 'jax' has no attribute 'old'")

    monkeypatch.setattr(additive, "PEERS", {"broken": broken})
    assert [row.implementation for row in additive.benchmark("small", 1)] == ["attention_zoo"]
    assert capsys.readouterr().err == "broken is missing, and left out: module 'jax' has no attribute 'old'\n"


def test_one_name_covers_all_that_a_peer_enters(monkeypatch):
    monkeypatch.setattr(seq2seq, "compare", lambda *given, **options: [one.implementation for one in given[3]])
    assert seq2seq.benchmark("small", 1, peers=()) == ["attention_zoo"]
    plain = ["flax.linen", "flax.linen, output layer after the scan"]
    assert seq2seq.benchmark("small", 1, peers=["flax.linen"]) == ["attention_zoo", *plain]
    assert not any("," in name for one in command.BENCHMARKS.values() for name in one.PEERS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["seq2seq", "--peers", "tokamax"],
            "there is no peer 'tokamax' in seq2seq; there are flax.linen, PyTorch, torch.compile.",
        ),
        (
            ["attention", "additive", "--peers", "keras,torch"],
            "there is no peer 'torch' in attention, additive; "
            "there are flax.linen, jax.nn, tokamax, keras, PyTorch, plain JAX.",
        ),
        (["hard", "--peers", "keras"], "there is no peer 'keras' in hard; it has none to choose from."),
    ],
)
def test_an_unknown_peer_is_one_sentence_that_lists_what_there_is(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip() == f"error: {sentence}"


def test_a_benchmark_without_a_choice_says_so(monkeypatch, capsys):
    assert main(["seq2seq", "hard", *SMALL, "--dtype", "bfloat16"]) == 0
    error = capsys.readouterr().err
    assert all(f"{name} has no choice of dtype, only float32: left out" in error for name in ("seq2seq", "hard"))
    monkeypatch.setattr(hard, "benchmark", lambda size, repetitions: [])
    monkeypatch.setattr(additive, "SIZES", {})
    assert main(["hard", "additive", *SMALL, "--peers", "plain JAX"]) == 0
    assert "hard has no peers to choose from: all of it runs" in capsys.readouterr().err


def test_a_function_of_ones_own_joins_in_five_lines(capsys):
    assert len(OWN.strip().splitlines()) == 5
    exec(OWN, {})
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("attention_zoo", "mine", "flax.linen", "jax.nn", "forward+gradient"))


def test_a_guest_gets_the_case_its_layout_and_the_dtype():
    seen = []

    def mine(queries, keys, values, mask=None, causal=False):
        seen.append((queries.shape, str(values.dtype), None if mask is None else mask.shape, causal))
        return attention.PEERS["jax.nn"]().attention(queries, keys, values, mask=mask, causal=causal)

    rows = attention.contest("mine", mine, "small", 1, layout="BTHD", peers=(), dtype="bfloat16")
    assert [row.implementation for row in rows] == ["attention_zoo", "mine"] * 6
    assert {row.dtype for row in rows} == {"bfloat16"} and max(row.error_vs_reference for row in rows) > 1e-4
    shape = (2, 37, 4, 8)
    cases = [(None, False), (None, True), ((2, 1, 1, 37), False)]
    assert dict.fromkeys(seen) == dict.fromkeys((shape, "bfloat16", *case) for case in cases)


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1.001), ("bfloat16", 1.1)])
def test_a_guest_that_differs_is_not_timed(monkeypatch, dtype, factor):
    def timed(*arguments):
        raise AssertionError("timed")

    monkeypatch.setattr(harness, "seconds", timed)

    def wrong(*arrays):
        return additive.plain(*arrays) * jnp.asarray(factor, dtype)

    with pytest.raises(UserError, match=r"wrong differs from attention_zoo by .* not timed"):
        additive.contest("wrong", wrong, "small", 1, peers=(), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("keras", {}, "there is a contestant 'keras' already; others are called attention_zoo, plain JAX, keras"),
        ("mine", {"size": "huge"}, "there is no size 'huge'; there are small, paper, long."),
        ("mine", {"dtype": "float64"}, "there is no dtype 'float64'; there are float32, bfloat16."),
    ],
)
def test_a_contest_that_cannot_be_says_why(name, options, sentence):
    with pytest.raises(UserError, match=f"^{sentence}$"):
        additive.contest(name, additive.plain, **{"peers": (), **options})


def test_a_guest_of_the_additive_benchmark_has_its_row():
    rows = additive.contest("mine", additive.plain, "small", 6, peers=())
    assert [row.implementation for row in rows] == ["attention_zoo", "mine"]
    assert rows[1].ratio_low <= rows[1].ratio <= rows[1].ratio_high and rows[1].interval

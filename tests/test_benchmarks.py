"""The benchmark command on its smallest sizes, and the harness's promise: equal results or no timing."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.__main__ import NAMES, main
from benchmarks.harness import Contestant, compare, median_with_interval

ROW = {
    "benchmark", "case", "direction", "dtype", "implementation", "median_ms", "low_ms", "high_ms", "temporary_bytes",
    "flops", "error_vs_reference", "ratio", "ratio_low", "ratio_high",
}  # fmt: skip


def test_seq2seq_agrees_with_flax_and_writes_its_rows(tmp_path, capsys):
    file = tmp_path / "result.json"
    assert main(["seq2seq", "--sizes", "small", "--repetitions", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert {"device", "versions", "roofs", "rows"} == result.keys()
    names = [row["implementation"] for row in result["rows"]]
    assert names[:3] == ["attention_zoo", "flax.linen", "flax.linen, output layer after the scan"]
    assert set(names[3:]) <= {"PyTorch"}
    assert all(row.keys() >= ROW for row in result["rows"]) and min(result["roofs"].values()) > 0
    assert {(row["dtype"], row["ratio_low"], row["ratio_high"]) for row in result["rows"]} == {("float32", None, None)}
    captured = capsys.readouterr()
    assert "flax.linen" in captured.out and "below 6 repetitions a median has no 95 % interval" in captured.err


def test_list_names_every_benchmark(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == sorted(NAMES) and len(NAMES) >= 10
    assert any(line.startswith("seq2seq  How fast is a translator's training step") for line in lines)


def test_a_size_that_a_benchmark_lacks_is_left_out_and_said(capsys):
    assert main(["seq2seq", "--sizes", "long", "--repetitions", "1"]) == 0
    assert "seq2seq has no size long: left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["seq2sec"], "error: there is no benchmark 'seq2sec'; did you mean 'seq2seq'?"),
        (["--sizes", "huge"], "error: there is no size 'huge'; there are small, paper, long."),
        (["--dtype", "float16"], "error: there is no dtype 'float16'; there are float32, bfloat16."),
        (["--repetitions", "0"], "error: --repetitions is at least 1; got 0"),
        (["--json", "missing/result.json"], "error: missing/result.json cannot be written: there is no folder missing"),
        (["--json", "."], "error: . cannot be written: it is a folder"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip() == sentence


def test_different_results_are_not_timed():
    x = jnp.arange(3.0)
    contestants = [Contestant("attention_zoo", jnp.sin, (x,)), Contestant("peer", lambda x: jnp.sin(x) * 1.01, (x,))]
    with pytest.raises(ValueError, match=r"peer differs from attention_zoo by 1\.0e-02"):
        compare("sine", "S3", "forward", contestants, tolerance=1e-5)


@pytest.mark.parametrize("wrong", [lambda x: (jnp.sin(x), x + jnp.nan), lambda x: (jnp.sin(x), jnp.ones((1,)))])
def test_a_nan_or_another_shape_in_any_leaf_is_found(wrong):
    x = jnp.ones(3)
    contestants = [Contestant("attention_zoo", lambda x: (jnp.sin(x), x), (x,)), Contestant("peer", wrong, (x,))]
    with pytest.raises(ValueError, match=r"peer differs from attention_zoo by (nan|inf)"):
        compare("sine", "S3", "forward", contestants, tolerance=1e-5)


def test_who_comes_first_changes_from_round_to_round():
    order = []
    contestants = [Contestant(str(number), lambda number=number: order.append(number) or np.ones(1), (), jitted=False)
                   for number in range(3)]  # fmt: skip
    compare("order", "", "forward", contestants, tolerance=0.0, repetitions=2)
    assert order[6:15] == [0, 1, 2, 1, 2, 0, 2, 0, 1]  # after compilation and comparison; then the peaks


def test_interval_of_a_median_holds_the_middle_of_the_order():
    median, low, high = median_with_interval(np.random.default_rng(0).permutation(101).astype(float))
    assert (median, low, high) == (50, 40, 61)


@pytest.mark.parametrize("count", [1, 5, 6, 7, 8, 11, 15, 16, 37])
def test_an_interval_called_95_percent_holds_the_median_that_often(count):
    """So many of `count` values lie below the true median as of tosses of a coin come up heads."""
    median, low, high = median_with_interval(np.arange(float(count)))
    assert median == (count - 1) / 2
    if count < 6:
        assert low is None and high is None and 1 - 2 * 0.5**count < 0.95
    else:
        inside = sum(math.comb(count, below) for below in range(int(low) + 1, int(high) + 1))
        assert inside / 2**count >= 0.95

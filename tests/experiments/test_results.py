"""What the docstrings and README say was reached is what the committed summaries hold."""

import json
import re
from pathlib import Path

import pytest

from experiments.commands.catalogue import docstring, names

ROOT = Path(__file__).parents[2]
RESULTS = {file.stem: json.loads(file.read_text()) for file in (ROOT / "experiments" / "results").glob("*.json")}
METRICS = (
    "exact_match|accuracy|macro_f1|token_accuracy|alignment_accuracy|pointing_accuracy|pointing_ratio|map_distance|"
    "error_rate|perplexity|bleu|chrf|minutes|seconds_to_first_step"
)
OWN_DATA = {"caption_files", "translate_files"}  # have no score of their own


def claims(text):
    """Every `RESULT.json` a text names, with the `metric figure` pairs that follow it up to the next."""
    parts = re.split(r"results/(\w+)\.json", text)
    for name, following in zip(parts[1::2], parts[2::2], strict=True):
        yield name, re.findall(rf"\b({METRICS}) (\d+\.\d+)", following)


def agree(name, metric, figure):
    """Whether the summary has that figure, to the decimals it is told with, on the test or the dev split."""
    summary = RESULTS[name]
    whole, decimals = figure.split(".")
    del whole
    splits = [summary["metrics"], summary["dev_metrics"], {"minutes": summary["seconds"] / 60}]
    splits.append({"seconds_to_first_step": summary["seconds_to_first_step"]})
    return any(f"{found[metric]:.{len(decimals)}f}" == figure for found in splits if metric in found)


@pytest.mark.parametrize("name", sorted(set(names()) - OWN_DATA))
def test_an_experiments_docstring_is_proved_by_a_summary(name):
    reached = list(claims(docstring(name)))
    assert any(found == name and pairs for found, pairs in reached), f"{name} names no result of its own"
    for found, pairs in reached:
        assert found.startswith(RESULTS[found]["experiment"])
        for metric, figure in pairs:
            assert agree(found, metric, figure), f"{found}: {metric} is not {figure}"


@pytest.mark.parametrize("page", ["README.md", "docs/hard_attention.md"])
def test_a_pages_figures_are_proved_by_summaries(page):
    pairs = [(name, *pair) for name, pairs in claims((ROOT / page).read_text()) for pair in pairs]
    assert len(pairs) > 10
    for name, metric, figure in pairs:
        assert agree(name, metric, figure), f"{name}: {metric} is not {figure}"


def test_readmes_ratios_are_a_benchmarks():
    result = json.loads((ROOT / "benchmarks" / "results" / "amd-epyc-2-cores.json").read_text())
    text = " ".join((ROOT / "README.md").read_text().split())
    ours, *peers = result["rows"]
    assert ours["implementation"] == "attention_zoo" and len(peers) == 2
    for row in peers:
        assert f"{row['ratio']:.2f} times" in text
        assert f"{row['temporary_bytes'] / ours['temporary_bytes']:.1f}" in text


def test_readmes_attention_table_is_a_benchmarks():
    """Every row: our time, the fastest peer, its ratio, the temporaries of both, and the ratio on another machine."""
    other = json.loads((ROOT / "benchmarks" / "results" / "intel-xeon-2-cores-attention.json").read_text())["rows"]
    rows = json.loads((ROOT / "benchmarks" / "results" / "amd-epyc-2-cores-attention.json").read_text())["rows"]
    lines = re.findall(r"^\| (?:additive, )?`(B\d.*?)`(.*?) \| (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == 8
    for shape, case, figures in lines:
        (ours, *peers), (_, *others) = (
            [row for row in table if row["case"] == shape + case and row["direction"] == "forward+gradient"]
            for table in (rows, other)
        )
        best, elsewhere = (min(several, key=lambda row: row["ratio"]) for several in (peers, others))
        assert figures.endswith(f" | {elsewhere['implementation']}, {elsewhere['ratio']:.2f} |")
        assert ours["implementation"] == "attention_zoo"
        assert f"{ours['median_ms']:.0f} ms | {best['implementation']}, {best['ratio']:.2f} |" in figures
        shown = [float(number) for number in re.findall(r"([\d.]+) MB", figures)]
        assert shown == pytest.approx([row["temporary_bytes"] / 1e6 for row in (ours, best)], rel=0.05)


def test_the_table_of_estimators_is_a_benchmarks():
    rows = json.loads((ROOT / "benchmarks" / "results" / "intel-xeon-2-cores-hard.json").read_text())["rows"]
    page = (ROOT / "docs" / "hard_attention.md").read_text()
    for row in rows:
        (line,) = re.findall(rf"^\| \w+ \| {re.escape(row['implementation'])} \| (.*) \|$", page, re.MULTILINE)
        bias, bound, variance, snr, ratio = line.split(" | ")
        assert float(bias.split()[0]) == pytest.approx(100 * row["error_vs_reference"], abs=0.05)
        assert bound == f"{100 * row['bias_bound']:.1f}" and variance == f"{row['variance']:.2f}"
        assert snr.strip() == ("" if row["snr"] is None else f"{row['snr']:.2f}")
        assert ratio == f"{row['ratio']:.2f}"


def test_the_table_of_large_canvases_is_a_benchmarks():
    rows = json.loads((ROOT / "benchmarks" / "results" / "intel-xeon-2-cores-glimpse-large.json").read_text())["rows"]
    page = (ROOT / "docs" / "hard_attention.md").read_text()
    steps = [row for row in rows if row["direction"] == "forward+gradient"]
    for row in steps:
        name = row["implementation"].replace("attention_zoo", "glimpses")
        figures = f"{row['median_ms']:.0f} ms | {row['flops'] / 1e9:.2f} | {row['temporary_bytes'] / 1e6:.0f} MB"
        assert f"| {row['side']} | {name} | {figures} |" in page
    assert len({row["flops"] for row in steps if row["implementation"] == "attention_zoo"}) == 1

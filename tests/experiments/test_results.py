"""What the docstrings and README say was reached is what the committed summaries hold."""

import json
import re
from pathlib import Path

import pytest

from experiments.commands.catalogue import docstring, names

ROOT = Path(__file__).parents[2]
RESULTS = {file.stem: json.loads(file.read_text()) for file in (ROOT / "experiments" / "results").glob("*.json")}
METRICS = (
    "exact_match|accuracy|macro_f1|token_accuracy|alignment_accuracy|perplexity|bleu|chrf|minutes|seconds_to_first_step"
)
OWN_DATA = {"translate_files"}  # has no score of its own


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


def test_readmes_figures_are_proved_by_summaries():
    pairs = [(name, *pair) for name, pairs in claims((ROOT / "README.md").read_text()) for pair in pairs]
    assert pairs
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

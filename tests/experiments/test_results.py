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

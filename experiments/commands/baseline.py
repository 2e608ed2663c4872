"""TF-IDF and logistic regression: what a classifier of texts has to beat, on the very sentences that it gets."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from attention_zoo.data.intents import intents
from attention_zoo.data.labelled import LabelledText
from attention_zoo.training import UserError
from attention_zoo.training.classification import Judge, accuracy, macro_f1
from experiments.commands.workdir import open_run

BASELINE = "TF-IDF"
STRENGTH = 10.0  # scikit-learn's C of logistic regression: better than its default of 1 on the dev split of the intents
SCORES = ("accuracy", "macro_f1")
Score = Callable[[np.ndarray, np.ndarray], float]


def bootstrap_interval(
    predicted: np.ndarray,
    truth: np.ndarray,
    score: Score,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a score (Efron 1979): its 2.5 and 97.5 % points over resamples.

    Rows of one group are drawn together where `groups` are given: sentences of one template are no independent draws.

    Raises:
        ValueError: there are no rows, or unequal numbers of them.
    """
    names = np.arange(len(truth)) if groups is None else np.asarray(groups)
    if not len(predicted) == len(truth) == len(names) > 0:
        raise ValueError(
            "bootstrap_interval: as many predictions as truths and groups, and at least one; "
            f"got {len(predicted)}, {len(truth)} and {len(names)}"
        )
    _, numbers = np.unique(names, return_inverse=True)
    count = int(numbers.max()) + 1
    rng, scores = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        rows = np.repeat(np.arange(len(truth)), times[numbers])
        scores.append(score(predicted[rows], truth[rows]))
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(low), float(high)


def judge(predicted: np.ndarray, truth: np.ndarray, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """Accuracy and macro-F1 of class numbers `[rows]`, and the 95 % bootstrap interval of each."""
    return {
        "accuracy": accuracy(predicted, truth),
        "accuracy_interval": bootstrap_interval(predicted, truth, accuracy, groups),
        "macro_f1": macro_f1(predicted, truth),
        "macro_f1_interval": bootstrap_interval(predicted, truth, macro_f1, groups),
    }


def tfidf(data: LabelledText, split: str = "test", seed: int = 0) -> dict[str, Any]:
    """Word 1-2-gram TF-IDF and logistic regression, trained on the data's `train` and judged by a split.

    Returns:
        what `judge` gives, intervals by group; `predicted` and `truth`, class numbers in the order of `data.raw`; and
        the numbers of classes and of the split's sentences and groups.
    """
    # Here, since every other command would wait for it.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    logistic = LogisticRegression(C=STRENGTH, max_iter=1000, random_state=seed)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), logistic)
    train, test = data.raw("train"), data.raw(split)
    model.fit(train.texts, [data.labels.index(label) for label in train.labels])
    predicted = np.asarray(model.predict(test.texts))
    truth = np.array([data.labels.index(label) for label in test.labels])
    sizes = {"classes": len(data.labels), "sentences": len(test.texts), "groups": len(set(test.groups))}
    grouped = test.groups if any(test.groups) else None
    return {**judge(predicted, truth, grouped), "predicted": predicted, "truth": truth, **sizes}


def baseline(workdirs: Positional[tuple[Path, ...]] = (), folds: int = 5, data_dir: Path | None = None) -> int:
    """Judges TF-IDF and logistic regression on the template folds of the intents, beside the runs in work folders.

    With work folders, each is a run of an experiment that classifies texts: the baseline is trained and judged on the
    very sentences of each run's own split. Without, on every fold of the intents, alone.

    Args:
        workdirs: the work folders of the runs.
        folds: without work folders, how many folds the templates are dealt to; each is the test split once.
        data_dir: without work folders, where the data set is prepared; TFDS's own folder by default.
    """
    columns = ("split", "sentences", "templates", "classes", "model", "accuracy", "macro-F1")
    shown, found = Table(*columns, box=None, pad_edge=False), defaultdict[str, list[dict[str, Any]]](list)
    if workdirs:
        pairs = ((folder.resolve().name, *_run(folder)) for folder in workdirs)
    else:
        pairs = ((f"fold {fold}", intents(fold=fold, folds=folds, data_dir=data_dir), None) for fold in range(folds))
    for name, data, predicted in pairs:
        results = {BASELINE: tfidf(data)}
        if predicted is not None:
            results["the run"] = judge(predicted, results[BASELINE]["truth"], data.raw("test").groups)
        for model, result in results.items():
            found[model].append(result)
            sizes = [f"{results[BASELINE][size]:,}" for size in ("sentences", "groups", "classes")]
            shown.add_row(name, *sizes, model, *(_with_interval(result, score) for score in SCORES))
    for model, results_of_all in found.items():
        means = [f"{mean(result[score] for result in results_of_all):.4f}" for score in SCORES]
        shown.add_row("mean", "", "", "", model, *means)
    Console(width=120).print(shown)
    return 0


def _run(folder: Path) -> tuple[LabelledText, np.ndarray]:
    """The data of a run and what its best checkpoint makes of their test split, in the order of `data.raw`.

    Raises:
        UserError: the folder holds no run, or one that classifies no texts.
    """
    experiment, params = open_run(folder)
    judged = getattr(experiment.evaluate, "__self__", None)
    if not isinstance(judged, Judge) or not isinstance(experiment.data, LabelledText):
        raise UserError(f"{folder} holds a run of {experiment.name}, which classifies no texts.")
    return experiment.data, judged.classes(params, "test")[0]


def _with_interval(result: dict[str, Any], name: str) -> str:
    low, high = result[f"{name}_interval"]
    return f"{result[name]:.4f} ({low:.4f}, {high:.4f})"

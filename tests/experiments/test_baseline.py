from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, f1_score

from attention_zoo.data.labelled import Labelled, labelled_text
from attention_zoo.models import Classifier, encoder
from attention_zoo.training import UserError, optimizer
from attention_zoo.training.classification import accuracy, classification, macro_f1
from experiments.commands import baseline
from experiments.commands.baseline import bootstrap_interval, judge, tfidf

RNG = np.random.default_rng(3)
TRUTH = RNG.integers(7, size=211)
PREDICTED = np.where(RNG.random(211) < 0.7, TRUTH, RNG.integers(11, size=211))


def test_scores_by_hand():
    truth, predicted = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 3, 4])
    assert accuracy(predicted, truth) == 3 / 6
    assert macro_f1(predicted, truth) == pytest.approx((4 / 5 + 2 / 4 + 0 + 0) / 4)


def test_scores_are_those_of_scikit_learn():
    assert macro_f1(PREDICTED, TRUTH) == pytest.approx(f1_score(TRUTH, PREDICTED, average="macro"))
    assert accuracy(PREDICTED, TRUTH) == pytest.approx(accuracy_score(TRUTH, PREDICTED))


def test_an_interval_is_about_that_of_scipy():
    theirs = scipy.stats.bootstrap(
        (PREDICTED == TRUTH,), np.mean, n_resamples=2999, method="percentile", random_state=np.random.default_rng(1)
    ).confidence_interval
    low, high = bootstrap_interval(PREDICTED, TRUTH, accuracy, resamples=2999)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert low < accuracy(PREDICTED, TRUTH) < high
    assert bootstrap_interval(PREDICTED, TRUTH, accuracy, resamples=2999) == (low, high)


def test_rows_of_a_group_are_drawn_together():
    truth, right = np.zeros(60, int), np.repeat([0, 1], 30)
    one = bootstrap_interval(right, truth, accuracy, groups=["a"] * 60)
    assert one == (0.5, 0.5)
    assert bootstrap_interval(right, truth, accuracy, groups=["a"] * 30 + ["b"] * 30) == (0.0, 1.0)
    low, high = bootstrap_interval(right, truth, accuracy)
    assert 0.3 < low < 0.45 < 0.55 < high < 0.7
    singles = [f"{row:02d}" for row in range(60)]
    assert bootstrap_interval(right, truth, accuracy, groups=singles) == (low, high)


def test_rows_that_do_not_fit_together():
    for rows in ((np.zeros(2), np.zeros(3)), (np.zeros(0), np.zeros(0))):
        with pytest.raises(ValueError, match=f"at least one; got {len(rows[0])}, {len(rows[1])}"):
            bootstrap_interval(*rows, accuracy)
    with pytest.raises(ValueError, match="got 3, 3 and 2"):
        bootstrap_interval(np.zeros(3), np.zeros(3), accuracy, groups=["a", "b"])


def data_of_words():
    texts = {"hot": "warm heat sun", "cold": "ice snow frost", "wet": "rain flood river"}
    rows = [
        (f"{first} {second}", label, f"{label} {first}")
        for label, words in texts.items()
        for first in words.split()
        for second in words.split()
    ]
    every = Labelled(*(list(column) for column in zip(*rows, strict=True)))
    test = every.take(range(0, 27, 4))
    return labelled_text(
        {"train": every, "test": Labelled([*test.texts, "snow"], [*test.labels, "wet"], [*test.groups, "odd"])},
        ("cold", "dry", "hot", "wet"),
        tokenizer="words",
        vocabulary_size=None,
        max_length=None,
        batch_size=5,
    )


def test_the_baseline_judges_the_sentences_that_the_model_gets():
    data = data_of_words()
    result = tfidf(data)
    assert (result["classes"], result["sentences"], result["groups"]) == (4, 8, 8)
    batches = list(data.split("test"))
    labels = np.concatenate([batch["labels"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(result["truth"], labels)
    wrong = [
        text
        for text, ours, true in zip(data.raw("test").texts, result["predicted"], labels, strict=True)
        if ours != true
    ]
    assert wrong == ["snow"]
    assert result["accuracy"] == 7 / 8
    assert {name: result[name] for name in ("accuracy", "macro_f1")} == {
        "accuracy": accuracy(result["predicted"], labels),
        "macro_f1": macro_f1(result["predicted"], labels),
    }
    assert (
        judge(result["predicted"], labels, data.raw("test").groups)["macro_f1_interval"] == result["macro_f1_interval"]
    )


def test_the_command_prints_every_fold_and_the_mean(monkeypatch, capsys):
    asked = []

    def small(**settings):
        asked.append(settings)
        return data_of_words()

    monkeypatch.setattr(baseline, "intents", small)
    assert baseline.baseline(folds=2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [(settings["fold"], settings["folds"]) for settings in asked] == [(0, 2), (1, 2)]
    assert [line.split()[:2] for line in lines[1:3]] == [["fold", "0"], ["fold", "1"]]
    assert [line.split()[0] for line in lines] == ["split", "fold", "fold", "mean"]


def test_runs_stand_beside_the_baseline_on_their_own_sentences(monkeypatch, capsys, tmp_path):
    data = data_of_words()
    small = encoder("intents_encoder", vocabulary=data.tokenizer.size, width=8, heads=2, hidden=8, layers=1)
    model = Classifier(small, len(data.labels), "mean", pooler=False)
    inputs, rule = ("tokens", "lengths"), optimizer("adam", 1e-3)
    run = classification("small", model, data, inputs=inputs, symbols=lambda row: (), optimizer=rule, steps=1)
    params = jax.jit(run.init)(jax.random.key(0), data.shapes()[0])
    monkeypatch.setattr(baseline, "open_run", lambda folder: (run, params))
    assert baseline.baseline((tmp_path / "one",)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["one", "one", "mean", "mean"]
    assert ["TF-IDF" in line for line in lines[1:]] == ["the run" not in line for line in lines[1:]]
    ours = f"{run.evaluate(params, 'test')['accuracy']:.4f}"
    assert ours in lines[2] and ours in lines[4] and "0.8750" in lines[1] and "0.8750" in lines[3]


def test_a_run_that_classifies_no_texts_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(baseline, "open_run", lambda folder: (SimpleNamespace(name="dates", evaluate=len), None))
    with pytest.raises(UserError, match="holds a run of dates, which classifies no texts"):
        baseline.baseline((tmp_path,))

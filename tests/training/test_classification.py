"""Classification as an experiment: its loss, its metrics against scikit-learn, and what it predicts and draws."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import f1_score

from attention_zoo.data.labelled import Labelled, LabelledText
from attention_zoo.data.vocabulary import Characters
from attention_zoo.models import Classifier, encoder
from attention_zoo.training import optimizer
from attention_zoo.training.classification import accuracy, class_loss, classification, macro_f1

TEXTS = {"on": ["turn on", "switch on", "on please"], "off": ["turn off", "off"], "dim": ["dim it"]}
INPUTS = ("tokens", "lengths")


def rows(times: int = 1) -> Labelled:
    pairs = [(text, label) for label, texts in TEXTS.items() for text in texts] * times
    return Labelled([text for text, _ in pairs], [label for _, label in pairs])


@pytest.fixture(scope="module")
def data() -> LabelledText:
    splits = {"train": rows(2), "dev": rows(), "test": rows()}
    tokenizer = Characters.fit(splits["train"].texts)
    return LabelledText(splits, tokenizer, sorted(TEXTS), batch_size=4, max_length=14, buckets=1)


@pytest.fixture(scope="module")
def model(data: LabelledText) -> Classifier:
    small = encoder(
        "intents_encoder", vocabulary=data.tokenizer.size, width=8, heads=2, hidden=8, layers=1, dropout=0.0
    )
    return Classifier(small, 3, "mean", pooler=False)


@pytest.fixture(scope="module")
def experiment(data: LabelledText, model: Classifier):
    return classification(
        "small",
        model,
        data,
        inputs=INPUTS,
        symbols=lambda row: data.tokenizer.tokens(row["tokens"][: int(row["lengths"])]),
        optimizer=optimizer("adam", 1e-3),
        steps=3,
    )


@pytest.fixture(scope="module")
def params(experiment):
    return jax.jit(experiment.init)(jax.random.key(0), experiment.data.shapes()[0])


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_is_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(0, 5, 37), generator.integers(1, 7, 37)
    assert macro_f1(predicted, truth) == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)
    assert accuracy(predicted, truth) == pytest.approx((predicted == truth).mean())


def test_macro_f1_by_hand() -> None:
    """Class 0: 2 hits of 2 predictions and 3 truths, 4/5; class 1: 1 hit of 2 and 1, 2/3; class 2 is nowhere."""
    assert macro_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_the_loss_is_the_mean_cross_entropy_with_smoothing(data, model, params) -> None:
    batch = dict(next(iter(data.train(0))))
    loss, metrics = jax.jit(class_loss(model, INPUTS, 0.3))(params, batch, jax.random.key(0))
    logits, _ = jax.jit(model.apply)({"params": params}, batch["tokens"], batch["lengths"])
    log_probs = log_softmax(np.asarray(logits), -1)
    wanted = 0.7 * np.eye(3)[batch["labels"]] + 0.1
    assert loss == pytest.approx(-(wanted * log_probs).sum(-1).mean(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((log_probs.argmax(-1) == batch["labels"]).mean())


def test_metrics_count_every_row_once(data, experiment, params) -> None:
    judge = experiment.evaluate.__self__  # which is compiled once
    predicted, truth, losses = judge.classes(params, "test")
    assert [data.labels[label] for label in truth] == list(data.raw("test").labels)
    metrics = experiment.evaluate(params, "test")
    assert metrics["accuracy"] == accuracy(predicted, truth) and metrics["macro_f1"] == macro_f1(predicted, truth)
    assert metrics["perplexity"] == pytest.approx(np.exp(losses.mean()))


def test_a_prediction_names_its_class_and_draws_every_head(experiment, params, data, tmp_path) -> None:
    (found,) = experiment.predict(params, ["switch off"])
    label, chance = found.text.split("\t")
    assert label in data.labels and 1 / 3 <= float(chance) <= 1
    assert found.plot is not None
    found.plot(tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 1000
    experiment.draw(params, tmp_path)


def test_panels_are_weights_of_real_positions(data, experiment, params) -> None:
    panels = experiment.evaluate.__self__.panels(params, data.encode_batch(["dim", "turn off"]), 0)
    assert list(panels) == ["layer 1, head 1", "layer 1, head 2"]
    for weights, rows, columns in panels.values():
        assert weights.shape == (5, 5) and list(rows) == list(columns) and list(rows)[1:4] == list("dim")
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_what_cannot_be_read_is_said(experiment, params) -> None:
    with pytest.raises(ValueError, match="input 1 is empty"):
        list(experiment.predict(params, [""]))
    with pytest.raises(ValueError, match="more than the 12 that are read"):
        list(experiment.predict(params, ["turn on the light"]))


def test_the_input_that_cannot_be_read_is_named_and_smoothing_is_checked(experiment, params, model) -> None:
    with pytest.raises(ValueError, match="input 2 is empty"):
        list(experiment.predict(params, ["on", ""]))
    with pytest.raises(ValueError, match=r"label_smoothing lies in \[0, 1\); got 1.5"):
        class_loss(model, INPUTS, 1.5)


def test_the_gradient_reaches_every_parameter(data, model, params) -> None:
    batch = dict(next(iter(data.train(0))))
    gradient = jax.jit(jax.grad(lambda params: class_loss(model, INPUTS)(params, batch, jax.random.key(0))[0]))(params)
    still = [path for path, leaf in jax.tree.leaves_with_path(gradient) if not np.abs(leaf).max() > 0]
    assert all("key/bias" in jax.tree_util.keystr(path, simple=True, separator="/") for path in still)

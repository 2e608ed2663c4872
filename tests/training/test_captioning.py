"""Captioning as an experiment: metrics solved by hand, a short run end to end, pictures from files."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imsave

from attention_zoo.data import placed_digits
from attention_zoo.data.vocabulary import END, PAD, Words
from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.search import Decoded
from attention_zoo.models import Captioner
from attention_zoo.modules.vision import ConvEncoder
from attention_zoo.training import fit, optimizer
from attention_zoo.training.caption_losses import Sampling
from attention_zoo.training.captioning import MARGIN, CaptionJudge, captioning
from attention_zoo.training.objectives import shifted
from tests.models.captioners import parameters
from tests.quick import quick

SIDE, SIZES = 23, {"embedding": 5, "units": 7, "attention_units": 3, "encoder": ConvEncoder((3, 4), (4, 2))}
WORDS = Words(["one", "two", "six"])


def written(rows, width):
    """Texts as ids that end with END."""
    encoded = [[*WORDS.encode(text), END] for text in rows]
    tokens = np.array([row + [PAD] * (width - len(row)) for row in encoded], np.int32)
    return tokens, np.array([len(row) for row in encoded], np.int32)


class Even:
    """A model to which all words are equally likely; its grid has cells of 8 x 8 pixels."""

    encoder = ConvEncoder((2, 4), (4, 2))

    def apply(self, variables, images, inputs, method):
        return images if method == "start" else (jnp.zeros((*inputs.shape, WORDS.size)), images, None)


@pytest.fixture(scope="module")
def judge():
    return CaptionJudge(Even(), SimpleNamespace(shape=(16, 24, 1), target=WORDS, max_target=4))


def decoded_case():
    """Three captions and a row of filler: one is right, one says a wrong word, one stops too early.

    Cells, row by row, with their centres: 0 (4, 4), 1 (4, 12), 2 (4, 20), 3 (12, 4), 4 (12, 12), 5 (12, 20).
    """
    target, lengths = written(["one two", "six one two", "two one", ""], 4)
    tokens, stops = written(["one two", "six six two", "two", ""], 4)
    lengths[3] = 0
    weights = np.zeros((4, 4, 6), np.float32)
    for row, cells in enumerate([[0, 5, 5], [1, 1, 4, 2], [3, 0], [0]]):
        weights[row, range(len(cells)), cells] = 1
    weights[0, 2] = [0.5, 0.5, 0, 0, 0, 0]  # of END
    boxes = np.zeros((4, 4, 4), np.float32)
    boxes[0, :2] = [0, 0, 8, 8], [0, 16, 7, 24]  # inside; 5 pixels below
    boxes[1, :3] = [0, 0, 8, 8], [0, 16, 8, 24], [0, 0, 8, 8.5]  # at its right edge, at its left; 4 below, 3.5 right
    boxes[2, :2] = [0, 0, 8, 8], [8, 0, 16, 8]  # at its lower edge; of END's step, which has a box: at its upper edge
    batch = {"target": target, "target_lengths": lengths, "boxes": boxes, "images": np.zeros((4, 16, 24, 1))}
    return batch, Decoded(tokens, stops, np.zeros(4), Alignment(weights))


def test_metrics_by_hand(judge):
    assert judge.grid == (2, 3) and MARGIN == 4
    batch, decoded = decoded_case()
    rows = judge.judge({}, batch, decoded)
    assert rows["exact"].tolist() == [True, False, False, False]
    assert rows["right"].tolist() == [3, 3, 1, 0] and rows["tokens"].tolist() == [3, 4, 3, 0]
    np.testing.assert_allclose(rows["loss"], np.log(WORDS.size) * np.array([3, 4, 3, 0]), rtol=1e-5)
    np.testing.assert_allclose(rows["entropy"], [math.log(2), 0, 0, 0], rtol=1e-5)
    assert rows["steps"].tolist() == [3, 4, 2, 1]
    # Of successive words, END not among them: apart; the same, then apart; no pair in the others.
    assert rows["pairs"].tolist() == [1, 2, 0, 0] and rows["distance"].tolist() == [1, 1, 0, 0]
    # Four pixels below or to the right of a box is outside, four above or to the left inside: 12 < 8 + 4 is not so.
    assert rows["boxed"].tolist() == [2, 3, 2, 0] and rows["inside"].tolist() == [1, 1, 1, 0]


def test_metrics_of_all_rows_and_only_of_those(judge):
    batch, decoded = decoded_case()
    batch["valid"] = np.array([True, True, True, False])
    data = SimpleNamespace(
        shape=(16, 24, 1),
        target=WORDS,
        max_target=4,
        split=lambda name: [batch] if name == "test" else [],
        every_reference=lambda name: [["one two"], ["six one two"], ["two one"]],
    )
    for tokenize in (None, "none"):
        again = CaptionJudge(judge.model, data, tokenize)
        again.__dict__["search"] = lambda params, images, mask, width: decoded
        found = again.evaluate({}, "test")
        assert found["exact_match"] == pytest.approx(1 / 3) and found["token_accuracy"] == pytest.approx(7 / 10)
        assert found["map_distance"] == pytest.approx(2 / 3) and found["pointing_accuracy"] == pytest.approx(3 / 7)
        assert found["alignment_entropy"] == pytest.approx(math.log(2) / 9)
        assert found["perplexity"] == pytest.approx(WORDS.size)
        assert ("bleu" in found) == ("chrf" in found) == (tokenize is not None)


def test_without_boxes_nothing_is_pointed_at(judge):
    batch, decoded = decoded_case()
    del batch["boxes"]
    assert not {"boxed", "inside"} & set(judge.judge({}, batch, decoded))


@pytest.fixture(scope="module")
def data():
    return placed_digits(
        4, canvas=SIDE, digits=(1, 2), clutter=1, train_examples=8, dev_examples=6, test_examples=5, held_out=2
    )


@pytest.fixture(scope="module")
def experiment(data):
    model = Captioner(data.target.size, attention="hard", baseline=True, **SIZES)
    settings = {"evaluate_every": 2, "checkpoint_every": 2, "pictures": 1, "tokenize": "none"}
    sampling = Sampling(2, "learned", coin=0.0)
    return captioning("small", model, data, optimizer=optimizer("adam", 1e-2), steps=2, sampling=sampling, **settings)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    return folder, fit(experiment, folder, log_every=1)


@pytest.fixture(scope="module")
def params(experiment):
    return quick(experiment.init)(jax.random.key(0), experiment.data.shapes()[0])


def test_a_short_run_leaves_a_summary_and_pictures(run):
    folder, summary = run
    assert json.loads((folder / "summary.json").read_text()) == summary
    for metrics in (summary["metrics"], summary["dev_metrics"]):
        fractions = ("exact_match", "token_accuracy", "pointing_accuracy", "map_distance")
        assert all(0 <= metrics[name] <= 1 for name in fractions)
        assert metrics["perplexity"] > 1 and "bleu_signature" in metrics
    assert [path.name for path in (folder / "figures").glob("caption_*.png")] == ["caption_1.png"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("advantage" in json.dumps(line) for line in lines)


def test_a_split_is_judged_with_a_beam_too(experiment, params, data):
    judge = experiment.evaluate.__self__  # which has compiled its searches
    widths, search = [], judge.search
    judge.__dict__["search"] = lambda *inputs, width: widths.append(width) or search(*inputs, width=width)
    found = experiment.evaluate(params, "dev", beam_size=3)
    assert set(found) == set(experiment.evaluate(params, "dev")) and widths == [3, 3, 1, 1]
    judge.__dict__["search"] = search
    decoded = search(params, next(iter(data.split("dev")))["images"], width=3)
    assert decoded.tokens.shape == (4, data.max_target) and judge.grid == (3, 3)
    assert decoded.alignment.weights.shape == (4, data.max_target, 9)


def test_a_picture_in_a_file_is_captioned_and_drawn(experiment, params, data, tmp_path):
    picture = np.random.default_rng(0).random((SIDE, SIDE))
    imsave(tmp_path / "digits.png", picture, cmap="gray")
    (found,) = experiment.predict(params, [str(tmp_path / "digits.png")], beam_size=1)
    assert set(found.text.split()) <= set(data.target.symbols) | {"<unk>"}
    found.plot(tmp_path / "seen.png")
    assert (tmp_path / "seen.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "seen.png").stat().st_size > 1000


def test_a_file_that_cannot_be_read_is_named(experiment, params, tmp_path):
    imsave(tmp_path / "wide.png", np.zeros((SIDE, SIDE + 1)), cmap="gray")
    (tmp_path / "text.png").write_text("no picture")
    sentences = {
        "wide.png": rf"wide\.png is {SIDE} x {SIDE + 1} x 1 .*, where {SIDE} x {SIDE} x 1 is read",
        "text.png": r"text\.png cannot be read as a picture",
        "none.png": r"none\.png cannot be read as a picture",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ValueError, match=sentence) as error:
            list(experiment.predict(params, [str(tmp_path / name)]))
        assert "\n" not in str(error.value)


def test_given_parameters_are_taken_over_and_a_learned_baseline_is_drawn(data):
    """From a soft model, whose tree has no baseline, to a hard one."""
    soft = Captioner(data.target.size, **SIZES)
    batch = data.shapes()[0]
    known = parameters(soft, batch["images"], shifted(batch["target"]))
    asked = []

    def begin(template):
        asked.append(template)
        return known

    model = Captioner(data.target.size, attention="hard", baseline=True, **SIZES)
    made = captioning("hard", model, data, optimizer=optimizer("adam", 1e-2), steps=2, begin=begin)
    init = quick(made.init)
    first, second = (init(jax.random.key(seed), batch) for seed in (0, 1))
    value, other = first.pop("value"), second.pop("value")
    assert np.any(value["kernel"] != other["kernel"])
    jax.tree.map(np.testing.assert_array_equal, first, known)
    assert jax.tree.map(jnp.shape, asked[0]) == jax.tree.map(jnp.shape, known)
    assert made.carry() == 0 and made.batch_size == 4


def test_the_penalty_is_reduced_as_told(data):
    model, batch = Captioner(data.target.size, **SIZES), next(iter(data.train(0)))
    params = parameters(model, batch["images"], shifted(batch["target"]))
    penalty = {}
    for reduction in ("sum", "mean"):
        options = {"optimizer": optimizer("adam", 1e-2), "doubly_stochastic": 0.1, "reduction": reduction}
        made = captioning("soft", model, data, steps=2, **options)
        penalty[reduction] = quick(made.objective)(params, batch, jax.random.key(0))[1]["doubly_stochastic"]
    assert penalty["sum"] == pytest.approx(9 * penalty["mean"]) and penalty["mean"] > 0.01  # 3 x 3 cells


@pytest.mark.parametrize("attention", ["soft", "marginal", "variational"])
def test_the_objective_follows_from_the_attention(data, attention):
    model = Captioner(data.target.size, attention=attention, **SIZES)
    options = {"doubly_stochastic": 0.1} if attention == "soft" else {}
    made = captioning("other", model, data, optimizer=optimizer("adam", 1e-2), steps=2, seed=5, **options)
    batch = data.shapes()[0]
    names = jax.eval_shape(
        lambda key: made.objective(made.init(key, batch), batch, key)[1],
        jax.random.key(0),
    )
    wanted = {"soft": "doubly_stochastic", "marginal": "token_accuracy", "variational": "divergence"}
    assert wanted[attention] in names and made.carry is None and made.seed == 5

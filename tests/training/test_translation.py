"""Translation with a model whose every answer is known: it copies the source, sharply, and looks where it copies."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from attention_zoo.data.vocabulary import END, PAD, START, UNKNOWN, Characters
from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.search import Decoded
from attention_zoo.training import translation as module
from attention_zoo.training.translation import Translator, translation
from attention_zoo.training.translation_metrics import judge, metrics, text_scores

LETTERS = Characters("abcdeж")
SHARPNESS = 7.0


class Copier(nn.Module):
    """Writes the source again: logits are SHARPNESS for the right symbol and 0 for the others."""

    looks: bool = True
    delay: int = 0  # how far beside the copied position it looks

    def setup(self):
        self.sharpness = self.param("sharpness", nn.initializers.constant(SHARPNESS), ())

    def __call__(self, source, source_lengths, target_inputs, deterministic=True):
        steps = jnp.clip(jnp.arange(target_inputs.shape[1]), 0, source.shape[1] - 1)
        begun = (target_inputs[:, :1] == START)[..., None]  # without START in front it knows nothing
        return self.sharpness * begun * jax.nn.one_hot(source[:, steps], LETTERS.size), None

    def start(self, source, source_lengths):
        return source, jnp.zeros_like(source_lengths)

    def step(self, cache, tokens):
        source, at = cache
        width = source.shape[1]
        symbol = jnp.take_along_axis(source, jnp.clip(at, 0, width - 1)[:, None], 1)[:, 0]
        weights = 0.75 * jax.nn.one_hot(at + self.delay, width) + 0.25 * jax.nn.one_hot(at + self.delay + 1, width)
        alignment = Alignment(weights) if self.looks else None
        return self.sharpness * jax.nn.one_hot(symbol, LETTERS.size), (source, at + 1), alignment


def padded(rows, width):
    return np.array([row + [PAD] * (width - len(row)) for row in rows], np.int32)


def batch_of(pairs, width=7, spans=True):
    """Pairs as one batch; each letter's gold span is the place of the same number in the source."""
    source, target = ([[*LETTERS.encode(text), END] for text in side] for side in zip(*pairs, strict=True))
    batch = {
        "source": padded(source, width),
        "source_lengths": np.array([len(row) for row in source], np.int32),
        "target": padded(target, width),
        "target_lengths": np.array([len(row) for row in target], np.int32),
        "valid": np.array([bool(a) for a, _ in pairs]),
    }
    for name in ("source", "target"):
        batch[name][~batch["valid"]] = PAD
        batch[f"{name}_lengths"][~batch["valid"]] = 0
    if spans:
        letters = np.arange(width) < batch["target_lengths"][:, None] - 1
        batch["spans"] = np.stack([np.arange(width) * letters, (np.arange(width) + 1) * letters], -1).astype(np.int32)
    return batch


class Pairs:
    """The parts of TextData that translation reads: two dev batches of different width, one test batch."""

    source = target = LETTERS
    batch_size, max_source, max_target = 3, 7, 7
    dev = [("abc", "abc"), ("de", "dx"), ("жab", "жab")], [("cadea", "cadea"), ("", ""), ("", "")]

    def split(self, name):
        first, second = self.dev
        return [batch_of(first, 5)] if name == "test" else [batch_of(first, 5), batch_of(second)]

    def references(self, name):
        return [target for pairs in self.dev[: 1 if name == "test" else 2] for source, target in pairs if source]

    def encode_batch(self, texts):
        return batch_of([(text, text) for text in texts], spans=False)


@pytest.fixture(scope="module")
def params():
    batch = batch_of(Pairs.dev[0])
    init = jax.jit(Copier().init)
    return init(jax.random.key(0), batch["source"], batch["source_lengths"], batch["target"])["params"]


@pytest.fixture(scope="module")
def translator():
    """One for all tests that do not look at how often it compiles."""
    return Translator(Copier(), Pairs())


def test_metrics_by_hand(params, translator):
    found = translator.evaluate(params, "dev")
    # 4 rows, one of them (de -> dx, where x is unknown) wrong in one of its 3 tokens; 4 + 3 + 4 + 6 tokens in all.
    assert found["exact_match"] == 3 / 4
    assert found["token_accuracy"] == 16 / 17
    wide = math.log(math.exp(SHARPNESS) + LETTERS.size - 1)
    assert found["perplexity"] == pytest.approx(math.exp((17 * wide - 16 * SHARPNESS) / 17), rel=1e-5)
    assert found["alignment_accuracy"] == 1.0
    assert "bleu" not in found
    # Where the second position is the source's last, the quarter beside it is cut off by the edge of the batch.
    assert found["alignment_entropy"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), rel=0.2)


def test_looking_beside_is_seen(params):
    assert Translator(Copier(delay=1), Pairs()).evaluate(params, "dev")["alignment_accuracy"] == 0.0


def test_a_model_without_attention_has_no_alignment_metrics(params):
    found = Translator(Copier(looks=False), Pairs()).evaluate(params, "dev")
    assert set(found) == {"exact_match", "token_accuracy", "perplexity"}


def test_beam_of_the_sharp_model_finds_the_same(params, translator):
    assert translator.evaluate(params, "dev", beam_size=3) == pytest.approx(translator.evaluate(params, "dev"))


def test_text_scores_carry_their_signature(params):
    found = Translator(Copier(), Pairs(), tokenize="none").evaluate(params, "dev")
    assert "tok:none" in found["bleu_signature"]
    assert "nc:6" in found["chrf_signature"]
    assert 0 < found["chrf"] < 100


def test_any_of_several_references_will_do():
    references = [["9 9 9 9 9", "1 2 3 4 5"], ["6 7 8 9"]]
    assert text_scores(["1 2 3 4 5", "6 7 8 9"], references, "none")["bleu"] == pytest.approx(100)
    assert text_scores(["1 2 3 4 5", "6 7 8 9"], [rows[0] for rows in references], "none")["bleu"] < 60


def test_perfect_text_scores_are_a_hundred():
    found = text_scores(["1 2 3 4 5", "6 7 8 9"], ["1 2 3 4 5", "6 7 8 9"], "none")
    assert found["bleu"] == pytest.approx(100)
    assert found["chrf"] == pytest.approx(100)


def test_lengths_are_written_for_the_test_split_only(params, translator, tmp_path):
    translator.evaluate(params, "dev", folder=tmp_path)
    assert not list(tmp_path.iterdir())
    translator.evaluate(params, "test", folder=tmp_path)
    lengths = json.loads((tmp_path / "lengths.json").read_text())
    assert lengths == {"source_length": [3, 2, 3], "correct": [True, False, True]}


def judged(batch, decoded, losses):
    """Of values that NumPy reads."""
    return jax.device_get(jax.jit(judge)(batch, decoded, losses))


def test_steps_after_the_end_and_filler_rows_do_not_count():
    batch = batch_of([("ab", "ab"), ("", ""), ("cdea", "cdea")], 5)
    tokens = np.array([[*LETTERS.encode("ab"), END], [PAD] * 3, [*LETTERS.encode("c"), END, PAD]])
    weights = np.zeros((3, 3, 5), np.float32)
    weights[:, 0, 0], weights[:, 1, 4], weights[:, 2, 2] = 1, 1, 1
    rows = judged(batch, Decoded(tokens, np.array([3, 0, 2]), np.zeros(3), Alignment(weights)), np.zeros(3))
    assert rows["exact"].tolist() == [True, False, False]
    assert rows["right"].tolist() == [3, 0, 1]
    # Both rows wrote a letter from the right place, and then looked at position 4 for position 1.
    assert rows["pointing"].tolist() == [2, 0, 2]
    assert rows["pointed"].tolist() == [1, 0, 1]


def test_an_unknown_symbol_is_never_right():
    batch = batch_of([("ab", "ax")], 5)
    assert UNKNOWN in batch["target"]
    decoded = Decoded(batch["target"], batch["target_lengths"], np.zeros(1), None)
    rows = judged(batch, decoded, np.zeros(1))
    assert not rows["exact"][0]
    assert rows["right"][0] == 2


def test_writing_on_after_the_target_is_not_exact():
    batch = batch_of([("ab", "ab")], 3)
    for written, exact in (("ab", True), ("abe", False), ("a", False)):
        tokens = np.array([[*LETTERS.encode(written), END] + [PAD] * (5 - len(written))])
        found = judged(batch, Decoded(tokens, np.array([len(written) + 1]), None, None), np.zeros(1))
        assert found["exact"][0] == exact


def test_metrics_weigh_rows_not_batches():
    one = {"exact": np.array([True]), "right": np.array([1]), "tokens": np.array([1]), "loss": np.array([0.0])}
    two = {"exact": np.zeros(3, bool), "right": np.zeros(3), "tokens": np.ones(3), "loss": np.zeros(3)}
    assert metrics([one, two]) == {"exact_match": 0.25, "token_accuracy": 0.25, "perplexity": 1.0}


def test_predictions_warn_and_draw(params, translator, tmp_path):
    found = list(translator.predict(params, ["abc", "a9b€9", "dea", "ea"]))
    assert [prediction.text for prediction in found] == ["abc", "a<unk>b<unk><unk>", "dea", "ea"]
    assert found[0].warnings == found[3].warnings == ()
    assert found[1].warnings == ("'a9b€9' has symbols that were never seen in training: '9', '€'.",)
    found[0].plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_a_prediction_without_attention_has_no_picture(params):
    (found,) = Translator(Copier(looks=False), Pairs()).predict(params, ["abc"])
    assert found.plot is None


def test_examples_are_drawn_with_a_cyrillic_one_first(params, translator, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "save", lambda figure, path: drawn.append(path.name))
    monkeypatch.setattr(module, "draw_alignment", lambda weights, source, target, spans: drawn.append("".join(source)))
    translator.draw(params, tmp_path, count=2)
    assert drawn == ["жab</s>", "alignment_1.png", "abc</s>", "alignment_2.png"]


def test_search_is_compiled_once_a_shape(params, monkeypatch):
    traced = []
    original = module.greedy
    monkeypatch.setattr(module, "greedy", lambda *a, **k: traced.append(k["max_length"]) or original(*a, **k))
    translator = Translator(Copier(), Pairs())
    for _ in range(2):
        translator.evaluate(params, "dev")
    assert traced == [7, 7]


def test_the_experiment_trains_the_model(params):
    made = translation("copy", Copier(), Pairs(), optimizer=optax.sgd(0.1), steps=2, seed=5, patience=3)
    batch = batch_of(Pairs.dev[0])
    assert jax.jit(made.init)(jax.random.key(0), batch) == params
    loss, _ = jax.jit(made.objective)(params, batch, jax.random.key(1))
    assert loss == pytest.approx(math.log(made.evaluate(params, "test")["perplexity"]), rel=1e-5)
    assert (made.name, made.steps, made.seed, made.patience, made.batch_size) == ("copy", 2, 5, 3, 3)

"""Every experiment: its docstring, its size, and two steps through the command line into a prediction."""

import inspect
import json
import math
import re
from functools import partial
from typing import get_args

import jax
import numpy as np
import pytest
from matplotlib.image import imsave

from attention_zoo.data import dates, intents
from attention_zoo.models.caption_attention import ALIGNED
from attention_zoo.models.mechanisms import ALIGNMENTS, PASTS, SCORES
from experiments import classify_intents, mechanisms
from experiments.__main__ import main
from experiments.commands.catalogue import docstring, function, names

# Fewer pairs than a batch holds, and few that are drawn: one shape to compile for training and evaluation. Where
# sequences are reversed those to learn from are short, so that dev and test have one wide shape together.
DATES = "--embedding 5 --batch_size 13 --train_examples 11 --held_out_examples 2 --steps 2 --evaluate_every 2"
REVERSE = DATES.replace("--train_examples 11", "--train_examples 6")
TRANSFORMER = f"{DATES.replace('--embedding 5', '--width 8 --heads 2')} --layers 1 --warmup 0"
EXPERIMENTS = {
    "dates_bahdanau": f"{DATES} --encoder_units 7 --decoder_units 6",
    "dates_fixed_context": f"{DATES} --encoder_units 7 --decoder_units 11 --dates_per_source 2",
    "dates_transformer": f"{TRANSFORMER} --positions relative",
    "dates_luong": f"{DATES} --encoder_units 7 --score dot --input_feeding False",
    "mechanisms": f"{DATES.rsplit(' --', 1)[0]} --encoder_units 3 --past coverage --alignment mocha --guided 1.0",
    "reverse_transformer": f"{TRANSFORMER} --train_length 7 --test_length 23",
    "reverse_luong": f"{REVERSE} --encoder_units 7 --decoder_units 11",
    "reverse_fixed_context": f"{REVERSE} --encoder_units 7 --decoder_units 11 --context_every_step False",
    "translate_files": "--train_tsv pairs.tsv --tokenizer words --embedding 5 --units 7 --batch_size 13 --cell gru "
    "--steps 2 --evaluate_every 2",
}
# What names a class: other metrics, figures and predictions.
ENCODER = "--heads 2 --layers 1 --warmup 0 --steps 2 --evaluate_every 2"
CLASSIFIERS = {
    "classify_intents": f"{ENCODER} --width 8 --sentences_per_template 1",
    "digits_vit": f"{ENCODER} --width 8 --patch 4",
    "embedding_ablation": f"{ENCODER} --embedding one_hot --sentences_per_template 1",
}
# What looks at pictures; where that takes long to compile, at one a batch, as predict does.
HELD_OUT = "--dev_examples 2 --test_examples 3"
SHORT = f"--batch_size 13 {HELD_OUT} --steps 2 --evaluate_every 2"
CAPTION = f"--canvas 32 --units 8 --warmup 0 {SHORT}"
ALONE = CAPTION.replace("--batch_size 13", "--batch_size 1")
GLIMPSE = f"--canvas 24 --digit 12 --units 8 --hidden 7 --glimpses 2 --size 4 --scales 2 {SHORT}"
LOOKERS = {
    "caption_files": f"--folder pictures --side 32 --width 8 --units 8 --channels 1 {SHORT.replace(HELD_OUT, '')}",
    "caption_hard": f"{ALONE} --alignment sparsemax --baseline learned",
    "caption_marginal": f"{ALONE} --best 3 --score location --alignment entmax15",
    "caption_soft": f"{CAPTION} --doubly_stochastic 1.0 --score general --alignment sparsemax",
    "caption_variational": f"{ALONE} --samples 2",
    "glimpse_cluttered": f"{GLIMPSE} --locations random --piece 5",
    "glimpse_large": GLIMPSE.replace(" --hidden 7", "") + " --noise_every 2",
    "glimpse_translated": f"{GLIMPSE} --recipe classic",
}
DATE = "mercredi 13 septembre 2016 €"
INPUTS = {"dates": DATE, "mechanisms": DATE, "reverse": "1 " * 16 + "€", "translate": "ein Wort €"}


def test_mechanisms_offers_every_score_alignment_and_past_of_the_zoo():
    offered = inspect.signature(mechanisms.experiment).parameters
    for name, known in (("score", SCORES), ("alignment", ALIGNMENTS), ("past", PASTS)):
        assert set(get_args(offered[name].annotation)) == set(known)


@pytest.mark.parametrize("name", ["caption_soft", "caption_hard", "caption_marginal"])
def test_captions_offer_every_score_and_the_alignments_that_their_attention_takes(name):
    """Without "tempered", whose temperature is no flag."""
    offered = inspect.signature(function(name)).parameters
    assert get_args(offered["score"].annotation) == tuple(SCORES)
    allowed = ALIGNED[name.removeprefix("caption_")]
    assert get_args(offered["alignment"].annotation) == tuple(kind for kind in allowed if kind != "tempered")


def test_hard_attention_starts_from_a_run_of_the_same_score_and_alignment(tmp_path, monkeypatch, capsys):
    """A run older than these flags had the defaults; another alignment has parameters of the same names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "soft").mkdir()
    line = f"{CAPTION} --start_from soft --workdir run".split()
    for flags, here, sentence in (
        (
            {"alignment": "sparsemax"},
            "",
            'another attention: --alignment is "sparsemax" there and "softmax" here. Give the',
        ),
        (
            {},
            "--score dot --alignment top_k",
            '--score is "additive" there and "dot" here; --alignment is "softmax" there',
        ),
        ({"score": "general"}, "--score general", "soft holds no checkpoints"),
        ({}, "", "soft holds no checkpoints"),
    ):
        config = {"experiment": "caption_soft", "flags": flags, "data": None}
        (tmp_path / "soft" / "config.json").write_text(json.dumps(config))
        assert main(["train", "caption_hard", *line, *here.split()]) == 2
        *before, said = capsys.readouterr().err.splitlines()
        assert sentence in said and all(line.startswith("preparing the data set") for line in before)
    assert [path.name for path in tmp_path.iterdir()] == ["soft"]


@pytest.mark.parametrize(("canvas", "cells"), [(40, 196), (61, 256)])
def test_the_score_location_has_a_weight_for_every_cell(canvas, cells):
    for name in ("caption_soft", "caption_hard", "caption_marginal"):
        made = function(name)(score="location", canvas=canvas, dev_examples=2, test_examples=3)
        shapes = jax.eval_shape(made.init, jax.random.key(0), next(iter(made.data.shapes())))
        assert shapes["score"]["weight"].shape == (128, cells)


def test_every_experiment_is_tried_here():
    assert names() == sorted(EXPERIMENTS | CLASSIFIERS | LOOKERS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps_evaluation_and_prediction(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [f"ein Wort {number}\tone word {number}" for number in range(17)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert main(["train", name, *EXPERIMENTS[name].split()]) == 0
    folder = tmp_path / "runs" / name
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads(capsys.readouterr().out) == summary["metrics"]
    check_summary(name, summary)
    check_files(name, folder, summary)
    (tmp_path / "pairs.tsv").unlink()
    check_predictions(folder, INPUTS[name.split("_")[0]], capsys)
    if name == "reverse_fixed_context":  # one is enough: it compiles the search again
        assert main(["evaluate", str(folder)]) == 0
        assert json.loads(capsys.readouterr().out) == summary["metrics"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_two_steps_of_a_classifier_and_what_it_names(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    buckets = 2 if name == "classify_intents" else 1  # several shapes to compile are tried with one of them
    monkeypatch.setattr(classify_intents, "intents", partial(intents, buckets=buckets))
    assert main(["train", name, *CLASSIFIERS[name].split()]) == 0
    folder = tmp_path / "runs" / name
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads(capsys.readouterr().out) == summary["metrics"]
    assert {"accuracy", "macro_f1", "perplexity"} == summary["metrics"].keys() and summary["steps"] == 2
    assert (folder / "figures" / "attention.png").exists() and (folder / "figures" / "curves.png").exists()
    if name == "digits_vit":
        imsave(tmp_path / "digit.png", np.eye(8), cmap="gray")
        assert main(["predict", str(folder), "digit.png", "--plot", "seen.png"]) == 0
        assert re.fullmatch(r"\d\t0\.\d{3}\n", capsys.readouterr().out) and (tmp_path / "seen.png").exists()
        assert main(["predict", str(folder), "none.png"]) == 2
        assert "none.png cannot be read as a picture" in capsys.readouterr().err
    else:
        assert main(["predict", str(folder), "turn the desk lamp on €"]) == 0
        said = capsys.readouterr()
        assert said.out.startswith("Hass") and "'€'" in said.err


@pytest.mark.parametrize("name", LOOKERS)
def test_two_steps_of_what_looks_at_pictures(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    lines = [f"{number}.png\ta line at {number}" for number in range(17)]
    for number in range(17):
        imsave(tmp_path / "pictures" / f"{number}.png", np.eye(19, k=number), cmap="gray")
    (tmp_path / "pictures" / "captions.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert main(["train", name, *LOOKERS[name].split()]) == 0
    folder = tmp_path / "runs" / name
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads(capsys.readouterr().out) == summary["metrics"] and summary["steps"] == 2
    caption = name.startswith("caption")
    assert {"exact_match", "map_distance"} <= summary["metrics"].keys() or not caption
    assert ("bleu" in summary["metrics"]) == (name == "caption_files")
    assert 0 <= summary["metrics"].get("pointing_accuracy", 0) <= 1
    assert (folder / "figures" / ("caption_1.png" if caption else "glimpses_1.png")).exists()
    measured = '"split": "gradient_variance"' in (folder / "metrics.jsonl").read_text()
    assert measured == ("--noise_every" in LOOKERS[name])
    imsave(tmp_path / "digit.png", np.eye(32 if caption else 24), cmap="gray")
    assert main(["predict", str(folder), "digit.png", "--plot", "seen.png"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 and (tmp_path / "seen.png").exists()
    imsave(tmp_path / "large.png", np.eye(33), cmap="gray")
    assert main(["predict", str(folder), "large.png"]) == (0 if name == "caption_files" else 2)
    assert len(capsys.readouterr().err.splitlines()) == (name != "caption_files")


@pytest.mark.parametrize("name", ["glimpse_cluttered", "glimpse_translated"])
def test_a_learned_baseline_is_there_only_where_locations_are_learnt(name):
    """It would have no loss. (And the noise of a gradient is measured as told.)"""
    sizes = {"recipe": "classic", "batch_size": 3, "dev_examples": 3, "test_examples": 3, "noise_every": 5}
    for locations in ("policy", "random"):
        made = function(name)(locations=locations, **sizes)
        shapes = jax.eval_shape(made.init, jax.random.key(0), next(iter(made.data.shapes())))
        assert ("baseline" in shapes) == ("locator" in shapes) == (locations == "policy") and made.noise_every == 5


@pytest.mark.parametrize("name", ["caption_hard", "caption_variational"])
def test_the_noise_of_captions_is_measured_as_told(name):
    """And not in the two steps above, where one of glimpses compiles it."""
    assert function(name)(noise_every=5, canvas=32, dev_examples=2, test_examples=3).noise_every == 5


def check_summary(name, summary):
    """Name, steps, and the metrics that this experiment has."""
    assert (summary["experiment"], summary["steps"]) == (name, 2)
    assert all(math.isfinite(value) for value in summary["metrics"].values() if not isinstance(value, str))
    assert ("alignment_entropy" in summary["metrics"]) == ("fixed" not in name)
    scored = name.split("_")[0] in ("reverse", "translate")
    assert ("bleu" in summary["metrics"]) == ("bleu_signature" in summary["metrics"]) == scored


def check_files(name, folder, summary):
    """Figures, and the lengths that the metrics were counted from."""
    assert (folder / "figures" / "curves.png").exists()
    assert (folder / "figures" / "alignment_1.png").exists() == ("fixed" not in name)
    assert (folder / "figures" / "attention.png").exists() == ("transformer" in name)
    correct = json.loads((folder / "lengths.json").read_text())["correct"]
    assert sum(correct) == summary["metrics"]["exact_match"] * len(correct)


def check_predictions(folder, text, capsys):
    """Of a whole batch, whose search is compiled: a line each, and the unseen symbol; what is too long is refused."""
    assert main(["predict", str(folder), *[text] * 13]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 13
    assert said.err.startswith(f"{text!r} has symbols that were never seen in training: ")
    assert "'€'" in said.err
    limit = json.loads((folder / "text.json").read_text())["max_source"] - 1
    assert main(["predict", str(folder), "1 " * (limit + 1)]) == 2
    assert f"more than the {limit} that are read" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*EXPERIMENTS, *CLASSIFIERS, *LOOKERS])
def test_the_docstring_has_claim_command_machine_and_score(name):
    text = docstring(name)
    claim = text.split("\n\n")[0]
    assert claim.endswith(".")
    assert f"Command: python -m experiments train {name}" in text
    assert re.search(r"^Machine: .+$", text, flags=re.MULTILINE)
    assert re.search(r"^Reached: .+$", text, flags=re.MULTILINE)


def parameters(name, **flags):
    """How many parameters an experiment's model has by default, with the vocabulary of few examples."""
    made = function(name)(train_examples=211, held_out_examples=7, **flags)
    shapes = jax.eval_shape(made.init, jax.random.key(0), next(iter(made.data.shapes())))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("context_every_step", [True, False])
@pytest.mark.parametrize(
    ("fixed", "attending"),
    [("dates_fixed_context", "dates_bahdanau"), ("reverse_fixed_context", "reverse_luong")],
)
def test_the_fixed_context_has_as_many_parameters(fixed, attending, context_every_step):
    count = parameters(fixed, context_every_step=context_every_step)
    assert count == pytest.approx(parameters(attending), rel=0.01)


def test_the_prototype_size_of_dates_bahdanau():
    data = dates(train_examples=211, dev_examples=7, test_examples=7)
    missing = 159 - data.source.size + 15 - data.target.size  # the whole data set's vocabularies have 159 and 15 ids
    assert parameters("dates_bahdanau") + 48 * missing == pytest.approx(575_000, rel=0.02)


def test_translate_files_needs_files_that_go_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line, sentence in (
        ("", "needs --train_source and --train_target, or --train_tsv"),
        ("--train_source a", "--train_source and --train_target go together"),
        ("--train_tsv a --train_source b", "--train_tsv is given beside --train_source"),
        ("--train_tsv a --dev_target b", "--dev_source and --dev_target go together"),
        ("--train_tsv absent.tsv", "absent.tsv cannot be read"),
    ):
        assert main(["train", "translate_files", *line.split()]) == 2
        said = capsys.readouterr()
        assert sentence in said.err
        assert len(said.err.splitlines()) == 1
    (tmp_path / "pairs.tsv").write_text("one\tun\ntwo\n")
    assert main(["train", "translate_files", "--train_tsv", "pairs.tsv"]) == 2
    assert "pairs.tsv, line 2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        ("reverse_luong", "--score dot", "score 'dot' needs annotations as wide as the decoder; got 14 and 11"),
        ("reverse_luong", "--dropout 1.5", "dropout lies in [0, 1); got 1.5"),
        ("reverse_luong", "--seed 99999999999999999999", "--seed is 99999999999999999999: it must be below 2**63."),
        ("translate_files", "--label_smoothing 2", "label_smoothing lies in [0, 1); got 2.0"),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(name, flags, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("\n".join(f"one {number}\tein {number}" for number in range(17)))
    assert main(["train", name, *EXPERIMENTS[name].split(), *flags.split(), "--workdir", "run"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

"""Command lines to keyword arguments, and the sentence for each way to get one wrong."""

import json
from pathlib import Path
from typing import Literal

import pytest
from tyro.conf import Positional

from attention_zoo.training import UserError
from experiments.commands.flags import check_numbers, from_json, keywords, to_json
from experiments.commands.refusal import nearest


def flags(
    units: int = 3,
    input_feeding: bool = True,
    score: Literal["dot", "general"] = "dot",
    rate: float = 0.5,
    train_source: Path | None = None,
    saved: Path | None = None,
):
    """Flags of every type.

    Args:
        units: how wide it is.
    """


def words(folder: Positional[Path], texts: Positional[tuple[str, ...]], plot: Path | None = None):
    """Words and a flag."""


DEFAULTS = {"units": 3, "input_feeding": True, "score": "dot", "rate": 0.5, "train_source": None}


def given(*line, function=flags):
    return keywords(function, line, "prog", without=["saved"])


def test_nothing_given_is_the_defaults():
    assert given() == DEFAULTS


def test_flags_of_every_type_with_underscores_hyphens_and_equals():
    line = ["--units=7", "--input-feeding", "False", "--score", "general", "--rate", "1e-3", "--train_source", "a/b"]
    found = given(*line)
    assert found == {
        "units": 7,
        "input_feeding": False,
        "score": "general",
        "rate": 1e-3,
        "train_source": Path("a/b"),
    }


def test_words_and_flags_mix():
    expected = {"folder": Path("runs/x"), "texts": ("one", "two words"), "plot": Path("p.png")}
    assert given("runs/x", "one", "two words", "--plot", "p.png", function=words) == expected
    assert given("--plot", "p.png", "runs/x", "one", "two words", function=words) == expected


def test_more_flags_beside_the_parameters():
    found = keywords(flags, ["--workdir", "w"], "prog", more={"workdir": (Path, Path("runs"))}, without=["saved"])
    assert found == {**DEFAULTS, "workdir": Path("w")}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--unit", "7"], "prog: there is no flag --unit (did you mean --units?); --help lists them all."),
        (
            ["--train-sources=x"],
            "prog: there is no flag --train-sources (did you mean --train_source?); --help lists them all.",
        ),
        (["--zzz"], "prog: there is no flag --zzz; --help lists them all."),
        (["--saved", "x"], "prog: there is no flag --saved; --help lists them all."),
        (["extra"], "prog: the word 'extra' is one too many."),
        (["--units", "many"], "prog: Error parsing --units: invalid literal for int() with base 10: 'many'."),
        (["--units", "1.5"], "prog: Error parsing --units: invalid literal for int() with base 10: '1.5'."),
        (["--units"], "prog: Missing value for argument '--units'. Expected 1 values."),
        (["--score", "cat"], "prog: invalid choice 'cat' for argument '--score'. Expected one of ('dot', 'general')."),
    ],
)
def test_each_wrong_line_is_one_sentence(line, sentence):
    with pytest.raises(UserError) as refusal:
        given(*line)
    assert str(refusal.value) == sentence


def test_a_missing_word_is_named():
    with pytest.raises(UserError, match=r"FOLDER|folder"):
        given(function=words)


def test_a_long_message_is_not_broken_into_lines():
    with pytest.raises(UserError) as refusal:
        given("--units", "a" * 120)
    assert "a" * 120 in str(refusal.value).replace(" ", "")
    assert "│" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_help_shows_the_claim_the_flags_and_their_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        keywords(flags, ["--help"], "prog", "What it claims.", without=["saved"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for text in ("What it claims.", "--units INT", "how wide it is. (default: 3)", "--score {dot,general}"):
        assert text in shown
    assert "--saved" not in shown


def test_flags_survive_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = given("--train_source", "here.txt", "--units", "5")
    kept = to_json(before)
    assert kept["train_source"] == str(tmp_path / "here.txt")
    assert from_json(flags, kept) == {**before, "train_source": tmp_path / "here.txt"}


def test_flags_of_another_version_are_refused():
    with pytest.raises(UserError, match="does not have: --heads"):
        from_json(flags, {"units": 3, "heads": 8})


@pytest.mark.parametrize(
    "flag",
    [{"units": "many"}, {"units": None}, {"rate": [1]}, {"score": "cat"}, {"input_feeding": 1}, {"train_source": 3}],
)
def test_values_that_a_flag_cannot_have_are_refused(flag):
    ((name, value),) = flag.items()
    sentence = f"The run's config.json is damaged: --{name} is {json.dumps(value)}, which it cannot be."
    with pytest.raises(UserError) as refusal:
        from_json(flags, flag)
    assert str(refusal.value) == sentence


def test_a_whole_number_is_a_rate_too():
    assert from_json(flags, {"rate": 1, "train_source": None}) == {"rate": 1, "train_source": None}


def test_nearest_words():
    assert nearest("dates_bahdana", ["dates_bahdanau", "dates_luong"]) == " (did you mean dates_bahdanau?)"
    assert nearest("dates_luo", ["dates_luong", "dates_lun"]) == " (did you mean dates_luong or dates_lun?)"
    assert nearest("unit", ["encoder_units", "layers", "decoder_units"], "--") == (
        " (did you mean --encoder_units or --decoder_units?)"
    )
    assert nearest("x", ["dates_luong"]) == nearest("un", ["units_of_it"]) == ""


def sizes(units: int | None = None, layers: int = 2, seed: int = 0, rate: float = 0.5, looks: bool = True):
    """Numbers of every kind."""


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ({"units": 0}, "--units is 0: it must be at least 1."),
        ({"layers": -3}, "--layers is -3: it must be at least 1."),
        ({"seed": -1}, "--seed is -1: it must be at least 0."),
        ({"rate": -0.5}, "--rate is -0.5: it must be finite and not negative."),
        ({"rate": float("nan")}, "--rate is nan: it must be finite and not negative."),
        ({"rate": float("inf")}, "--rate is inf: it must be finite and not negative."),
    ],
)
def test_numbers_out_of_range_are_named(flag, sentence):
    with pytest.raises(UserError) as refusal:
        check_numbers(sizes, flag)
    assert str(refusal.value) == sentence


def test_numbers_in_range_pass():
    check_numbers(sizes, {"units": None, "layers": 1, "seed": 0, "rate": 0.0, "looks": False})

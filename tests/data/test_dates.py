import datetime
import inspect
import io
from contextlib import redirect_stderr, redirect_stdout

import babel.dates
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from attention_zoo.data import dates
from attention_zoo.data.dates import (
    FIRST,
    KEYBOARD,
    LANGUAGES,
    LAST,
    STYLES,
    Dates,
    DatesConfig,
    forms,
    pattern_of,
    write,
    write_all,
)
from experiments import dates_bahdanau

SMALL = {"train_examples": 211, "dev_examples": 23, "test_examples": 19}
days = st.dates(FIRST, LAST)
styles = st.tuples(st.sampled_from(LANGUAGES), st.sampled_from(STYLES))
written = st.tuples(st.sampled_from(forms(LANGUAGES)), st.booleans()).map(lambda form: (*form[0], form[1]))


@pytest.fixture(scope="module")
def small():
    return dates(batch_size=16, **SMALL)


def test_there_are_enough_languages_and_two_more_alphabets():
    assert len({language.split("_")[0] for language in LANGUAGES}) >= 20
    text = "".join(write(FIRST, *form).text for form in forms(LANGUAGES))
    assert any("а" <= letter <= "я" for letter in text)
    assert any("α" <= letter <= "ω" for letter in text)


@given(days, styles)
def test_a_date_is_written_as_babel_writes_it(day, form):
    language, style = form
    assert write(day, language, pattern_of(language, style)).text == babel.dates.format_date(day, style, language)


def test_every_month_and_weekday_is_written_as_babel_writes_it():
    for language in LANGUAGES:
        for style in STYLES:
            pattern = pattern_of(language, style)
            for number in range(0, 366, 3):
                day = datetime.date(2016, 1, 1) + datetime.timedelta(number)
                assert write(day, language, pattern).text == babel.dates.format_date(day, style, language)


@given(days, written)
def test_spans_hold_year_month_and_day(day, form):
    text, spans = write(day, *form)
    year, month, day_text = (text[start:end] for start, end in spans)
    assert year == str(day.year)
    assert int(day_text) == day.day
    locale = babel.Locale.parse(form[0])
    names = [
        locale.months[context][width][day.month]
        for context in ("format", "stand-alone")
        for width in locale.months[context]
    ]
    assert month in names + [name.lower().translate(KEYBOARD) for name in names]


def test_a_date_by_hand():
    pattern = pattern_of("fr", "full")
    assert write(datetime.date(2016, 5, 3), "fr", pattern) == ("mardi 3 mai 2016", ((12, 16), (8, 11), (6, 7)))
    russian = write(datetime.date(2016, 5, 4), "ru", pattern_of("ru", "full"), typed=True)
    assert russian == ("среда, 4 мая 2016 г.", ((13, 17), (9, 12), (7, 8)))


def test_mardi_3_mai_2016_is_a_possible_input():
    assert ("fr", pattern_of("fr", "full")) in forms(LANGUAGES)


def test_no_date_is_written_with_digits_only():
    assert all("MMM" in pattern for _, pattern in forms(LANGUAGES))
    assert ("de", pattern_of("de", "medium")) not in forms(LANGUAGES)


def test_no_text_means_two_dates():
    meaning = {}
    for number in range(366):
        day = datetime.date(2016, 1, 1) + datetime.timedelta(number)
        for form in forms(LANGUAGES):
            for typed in (False, True):
                assert meaning.setdefault(write(day, *form, typed).text, day) == day


@given(st.lists(st.tuples(days, written), min_size=1, max_size=4))
def test_spans_of_several_dates_are_shifted(several):
    example = write_all([day for day, _ in several], [form for _, form in several])
    parts = example["source"].split("; ")
    assert len(parts) == len(several)
    assert example["target"] == " ".join(day.isoformat() for day, _ in several)
    for spans, part, (day, form) in zip(example["spans"], parts, several, strict=True):
        alone = write(day, *form)
        assert part == alone.text
        for (start, end), (start_alone, end_alone) in zip(spans, alone.spans, strict=True):
            assert example["source"][start:end] == part[start_alone:end_alone]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_target_position_points_at_the_text_it_is_written_from(number):
    data = dates(batch_size=16, dates_per_source=number, **SMALL)
    every = np.concatenate([batch["spans"][batch["valid"]] for batch in data.split("dev")])
    for source, text, spans in zip(data.sources("dev"), data.references("dev"), every, strict=True):
        assert len(text) == 11 * number - 1
        for position in range(11 * number):
            start, end = spans[position]
            date, place = divmod(position, 11)
            field = text[11 * date : 11 * date + 10].split("-")
            if place < 4:
                assert source[start:end] == field[0]
            elif 8 <= place < 10:
                assert int(source[start:end]) == int(field[2])
            elif 5 <= place < 7:
                assert any(letter.isalpha() for letter in source[start:end])
                assert source[start - 1] in " .’" or start == 0
            else:
                assert (start, end) == (0, 0)


def test_the_defaults_are_the_data_set_as_it_is_reported_on():
    ours, config = inspect.signature(dates).parameters, DatesConfig()
    theirs = inspect.signature(dates_bahdanau.experiment).parameters
    assert ours["train_examples"].default == config.train_examples == theirs["train_examples"].default
    assert ours["dev_examples"].default == config.dev_examples == theirs["held_out_examples"].default
    assert ours["test_examples"].default == config.test_examples == theirs["held_out_examples"].default


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_day_is_in_two_splits_of_the_data_set_as_it_is_reported_on(number, tmp_path):
    builder = Dates(config=DatesConfig(dates_per_source=number).name, data_dir=tmp_path)
    splits = builder._split_generators(None)
    found = {name: [example["target"] for _, example in examples] for name, examples in splits.items()}
    chosen = {name: {day for target in targets for day in target.split(" ")} for name, targets in found.items()}
    assert len(found["train"]) == 20_000
    assert len(found["dev"]) >= 2_000
    assert len(found["test"]) >= 2_000
    assert not chosen["train"] & chosen["dev"]
    assert not chosen["train"] & chosen["test"]
    assert not chosen["dev"] & chosen["test"]
    if number == 1:
        assert all(len(set(targets)) == len(targets) for targets in found.values())


def test_days_are_used_equally_often_when_there_are_too_few(tmp_path):
    config = DatesConfig(dates_per_source=2, train_examples=7, dev_examples=23, test_examples=19)
    examples = Dates(config=config, data_dir=tmp_path)._split_generators(None)["dev"]
    used = [day for _, example in examples for day in example["target"].split(" ")]
    assert sorted(used.count(day) for day in set(used)) == [2] * 23


def test_the_same_settings_give_the_same_data_anywhere(tmp_path, small):
    again = dates(batch_size=16, data_dir=tmp_path, **SMALL)
    assert again.digest == small.digest
    assert again.references("train") == small.references("train")
    other = dates(batch_size=16, data_dir=tmp_path, data_seed=1, **SMALL)
    assert other.references("train") != small.references("train")


def test_it_is_prepared_once_and_prints_nothing_on_standard_output(tmp_path):
    out, first, second = io.StringIO(), io.StringIO(), io.StringIO()
    with redirect_stdout(out):
        with redirect_stderr(first):
            dates(data_dir=tmp_path, **SMALL)
        written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
        with redirect_stderr(second):
            dates(data_dir=tmp_path, **SMALL)
    assert out.getvalue() == second.getvalue() == ""
    assert first.getvalue().startswith("preparing the data set 'dates', once, in ")
    assert written
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}


def test_the_folder_is_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dates(**SMALL)
    assert list(tmp_path.glob("dates/*/1.0.0/*.array_record*"))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data set dates/.* cannot be prepared in .*file/dates.*: .*Not a directory"):
        dates(data_dir=tmp_path / "file", **SMALL)


def test_every_setting_is_in_the_name():
    changed = [
        {"dates_per_source": 2},
        {"train_examples": 5},
        {"dev_examples": 5},
        {"test_examples": 5},
        {"languages": ("en", "de")},
        {"languages": ("de", "en")},
        {"data_seed": 5},
    ]
    names = {DatesConfig(**setting).name for setting in changed}
    assert len(names | {DatesConfig().name}) == 8
    assert babel.__version__ in DatesConfig().name


def test_tfds_knows_the_builder_by_name():
    assert tfds.builder("dates").builder_config.dates_per_source == 1


def test_languages_can_be_chosen():
    data = dates(languages=("en", "uk"), train_examples=97, dev_examples=7, test_examples=5)
    assert {char for text in data.sources("train") for char in text} <= {
        char for language in ("en", "uk") for form in forms((language,)) for char in every_letter(form)
    }


def every_letter(form):
    year = [datetime.date(2016, 1, 1) + datetime.timedelta(number) for number in range(366)]
    return {char for day in year for typed in (False, True) for char in write(day, *form, typed).text} | set(
        "0123456789"
    )


def test_mixed_writing_is_in_the_data(small):
    texts = small.sources("train")
    lower = [text for text in texts if text == text.lower()]
    assert 0.2 < len(lower) / len(texts) < 0.9
    assert any("\u202f" in text for text in texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ("en", "xx")}, "Babel knows no language 'xx'"),
        ({"languages": ("no language!",)}, "Babel knows no language 'no language!'"),
        ({"languages": ()}, "writes a month as a word"),
        ({"dates_per_source": 0}, "must be at least 1"),
        ({"dev_examples": 0}, "must be at least 1"),
        ({"dev_examples": 60_000, "test_examples": 20_000}, "ask for 80,000 days, and there are 73,049"),
    ],
)
def test_settings_that_make_no_data(settings, message):
    with pytest.raises(ValueError, match=message):
        dates(**settings)


def test_no_source_is_over_the_limit(small):
    longest = max(
        len(write(datetime.date(2016, 1, 1) + datetime.timedelta(n), *f).text)
        for n in range(366)
        for f in forms(LANGUAGES)
    )
    assert longest < small.max_source
    assert small.skipped == {"train": 0, "dev": 0, "test": 0}
    assert np.all([batch["target"].shape[1] == 11 for batch in small.shapes()])

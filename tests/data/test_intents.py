import itertools
import random
import re
from importlib.metadata import version

import hassil
import home_assistant_intents
import pytest

from attention_zoo.data.intents import (
    DOMAINS,
    HOUSEHOLD,
    Grammar,
    Intents,
    IntentsConfig,
    Template,
    draw,
    drawn,
    grammar_of,
    intents,
    parse,
    read,
    sentences,
    templates,
    unambiguous,
)
from attention_zoo.data.labelled import Labelled
from attention_zoo.data.prepare import examples, prepared

GRAMMAR = Grammar(
    {"the": parse("(the|my)"), "turn": parse("(turn|switch)")},
    {"color": [parse("red"), parse("[dark] green")], "name": [parse("lamp")], "light": [parse("lamp"), parse("bulb")]},
)
SMALL = {"languages": ("es", "it"), "sentences_per_template": 1}


@pytest.fixture(scope="module")
def small():
    return intents(batch_size=16, **SMALL)


@pytest.fixture(scope="module")
def stored():
    return prepared(Intents, IntentsConfig(**SMALL), None)


def every(template):
    rng = random.Random(0)
    return {" ".join(draw(parse(template), GRAMMAR, rng).split()) for _ in range(499)}


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("turn on", {"turn on"}),
        ("lamp[s] (on|off)", {"lamp on", "lamps on", "lamp off", "lamps off"}),
        ("[<the>] {name} on", {"the lamp on", "my lamp on", "lamp on"}),
        (
            "<turn> it {color:shade}",
            {f"{a} it {b}" for a in ("turn", "switch") for b in ("red", "green", "dark green")},
        ),
        ("(a;b;[c])", {"a b", "b a", "a b c", "a c b", "b a c", "b c a", "c a b", "c b a"}),
    ],
)
def test_what_a_template_can_say_by_hand(template, texts):
    assert every(template) == texts


@pytest.mark.parametrize("template", ["[<the>] {name} on", "<turn> ([<the>] {name};{color})", "(a|b[c|d]) {light}s"])
def test_a_template_says_what_hassils_own_sampler_lists(template):
    lists = {
        name: hassil.TextSlotList.from_strings(values)
        for name, values in {"color": ["red", "[dark] green"], "name": ["lamp"], "light": ["lamp", "bulb"]}.items()
    }
    rules = {name: hassil.Sentence(expression) for name, expression in GRAMMAR.rules.items()}
    listed = hassil.sample_expression(parse(template), lists, rules)
    assert every(template) == {" ".join(text.split()) for text in listed}


@pytest.mark.parametrize("template", ["<no> {name}", "{no}"])
def test_a_rule_or_list_that_is_not_there(template):
    with pytest.raises(ValueError, match=r"draw: a rule or a list that the language has; got .*'no'"):
        draw(parse(template), GRAMMAR, random.Random(0))


def test_sentences_are_different_bounded_and_use_names_of_their_device():
    template = Template("[<the>] {name} on", "HassTurnOn", ("switch",))
    found = sentences(template, GRAMMAR, 50, random.Random(1))
    assert len(found) == len(set(found)) == 6
    assert set(found) == {f"{the}{name} on" for the in ("", "the ", "my ") for name in ("lamp", "bulb")}
    assert len(sentences(template, GRAMMAR, 5, random.Random(1))) == 5


@pytest.mark.parametrize("language", HOUSEHOLD)
def test_a_language_has_every_rule_list_and_device_that_its_templates_name(language):
    grammar, found = grammar_of(language), templates(language)
    texts = [template.text for template in found]
    texts += home_assistant_intents.get_intents(language)["expansion_rules"].values()
    assert {name for text in texts for name in re.findall("<([^<>]+)>", text)} <= grammar.rules.keys()
    lists = {name for text in texts for name in re.findall("{([^{}:]+)", text)}
    assert lists - grammar.lists.keys() == {"name"}
    assert all(template.domains for template in found if "{name}" in template.text)
    domains = {domain for template in found for domain in template.domains}
    assert {DOMAINS.get(domain, domain) for domain in domains} <= grammar.lists.keys()


@pytest.mark.parametrize("language", HOUSEHOLD)
def test_a_sentence_is_recognised_by_hassil_as_one_of_its_template(language):
    grammar, rng = grammar_of(language), random.Random(7)
    rules = {name: hassil.Sentence(expression) for name, expression in grammar.rules.items()}
    for template in templates(language)[::53]:
        names = [value for domain in template.domains for value in grammar.lists[DOMAINS.get(domain, domain)]]
        lists = {
            name: hassil.TextSlotList(name, [hassil.TextSlotValue(value, None) for value in values])
            for name, values in {**grammar.lists, "name": names}.items()
        }
        for text in sentences(template, grammar, 2, rng):
            assert hassil.is_match(text, hassil.parse_sentence(template.text), lists, rules), (text, template.text)
            assert not hassil.is_match(f"{text} no", hassil.parse_sentence(template.text), lists, rules)


def test_an_example_tells_intent_language_and_template(stored):
    rows = list(examples(stored, "sentences"))
    assert len(rows) == len(templates("es")) + len(templates("it"))
    known = {(f"{language}: {t.text}", t.intent) for language in ("es", "it") for t in templates(language)}
    for row in rows:
        template = row["template"].decode()
        assert (template, row["intent"].decode()) in known
        assert template.startswith(f"{row['language'].decode()}: ")
        assert row["text"].decode() == " ".join(row["text"].decode().split()) != ""


@pytest.mark.parametrize("fold", [0, 1])
def test_no_template_and_no_sentence_is_in_two_splits(fold):
    data = intents(batch_size=16, fold=fold, folds=2, **SMALL)
    splits = [data.raw(name) for name in ("train", "dev", "test")]
    groups = [set(split.groups) for split in splits]
    assert sum(map(len, groups)) == len(set.union(*groups))
    texts = [text.casefold() for split in splits for text in split.texts]
    assert len(texts) == len(set(texts)) > 1200
    assert set(splits[0].labels) == set(data.labels)
    assert data.labels == tuple(sorted(data.labels))
    assert len(data.labels) > 35


def test_folds_test_every_template_once(stored):
    every, _ = unambiguous(read(stored))
    tested = [set(intents(fold=fold, folds=3, **SMALL).raw("test").groups) for fold in range(3)]
    assert not tested[0] & tested[1] and not tested[1] & tested[2] and not tested[0] & tested[2]
    assert len(set.union(*tested)) > 0.95 * len(set(every.groups))


def test_sentences_of_two_intents_are_left_out_by_hand():
    rows = Labelled(["on", "off", "On", "off"], ["x", "y", "z", "y"], ["1", "2", "3", "4"])
    found, notes = unambiguous(rows)
    assert found == Labelled(["off", "off"], ["y", "y"], ["2", "4"])
    assert notes == ["2 of 4 sentences left out, as they stand for two intents"]


def test_what_is_left_out_is_counted(small):
    numbers = [int(re.match(r"(?:\w+: )?(\d+)", note)[1]) for note in small.notes if "repeats" in note or "two" in note]
    across = [int(re.search(r"(\d+) texts that another", note)[1]) for note in small.notes if "repeats" in note]
    kept = sum(len(small.raw(name).texts) for name in ("train", "dev", "test"))
    assert kept + sum(numbers) + sum(across) == len(templates("es")) + len(templates("it"))


def test_the_same_settings_give_the_same_data(small, tmp_path):
    again = intents(batch_size=16, data_dir=tmp_path, **SMALL)
    assert again.digest == small.digest
    assert again.raw("test") == small.raw("test")
    assert intents(batch_size=16, fold=1, **SMALL).raw("test") != small.raw("test")


def test_a_template_is_drawn_alike_whatever_stands_beside_it(stored):
    alone = next(drawn("it", IntentsConfig(languages=("it",), sentences_per_template=1)))
    rows = [row["text"].decode() for row in examples(stored, "sentences") if row["language"] == b"it"]
    assert rows[0] == alone["text"]
    other = itertools.islice(drawn("it", IntentsConfig(languages=("it",), sentences_per_template=1, data_seed=1)), 29)
    assert [row["text"] for row in other] != rows[:29]


def test_every_setting_is_in_the_name():
    changed = [
        {"sentences_per_template": 3},
        {"data_seed": 5},
        {"languages": ("en", "de")},
        {"languages": ("de", "en")},
    ]
    names = {IntentsConfig(**setting).name for setting in changed}
    assert len(names | {IntentsConfig().name}) == 5
    assert version("home-assistant-intents") in IntentsConfig().name
    assert version("hassil") in IntentsConfig().name


def test_other_words_are_other_data(monkeypatch):
    before = IntentsConfig().name
    monkeypatch.setitem(HOUSEHOLD, "en", HOUSEHOLD["en"].replace("phone", "telephone"))
    assert IntentsConfig().name != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ("en", "xx")}, "intents: different languages out of en, de, fr, es, it, nl; got en, xx"),
        ({"languages": ()}, "different languages out of .*; got none"),
        ({"languages": ("en", "en")}, "different languages out of .*; got en, en"),
        ({"sentences_per_template": 0}, "sentences_per_template is 0: it must be at least 1"),
        ({"fold": 5, **SMALL}, "a fold from 0 to folds - 1 and at least 2 folds; got 5 of 5"),
        ({"tokenizer": "bytes", **SMALL}, "there is no tokenizer 'bytes'"),
    ],
)
def test_settings_that_make_no_data(settings, message):
    with pytest.raises(ValueError, match=message):
        intents(**settings)

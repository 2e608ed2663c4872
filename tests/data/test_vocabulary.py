import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_zoo.data.vocabulary import (
    END,
    PAD,
    SPECIALS,
    START,
    UNKNOWN,
    Characters,
    SentencePiece,
    Words,
    fit,
    load,
)

CORPUS = ["the cat sat on the mat 🐈", "das Kätzchen saß auf der Matte 🐈‍⬛", "кот сидел на ковре", "the dog 🐕 sat"]
KINDS = ["characters", "words", "sentencepiece"]


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return fit(request.param, CORPUS, 97)


def test_the_special_ids_are_those_of_the_agreement(tokenizer):
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)
    assert tokenizer.tokens([PAD, START, END, UNKNOWN]) == list(SPECIALS)
    assert min(tokenizer.encode(CORPUS[0])) > UNKNOWN


def test_texts_of_the_corpus_come_back(tokenizer):
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert max(ids) < tokenizer.size
        assert tokenizer.decode(ids) == text


def test_decoding_stops_at_the_end_and_skips_padding(tokenizer):
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode([START, *ids, PAD, END, *ids]) == "the cat"
    assert tokenizer.decode([END]) == ""


def test_there_is_one_label_for_every_id(tokenizer):
    ids = [*tokenizer.encode("the cat"), END, PAD]
    labels = tokenizer.tokens(ids)
    assert len(labels) == len(ids)
    assert labels[-2:] == ["</s>", "<pad>"]
    assert all(isinstance(label, str) for label in labels)


def test_saved_and_loaded_it_reads_alike(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "source.json")
    again = load(tmp_path / "source.json")
    assert type(again) is type(tokenizer)
    assert again.size == tokenizer.size
    assert [again.encode(text) for text in CORPUS] == [tokenizer.encode(text) for text in CORPUS]
    assert not list(tmp_path.glob("*.part"))


def test_fitting_twice_gives_the_same(tokenizer):
    again = fit(tokenizer.kind, CORPUS, 97)
    assert again.to_dict() == tokenizer.to_dict()
    assert getattr(again, "model", None) == getattr(tokenizer, "model", None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_of_10_000_characters_comes_back(kind):
    text = " ".join(["zwölf 🐈‍⬛", "кот"] * 910)[:10_000].strip()
    assert len(text) > 9_990
    tokenizer = fit(kind, [text, "zwölf кот"], 97)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_learns_from_long_lines_too():
    tokenizer = SentencePiece.fit(["ab " * 2_000 + "ж", "ab"], 97)  # its default leaves out lines over 4,192 bytes
    assert tokenizer.unknown("ж") == []


def test_a_special_label_in_a_text_is_ordinary_text(tokenizer):
    again = fit(tokenizer.kind, [*CORPUS, "a </s> b <pad> c < / s p d >"], 97)
    ids = again.encode("a </s> b <pad>")
    assert not {PAD, START, END} & set(ids)
    assert again.decode(ids) == "a </s> b <pad>"


# All that UTF-8 can write, told by category: with st.text() alone hypothesis looks at each code point for a second.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS)
def test_characters_lose_nothing(text):
    tokenizer = Characters.fit([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)


@given(st.lists(TEXTS))
def test_words_come_back_with_single_spaces(texts):
    tokenizer = Words.fit(texts)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == " ".join(text.split())


def test_the_most_frequent_come_first_and_size_bounds_them():
    tokenizer = Words.fit(["b a c c", "b c d"], size=6)
    assert tokenizer.symbols == ("c", "b")
    assert tokenizer.size == 6
    assert tokenizer.encode("c b a") == [4, 5, UNKNOWN]
    assert tokenizer.decode([4, UNKNOWN]) == "c <unk>"


def test_symbols_never_seen_are_told_once_each_in_order():
    assert Characters.fit(["abc"]).unknown("xaybx") == ["x", "y"]
    assert Words.fit(["one two"]).unknown("three one two four three") == ["three", "four"]
    assert SentencePiece.fit(["one two"], 97).unknown("one ж two 🐈 ж") == ["ж", "🐈"]


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("kind", [Characters, Words])
def test_a_size_without_room_for_a_symbol_is_refused(kind, size):
    with pytest.raises(ValueError, match=f"of {size} ids has no room for any symbol beside the 4 special ones"):
        kind.fit(CORPUS, size)


def test_unknown_kind():
    with pytest.raises(ValueError, match="no tokenizer 'bytes': choose one of characters, words, sentencepiece"):
        fit("bytes", CORPUS)


def test_too_few_pieces_for_the_characters_is_one_sentence():
    with pytest.raises(ValueError, match=r"no SentencePiece model of 7 pieces .* 4 texts with .*: ask for more pieces"):
        SentencePiece.fit(CORPUS, 7)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[1]",
        b"{}",
        b'{"kind": "characters"}',
        b'{"kind": "runes", "symbols": []}',
        b'{"kind": "words", "symbols": ["a", "a"]}',
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "source.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"source.json is no vocabulary file"):
        load(path)


def test_a_damaged_or_missing_model_is_one_sentence(tmp_path):
    SentencePiece.fit(CORPUS, 97).save(tmp_path / "source.json")
    (tmp_path / "source.model").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"source.json is no vocabulary file"):
        load(tmp_path / "source.json")
    (tmp_path / "source.model").unlink()
    with pytest.raises(ValueError, match=r"source.model cannot be read: No such file"):
        load(tmp_path / "source.json")
    with pytest.raises(ValueError, match=r"other.json cannot be read: No such file"):
        load(tmp_path / "other.json")


def test_the_file_is_json_in_ascii(tmp_path):
    Words.fit(["кот"]).save(tmp_path / "deep" / "source.json")
    content = (tmp_path / "deep" / "source.json").read_bytes()
    assert content.isascii()
    assert json.loads(content) == {"kind": "words", "symbols": ["кот"]}

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_zoo.data import parallel_text
from attention_zoo.data.parallel import content_digest, hold_out, read_lines, read_pairs
from attention_zoo.data.text import Pairs

SOURCES = [f"the {n} cats" for n in range(41)]
TARGETS = [f"die {n} Katzen" for n in range(41)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else "".join(line + "\n" for line in content).encode())
    return path


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "train.en", SOURCES), write(tmp_path / "train.de", TARGETS)


def test_two_files_become_pairs(files):
    pairs = read_pairs(*files)
    assert pairs == Pairs(SOURCES, TARGETS)


def test_a_tsv_becomes_the_same_pairs(tmp_path):
    rows = [f"{source}\t{target}" for source, target in zip(SOURCES, TARGETS, strict=True)]
    assert read_pairs(write(tmp_path / "train.tsv", rows)) == Pairs(SOURCES, TARGETS)


LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff")  # of all that UTF-8 can write


@given(st.lists(st.text(LETTERS).filter(str.strip), min_size=1))
def test_only_a_line_feed_ends_a_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "text"
    assert read_lines(write(path, lines)) == lines
    assert read_lines(write(path, "\n".join(lines).encode())) == lines  # no line feed at the end
    assert read_lines(write(path, ("\ufeff" + "\r\n".join(lines)).encode())) == lines  # as some editors write


def test_odd_line_separators_inside_a_line_are_text(tmp_path):
    assert read_lines(write(tmp_path / "text", ["one\u2028two\x0bthree\x85four"])) == ["one\u2028two\x0bthree\x85four"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train.en is empty: it should hold one text a line"),
        (b"\n\n", "train.en is empty"),
        (b"one\n\nthree\n", "train.en, line 2: the line is empty"),
        (b"one\n \t\nthree\n", "train.en, line 2: the line is empty"),
        (b"one\ntwo\n\n", "train.en, line 3: the line is empty"),
        (b"one\ntwo \xe9t\xe9\nthree\n", "train.en, line 2: byte 5 is 0xe9, which is no UTF-8 text"),
    ],
)
def test_lines_that_cannot_be_read(files, content, message):
    write(files[0], content)
    with pytest.raises(ValueError, match=message) as error:
        parallel_text(*files)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path, files):
    with pytest.raises(ValueError, match=r"nothing.en cannot be read: No such file"):
        parallel_text(tmp_path / "nothing.en", files[1])
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory"):
        parallel_text(tmp_path, files[1])


def test_unequal_line_counts_tell_both(files):
    write(files[1], TARGETS[:-2])
    with pytest.raises(ValueError, match=r"train.en has 41 lines and .*train.de has 39:"):
        parallel_text(*files)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("two", "line 2: 0 tabs, where one is expected"),
        ("two\tzwei\tdeux", "line 2: 2 tabs, where one is expected"),
        ("\tzwei", "line 2: the source is empty"),
        ("two\t ", "line 2: the target is empty"),
    ],
)
def test_tsv_lines_that_cannot_be_read(tmp_path, row, message):
    path = write(tmp_path / "train.tsv", ["one\teins", row, "three\tdrei"])
    with pytest.raises(ValueError, match=message):
        parallel_text(path)


def test_a_target_without_its_source(files):
    with pytest.raises(ValueError, match="dev_target is given without dev_source"):
        parallel_text(*files, dev_target=files[1])


def test_an_unknown_tokenizer_is_told_before_a_file_is_read(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer 'bytes'"):
        parallel_text(tmp_path / "nothing", tokenizer="bytes")


@pytest.mark.parametrize("tokenizer", ["characters", "words", "sentencepiece"])
def test_any_tokenizer_brings_the_texts_back(files, tokenizer):
    data = parallel_text(*files, tokenizer=tokenizer, vocabulary_size=61, batch_size=7)
    pairs = dict(zip(SOURCES, TARGETS, strict=True))
    for batch in data.split("train"):
        for source, target, valid in zip(batch["source"], batch["target"], batch["valid"], strict=True):
            if valid and tokenizer != "words":  # 61 words do not cover these texts
                assert pairs[data.source.decode(source)] == data.target.decode(target)
    assert data.source.size <= 61
    assert sorted(data.sources("train") + data.sources("dev") + data.sources("test")) == sorted(SOURCES)


def test_one_vocabulary_for_both_sides(files):
    data = parallel_text(*files, tokenizer="words", shared_vocabulary=True)
    assert data.source is data.target
    assert data.source.unknown("the die cats Katzen") == []


def test_given_splits_are_kept(tmp_path, files):
    dev = write(tmp_path / "dev.tsv", ["a cat\teine Katze", "a dog\tein Hund"])
    data = parallel_text(*files, dev_source=dev, test_source=files[0], test_target=files[1], tokenizer="words")
    assert sorted(data.sources("dev")) == ["a cat", "a dog"]
    assert sorted(data.sources("train")) == sorted(data.sources("test")) == sorted(SOURCES)
    assert data.notes == []


def test_what_is_held_out_is_stated(files):
    data = parallel_text(*files, tokenizer="words")
    assert data.notes == [
        "dev: 2 of 41 training pairs held out, as no dev was given",
        "test: 2 of 41 training pairs held out, as no test was given",
    ]


def test_which_pairs_are_held_out_is_the_same_in_every_process():
    splits, _ = hold_out({"train": Pairs(SOURCES, TARGETS)})  # by hand: sorted by sha256("dev the 25 cats"), ...
    assert splits["dev"].sources == ["the 25 cats", "the 32 cats"]
    assert splits["test"].sources == ["the 5 cats", "the 39 cats"]


def test_the_vocabulary_comes_from_train_alone(files):
    data = parallel_text(*files, tokenizer="words")
    held_out = data.sources("dev") + data.sources("test")
    assert {word for text in held_out for word in data.source.unknown(text)} == {text.split()[1] for text in held_out}


@given(st.lists(st.sampled_from([f"source {n}" for n in range(31)]), min_size=1, max_size=200), st.randoms())
def test_held_out_pairs_share_no_source_with_train(sources, random):
    pairs = Pairs(sources, [f"target {row}" for row in range(len(sources))])
    if len(set(sources)) < 3:
        with pytest.raises(ValueError, match=r"too few different sources to hold out a (dev|test) split"):
            hold_out({"train": pairs})
        return
    splits, _ = hold_out({"train": pairs})
    every = sorted(pair for part in splits.values() for pair in zip(part.sources, part.targets, strict=True))
    assert every == sorted(zip(pairs.sources, pairs.targets, strict=True))
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not set(splits[one].sources) & set(splits[other].sources)
    shuffled = random.sample(list(zip(pairs.sources, pairs.targets, strict=True)), len(sources))
    again, _ = hold_out({"train": Pairs(*map(list, zip(*shuffled, strict=True)))})
    assert sorted(again["dev"].targets) == sorted(splits["dev"].targets)


def test_a_changed_file_is_never_read_from_old_data(tmp_path, files):
    first = parallel_text(*files, tokenizer="words", data_dir=tmp_path / "data")
    same = parallel_text(*files, tokenizer="words", data_dir=tmp_path / "data")
    write(files[1], [*TARGETS[:-1], "die 40 Hunde"])
    changed = parallel_text(*files, tokenizer="words", data_dir=tmp_path / "data")
    assert first.digest == same.digest != changed.digest
    texts = [text for name in ("train", "dev", "test") for text in changed.references(name)]
    assert "die 40 Hunde" in texts
    assert len(list((tmp_path / "data" / "parallel_text").glob("*/1.0.0"))) == 2


def test_the_digest_of_contents_knows_sides_and_splits():
    contents = [
        {"train": Pairs(["a", "b"], ["c", "d"])},
        {"train": Pairs(["a"], ["b", "c", "d"])},
        {"train": Pairs(["a", "b"], ["d", "c"])},
        {"train": Pairs(["a"], ["c"]), "dev": Pairs(["b"], ["d"])},
    ]
    assert len({content_digest(content) for content in contents}) == 4


def test_over_long_pairs_are_counted(files):
    write(files[0], [*SOURCES[:-1], "very " * 50 + "long"])
    data = parallel_text(*files, tokenizer="words", max_source=20)
    assert sum(data.skipped.values()) == 1
    assert any("1 of" in note and "over 19 source" in note for note in data.notes)

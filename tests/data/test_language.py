import json

import grain
import numpy as np
import pytest

from attention_zoo.data.language import LanguageData, plain_text, read_texts
from attention_zoo.data.vocabulary import END, PAD, START, Characters, Words

LETTERS = Characters("abcdefg")


def texts(number, longest, seed=0):
    """Different texts of the letters a to g."""
    rng = np.random.default_rng(seed)
    found = {"".join(rng.choice(list("abcdefg"), rng.integers(3, longest))): None for _ in range(3 * number)}
    return list(found)[:number]


def make(train=61, dev=13, longest=17, batch_size=3, width=31):
    splits = {"train": texts(train, longest), "dev": texts(dev, longest, seed=1)}
    return LanguageData(splits, LETTERS, batch_size=batch_size, width=width)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def unpack(batches):
    """The pieces of the batches: (tokens, targets), after a look at their positions."""
    found = []
    for batch in batches:
        for row, numbers in enumerate(batch["segments"]):
            for number in range(1, numbers.max() + 1):
                inside = numbers == number
                assert batch["positions"][row][inside].tolist() == list(range(inside.sum()))
                found.append((batch["tokens"][row][inside].tolist(), batch["targets"][row][inside].tolist()))
    return found


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else "".join(line + "\n" for line in content).encode())
    return path


def test_batches_by_hand():
    a, b, c = LETTERS.encode("abc")
    data = LanguageData({"train": ["ab", "c", "abcab"]}, LETTERS, batch_size=2, width=5)
    # "abcab" is read as six tokens and cut after five, its END is left alone; START c and START a b share a row.
    first, last = data.split("train")
    expected = {
        "tokens": [[START, a, b, c, a], [START, c, START, a, b]],
        "targets": [[a, b, c, a, b], [c, END, a, b, END]],
        "segments": [[1, 1, 1, 1, 1], [1, 1, 2, 2, 2]],
        "positions": [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]],
        "mask": [[True] * 5, [True] * 5],
        "valid": [True, True],
    }
    assert {name: array.tolist() for name, array in first.items()} == expected
    empty = [0] * 5
    expected = {
        "tokens": [[b, PAD, PAD, PAD, PAD], empty],
        "targets": [[END, PAD, PAD, PAD, PAD], empty],
        "segments": [[1, 0, 0, 0, 0], empty],
        "positions": [empty, empty],
        "mask": [[True, False, False, False, False], [False] * 5],
        "valid": [True, False],
    }
    assert {name: array.tolist() for name, array in last.items()} == expected
    assert data.notes == [
        "train: 1 of 3 texts cut, over 4 tokens",
        "train: 4 sequences packed into 3 rows of 5 places, 45.0% of the places in its batches are padding",
    ]


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_text_is_read_once_an_epoch(epoch):
    data = make()
    count = data.packed("train").per_epoch
    pieces = unpack(take(iter(data.train(seed=3)), (epoch + 1) * count)[epoch * count :])
    for tokens, targets in pieces:
        assert tokens[0] == START
        assert targets == [*tokens[1:], END]  # of the same text: none crosses into another segment
    assert sorted(LETTERS.decode(targets) for _, targets in pieces) == sorted(texts(61, 17))


def test_a_long_text_is_predicted_whole_and_once():
    long = " ".join(f"word{number}" for number in range(211))  # all different: a piece tells where it goes on
    words = Words.fit([long])
    data = LanguageData({"train": [long]}, words, batch_size=3, width=31)
    pieces = unpack(data.split("train"))
    goes_on = {tokens[0]: targets for tokens, targets in pieces}
    read = goes_on[START]
    while read[-1] != END:
        read = read + goes_on[read[-1]]
    assert read == [*words.encode(long), END]
    assert sum(len(targets) for _, targets in pieces) == len(read)
    assert all(targets[:-1] == tokens[1:] for tokens, targets in pieces)


def test_the_mask_is_where_the_targets_are():
    for batch in make().split("train"):
        assert (batch["mask"] == (batch["targets"] != PAD)).all()
        assert (batch["mask"] == (batch["tokens"] != PAD)).all()
        assert (batch["mask"] == (batch["segments"] != 0)).all()
        assert (batch["mask"].any(axis=1) == batch["valid"]).all()


def test_a_batch_is_as_agreed_and_as_told():
    data = make()
    assert isinstance(data.train(0), grain.IterDataset)
    (blank,) = data.shapes()
    for batch in take(iter(data.train(0)), 13):
        assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {n: (a.shape, a.dtype) for n, a in blank.items()}
    assert not any(array.any() for array in blank.values())
    types = {"tokens": "int32", "targets": "int32", "segments": "int32", "positions": "int32"}
    assert {n: a.dtype.name for n, a in blank.items()} == {**types, "mask": "bool", "valid": "bool"}
    assert {array.shape for name, array in blank.items() if name != "valid"} == {(3, 31)}


@pytest.mark.parametrize("done", [0, 1, 8, 13])
def test_an_iterator_goes_on_exactly_where_it_was(done):
    iterator = iter(make().train(seed=3))
    take(iterator, done)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 11)
    again = iter(make().train(seed=3))
    again.set_state(state)
    same(take(again, 11), expected)
    assert any((one["tokens"] != other["tokens"]).any() for one, other in zip(expected, take(again, 11), strict=True))


def test_processes_share_a_batch():
    data = make(batch_size=6)
    whole = take(iter(data.train(seed=1)), 9)
    shares = [take(iter(data.train(1, index, 2)), 9) for index in range(2)]
    same([{name: np.concatenate([s[step][name] for s in shares]) for name in whole[0]} for step in range(9)], whole)
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be shared by 4 processes"):
        data.train(1, 0, 4)


def test_little_is_padding():
    data = make(train=499, longest=61, batch_size=4, width=128)
    batches = take(iter(data.train(0)), data.packed("train").per_epoch)
    padding = 1 - sum(batch["mask"].sum() for batch in batches) / sum(batch["mask"].size for batch in batches)
    assert data.packed("train").waste == pytest.approx(padding)
    assert padding < 0.1


def test_empty_texts_are_left_out_and_counted():
    words = Words.fit(["one two"])
    data = LanguageData({"train": ["one", " ", "", "two"]}, words, batch_size=2, width=5)
    assert data.notes[0] == "train: 2 of 4 texts left out, empty"
    assert sorted(words.decode(targets) for _, targets in unpack(data.split("train"))) == ["one", "two"]
    with pytest.raises(ValueError, match="dev: all 2 texts are empty"):
        LanguageData({"dev": ["", " "]}, words, batch_size=2, width=5)


def test_a_saved_folder_reads_texts_the_same_way(tmp_path):
    data = make()
    data.save(tmp_path)
    again = LanguageData.load(tmp_path)
    assert again.vocabulary.encode("gab") == LETTERS.encode("gab")
    assert (again.batch_size, again.width) == (3, 31)
    with pytest.raises(ValueError, match="there is no split 'train': there is none at all"):
        again.train(0)


@pytest.mark.parametrize("content", ["", "[]", '{"width": 5}', '{"width": "x", "batch_size": 2}', '{"a": 1}'])
def test_a_damaged_folder_is_one_sentence(tmp_path, content):
    make().save(tmp_path)
    (tmp_path / "language.json").write_text(content)
    with pytest.raises(ValueError, match=r"language.json is damaged or was not written by this program"):
        LanguageData.load(tmp_path)
    (tmp_path / "language.json").unlink()
    with pytest.raises(ValueError, match=r"language.json cannot be read: No such file"):
        LanguageData.load(tmp_path)


def test_the_digest_changes_with_the_data_only():
    others = {make(train=59).digest, make(batch_size=4).digest, make(width=32).digest, make(longest=13).digest}
    assert make().digest == make().digest
    assert len(others | {make().digest}) == 5


@pytest.mark.parametrize("setting", ["batch_size", "width"])
def test_settings_below_one(setting):
    with pytest.raises(ValueError, match=f"{setting} is 0: it must be at least 1"):
        make(**{setting: 0})


def test_only_a_line_feed_ends_a_line_and_blank_ones_are_passed_over(tmp_path):
    path = write(tmp_path / "text", "\ufeffone\r\n\r\ntwo\u2028three\n \t\n\nfour".encode())
    assert read_texts(path) == ["one", "two\u2028three", "four"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train.txt is empty: it should hold one text a line"),
        (b"\n \n", "train.txt is empty"),
        (b"one\ntwo \xe9t\xe9\nthree\n", "train.txt, line 2: byte 5 is 0xe9, which is no UTF-8 text"),
        (b"\xff", "train.txt, line 1: byte 1 is 0xff"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        plain_text(write(tmp_path / "train.txt", content))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_unknown_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.txt cannot be read: No such file"):
        plain_text(tmp_path / "nothing.txt")
    with pytest.raises(ValueError, match="no tokenizer 'bytes'"):
        plain_text(tmp_path / "nothing.txt", tokenizer="bytes")


@pytest.mark.parametrize("tokenizer", ["characters", "words", "sentencepiece"])
def test_a_file_becomes_data_with_any_tokenizer(tmp_path, tokenizer):
    lines = [f"the {number} cats" for number in range(41)]
    path = write(tmp_path / "train.txt", lines)
    data = plain_text(path, tokenizer=tokenizer, vocabulary_size=61, batch_size=2, width=40)
    assert data.notes[:2] == [
        "dev: 2 of 41 training texts held out, as no dev was given",
        "test: 2 of 41 training texts held out, as no test was given",
    ]
    found = [data.vocabulary.decode(t) for name in ("train", "dev", "test") for _, t in unpack(data.split(name))]
    assert len(found) == 41
    if tokenizer != "words":  # whose vocabulary comes from train alone
        assert sorted(found) == sorted(lines)


def test_given_splits_are_kept_and_a_changed_file_is_other_data(tmp_path):
    files = {name: write(tmp_path / name, texts(7, 11, seed)) for seed, name in enumerate(("train", "dev", "test"))}
    settings = {"tokenizer": "characters", "width": 20, "data_dir": tmp_path / "data"}
    first = plain_text(**files, **settings)
    assert sorted(first.vocabulary.decode(t) for _, t in unpack(first.split("dev"))) == sorted(texts(7, 11, 1))
    write(files["test"], ["gag"])
    changed = plain_text(**files, **settings)
    assert changed.digest != first.digest
    assert [changed.vocabulary.decode(t) for _, t in unpack(changed.split("test"))] == ["gag"]

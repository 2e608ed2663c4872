import grain
import numpy as np
import pytest

from attention_zoo.data.labelled import Labelled, LabelledText, labelled_text, split_groups, without_repeats
from attention_zoo.data.vocabulary import END, START, Characters, SentencePiece

LABELS = ("deep", "high", "middle")


def make(train=61, dev=13, batch_size=6, longest=17, **settings) -> LabelledText:
    rng = np.random.default_rng(0)

    def rows(number):
        texts = ["".join(rng.choice(list("abcdef"), rng.integers(1, longest))) for _ in range(number)]
        labels = [LABELS[ord(text[0]) % 3] for text in texts]
        return Labelled(texts, labels, [f"group of {text[0]}" for text in texts])

    limits = {"max_length": 20, **settings}
    return LabelledText(
        {"train": rows(train), "dev": rows(dev)}, Characters("abcdef"), LABELS, batch_size=batch_size, **limits
    )


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_by_hand():
    data = LabelledText(
        {"train": Labelled(["ba", "c"], ["high", "deep"])},
        Characters("abc"),
        LABELS,
        batch_size=3,
        max_length=7,
        buckets=1,
    )
    (batch,) = data.split("train")
    np.testing.assert_array_equal(batch["tokens"], [[1, 5, 4, 2], [1, 6, 2, 0], [0, 0, 0, 0]])
    assert batch["lengths"].tolist() == [4, 3, 0]
    assert batch["labels"].tolist() == [1, 0, 0]
    assert batch["valid"].tolist() == [True, True, False]


def test_a_batch_is_as_agreed():
    data = make()
    batch = next(iter(data.train(seed=3)))
    dtypes = {"tokens": "int32", "lengths": "int32", "labels": "int32", "valid": "bool"}
    assert {name: array.dtype.name for name, array in batch.items()} == dtypes
    assert batch["labels"].shape == batch["lengths"].shape == batch["valid"].shape == (6,)
    for ids, length, label in zip(batch["tokens"], batch["lengths"], batch["labels"], strict=True):
        assert (ids[0], ids[length - 1]) == (START, END)
        assert not ids[length:].any()
        assert data.labels[label] == LABELS[ord(data.tokenizer.decode(ids)[0]) % 3]
    assert batch["valid"].all()


def test_an_iterator_goes_on_exactly_where_it_was():
    iterator = iter(make().train(seed=3))
    assert isinstance(make().train(3), grain.IterDataset)
    take(iterator, 13)
    state = iterator.get_state()
    expected = take(iterator, 23)
    again = iter(make().train(seed=3))
    again.set_state(state)
    same(take(again, 23), expected)


def test_an_epoch_of_train_sees_every_text():
    data = make(train=61, batch_size=6)
    seen = [data.tokenizer.decode(ids) for batch in take(iter(data.train(seed=1)), 11) for ids in batch["tokens"]]
    assert set(seen) == set(data.raw("train").texts)
    assert len(seen) - 61 == 5


def test_shapes_are_exactly_those_that_train_gives():
    data = make(train=97)
    given = {batch["tokens"].shape for batch in take(iter(data.train(seed=1)), 51)}
    zeros = data.shapes()
    assert {batch["tokens"].shape for batch in zeros} == given
    example = next(iter(data.train(0)))
    for batch in zeros:
        assert {name: array.dtype for name, array in batch.items()} == {n: a.dtype for n, a in example.items()}
        assert not any(array.any() for array in batch.values())


def test_a_split_is_read_once_and_raw_tells_its_texts_labels_and_groups_in_its_order():
    data = make(dev=13, batch_size=6)
    batches = list(data.split("dev"))
    assert [int(batch["valid"].sum()) for batch in batches] == [6, 6, 1]
    ids = np.concatenate([batch["labels"][batch["valid"]] for batch in batches])
    texts = [data.tokenizer.decode(row) for batch in batches for row in batch["tokens"][batch["valid"]]]
    raw = data.raw("dev")
    assert raw.texts == texts
    assert raw.labels == [LABELS[label] for label in ids]
    assert raw.groups == [f"group of {text[0]}" for text in texts]
    same(list(data.split("dev")), batches)
    with pytest.raises(ValueError, match="no split 'test': there is train, dev"):
        data.raw("test")


def test_processes_share_a_batch():
    data = make(batch_size=6)
    whole = take(iter(data.train(seed=1)), 13)
    shares = [take(iter(data.train(1, index, 2)), 13) for index in range(2)]
    for step, batch in enumerate(whole):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([share[step][name] for share in shares]), batch[name])
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be shared by 4 processes"):
        data.train(1, 0, 4)


def test_texts_over_the_limit_or_empty_are_left_out_and_counted():
    rows = Labelled(["abc", "", "ab", "abcd"], ["high", "deep", "deep", "high"], ["p", "q", "r", "s"])
    data = LabelledText({"train": rows}, Characters("abcd"), LABELS, batch_size=2, max_length=5, buckets=1)
    assert data.raw("train") == Labelled(["abc", "ab"], ["high", "deep"], ["p", "r"])
    assert data.skipped == {"train": 2}
    assert data.notes == ["train: 2 of 4 texts left out, empty or over 3 tokens"]
    with pytest.raises(ValueError, match="train: all 4 texts are empty or over 0 tokens"):
        LabelledText({"train": rows}, Characters("abcd"), LABELS, batch_size=2, max_length=2)


def test_a_label_that_is_not_among_the_names():
    with pytest.raises(ValueError, match="train has labels that are none of the 3: green, low"):
        LabelledText(
            {"train": Labelled(["a"] * 3, ["low", "high", "green"])},
            Characters("a"),
            LABELS,
            batch_size=2,
            max_length=5,
        )


@pytest.mark.parametrize("setting", ["batch_size", "max_length", "buckets"])
def test_settings_below_one(setting):
    with pytest.raises(ValueError, match=f"{setting} is 0: it must be at least 1"):
        make(**{setting: 0})


def test_longer_texts_of_dev_have_a_shape_of_their_own():
    rows = {"train": Labelled(["a", "aa"], ["deep"] * 2), "dev": Labelled(["a" * 11, "a"], ["deep"] * 2)}
    data = LabelledText(rows, Characters("a"), LABELS, batch_size=2, max_length=17)
    assert {batch["tokens"].shape for batch in data.shapes()} == {(2, 4)}
    assert [batch["tokens"].shape for batch in data.split("dev")] == [(2, 13)]
    assert data.encode_batch(["aaa"])["tokens"].shape == (1, 13)


def test_inputs_that_cannot_be_read():
    data = make()
    with pytest.raises(ValueError, match="input 2 is empty"):
        data.encode_batch(["a", ""])
    with pytest.raises(ValueError, match="input 1 has 19 tokens, more than the 18 that are read"):
        data.encode_batch(["a" * 19])
    assert data.encode_batch(["a" * 18])["tokens"].shape == (1, 20)


def test_a_saved_folder_reads_inputs_the_same_way_and_names_labels(tmp_path):
    data = make()
    data.save(tmp_path)
    again = LabelledText.load(tmp_path)
    same([again.encode_batch(["abc", "fx"])], [data.encode_batch(["abc", "fx"])])
    assert (again.labels, again.batch_size, again.max_length) == (LABELS, 6, 20)
    assert {batch["tokens"].shape for batch in again.shapes()} >= {batch["tokens"].shape for batch in data.shapes()}
    assert all(not array.any() for batch in again.shapes() for array in batch.values())
    with pytest.raises(ValueError, match="no split 'train': there is none at all"):
        again.train(0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"shapes": [[1]]}', '{"shapes": [], "batch_size": "x"}'])
def test_a_damaged_folder_is_one_sentence(tmp_path, content):
    make().save(tmp_path)
    (tmp_path / "labelled.json").write_text(content)
    with pytest.raises(ValueError, match=r"labelled.json is damaged or was not written by this program"):
        LabelledText.load(tmp_path)
    (tmp_path / "labelled.json").unlink()
    with pytest.raises(ValueError, match=r"labelled.json cannot be read: No such file"):
        LabelledText.load(tmp_path)


def test_any_tokenizer_is_made_from_train_and_saved(tmp_path):
    splits = {"train": Labelled(["one cat", "two cats"], ["a", "b"]), "dev": Labelled(["three dogs"], ["a"])}
    kinds = {"words": "one cat", "characters": "one cat", "sentencepiece": "one cat"}
    for kind, text in kinds.items():
        data = labelled_text(splits, ["a", "b"], tokenizer=kind, vocabulary_size=19, max_length=None, batch_size=2)
        assert data.tokenizer.unknown(text) == []
        assert data.tokenizer.unknown("dogs") != []
        data.save(tmp_path / kind)
        assert LabelledText.load(tmp_path / kind).tokenizer.encode(text) == data.tokenizer.encode(text)
    assert isinstance(LabelledText.load(tmp_path / "sentencepiece").tokenizer, SentencePiece)


def test_the_digest_changes_with_the_data_only():
    assert make().digest == make().digest
    relabelled = LabelledText(
        {"train": make().raw("train"), "dev": make().raw("dev")},
        Characters("abcdef"),
        (*LABELS, "none"),
        batch_size=6,
        max_length=20,
    )
    others = {make(train=62).digest, make(batch_size=4).digest, make(max_length=21).digest, make(buckets=2).digest}
    assert len(others | {make().digest, relabelled.digest}) == 6


def grouped(sizes):
    """`sizes[label]` groups of two rows each."""
    rows = [
        (f"{label}{number}{row}", label, f"{label}{number}")
        for label in sizes
        for number in range(sizes[label])
        for row in "xy"
    ]
    return Labelled(*([row[column] for row in rows] for column in range(3)))


def test_every_group_is_in_one_split_and_tested_in_one_fold():
    rows = grouped({"a": 23, "b": 7, "c": 11})
    tested = []
    for fold in range(5):
        splits, notes = split_groups(rows, fold, 5)
        assert notes == []
        groups = {name: set(split.groups) for name, split in splits.items()}
        assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 41
        assert sorted(text for split in splits.values() for text in split.texts) == sorted(rows.texts)
        assert set(splits["train"].labels) == set(splits["test"].labels) == {"a", "b", "c"}
        assert all(
            label == text[0] for split in splits.values() for text, label in zip(split.texts, split.labels, strict=True)
        )
        assert len(groups["test"]) in (8, 9)
        assert len(groups["dev"]) in (4, 5)
        tested += groups["test"]
    assert sorted(tested) == sorted(set(rows.groups))


def test_folds_follow_from_the_seed_alone():
    rows = grouped({"a": 23, "b": 7})
    turned = rows.take(range(len(rows.texts))[::-1])
    test = set(split_groups(rows, 0, 5)[0]["test"].texts)
    assert set(split_groups(turned, 0, 5)[0]["test"].texts) == test
    assert set(split_groups(rows, 0, 5, seed=1)[0]["test"].texts) != test


def test_a_label_with_too_few_groups_is_kept_in_train_and_counted():
    rows = grouped({"a": 1, "b": 2, "c": 5})
    noted = []
    for fold in range(2):
        splits, notes = split_groups(rows, fold, 2)
        assert set(splits["train"].labels) == {"a", "b", "c"}
        assert set(splits["test"].labels) == {"b", "c"}
        noted += notes
    kept = "labels with too few groups are kept in train"
    assert noted == [f"2 {kept}: a, b", f"1 {kept}: a"]


def test_a_label_whose_groups_all_count_under_another_is_trained_on_too():
    rows = Labelled(list("pqrstu"), ["a", "a", "a", "z", "a", "a"], ["1", "2", "3", "3", "4", "5"])
    for fold in range(5):
        splits, _ = split_groups(rows, fold, 5)
        assert set(splits["train"].labels) == {"a", "z"}
        assert not set(splits["train"].groups) & set(splits["test"].groups)


def test_a_fold_that_is_not_there():
    for fold, folds in ((5, 5), (-1, 5), (0, 1)):
        with pytest.raises(ValueError, match=f"split_groups: a fold from 0 .*; got {fold} of {folds}"):
            split_groups(grouped({"a": 3}), fold, folds)


def test_repeats_are_left_out_and_counted_by_hand():
    splits = {
        "train": Labelled(["a", "A", "b"], ["1", "1", "2"]),
        "dev": Labelled(["b", "c", "d"], ["2", "3", "4"]),
        "test": Labelled(["c", "B", "e", "E", "c"], ["3", "2", "5", "5", "3"]),
    }
    found, notes = without_repeats(splits)
    assert {name: rows.texts for name, rows in found.items()} == {"train": ["a", "b"], "dev": ["d"], "test": ["c", "e"]}
    assert found["test"].labels == ["3", "5"]
    assert notes == [
        "train: 1 repeats left out, and 0 texts that another split has",
        "test: 2 repeats left out, and 1 texts that another split has",
        "dev: 0 repeats left out, and 2 texts that another split has",
    ]

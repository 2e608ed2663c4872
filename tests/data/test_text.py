from pathlib import Path

import grain
import numpy as np
import pytest

from attention_zoo.data.text import Pairs, TextData
from attention_zoo.data.vocabulary import END, Characters, SentencePiece, Words


def make(train=61, dev=13, batch_size=6, longest=17, **settings) -> TextData:
    rng = np.random.default_rng(0)

    def pairs(number):
        texts = ["".join(rng.choice(list("abcdef"), rng.integers(1, longest))) for _ in range(number)]
        return Pairs(texts, [text[::-1] for text in texts])

    splits = {"train": pairs(train), "dev": pairs(dev)}
    vocabulary = Characters("abcdef")
    limits = {"max_source": 20, "max_target": 20, **settings}
    return TextData(splits, vocabulary, vocabulary, batch_size=batch_size, **limits)


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_is_as_agreed():
    data = make()
    batch = next(iter(data.train(seed=3)))
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "source": "int32",
        "source_lengths": "int32",
        "target": "int32",
        "target_lengths": "int32",
        "valid": "bool",
    }
    for ids, length, target, target_length in zip(*list(batch.values())[:4], strict=True):
        assert ids[length - 1] == target[target_length - 1] == END
        assert not ids[length:].any()
        assert not target[target_length:].any()
        assert data.target.decode(target) == data.source.decode(ids)[::-1]
    assert batch["valid"].all()


def test_train_is_a_grain_data_set_that_never_ends():
    data = make()
    assert isinstance(data.train(0), grain.IterDataset)
    assert len(take(iter(data.train(0)), 100)) == 100


@pytest.mark.parametrize("done", [0, 1, 4, 10, 11, 12, 37])
def test_an_iterator_goes_on_exactly_where_it_was(done):
    data = make()
    iterator = iter(data.train(seed=3))
    take(iterator, done)
    state = iterator.get_state()
    expected = take(iterator, 23)
    again = iter(make().train(seed=3))
    again.set_state(state)
    same(take(again, 23), expected)


def test_a_state_restored_into_a_used_iterator_wins():
    iterator = iter(make().train(seed=3))
    state = iterator.get_state()
    first = take(iterator, 15)
    iterator.set_state(state)
    same(take(iterator, 15), first)


def test_an_epoch_of_train_sees_every_pair():
    data = make(train=61, batch_size=6)
    seen = [
        data.source.decode(ids) for batch in take(iter(data.train(seed=1)), 11) for ids in batch["source"]
    ]  # 11 batches of 6 for 61 pairs
    assert set(seen) == set(data.sources("train"))
    assert len(seen) - 61 == 5


def test_shapes_are_exactly_those_that_train_gives():
    data = make(train=97, buckets=4)
    given = {(batch["source"].shape, batch["target"].shape) for batch in take(iter(data.train(seed=1)), 51)}
    zeros = data.shapes()
    assert {(batch["source"].shape, batch["target"].shape) for batch in zeros} == given
    example = next(iter(data.train(0)))
    for batch in zeros:
        assert {name: array.dtype for name, array in batch.items()} == {n: a.dtype for n, a in example.items()}
        assert not any(array.any() for array in batch.values())


def test_few_shapes_waste_little():
    data = make(train=977, batch_size=16, buckets=4)
    batches = take(iter(data.train(0)), 62)
    real = sum(batch["source_lengths"].sum() for batch in batches)
    assert real / sum(batch["source"].size for batch in batches) > 0.8


def test_a_split_is_read_once_and_told_in_its_order():
    data = make(dev=13, batch_size=6)
    batches = list(data.split("dev"))
    texts = [
        data.target.decode(ids) for b in batches for ids, real in zip(b["target"], b["valid"], strict=True) if real
    ]
    assert texts == data.references("dev")
    assert [text[::-1] for text in texts] == data.sources("dev")
    assert sorted(data.order("dev")) == list(range(13))
    assert [int(batch["valid"].sum()) for batch in batches] == [6, 6, 1]
    same(list(data.split("dev")), batches)


def test_a_split_that_is_not_there():
    with pytest.raises(ValueError, match="no split 'test': there is train, dev"):
        make().split("test")


def test_processes_share_a_batch():
    data = make(batch_size=6)
    whole = take(iter(data.train(seed=1)), 13)
    shares = [take(iter(data.train(1, index, 2)), 13) for index in range(2)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([share[step]["source"] for share in shares])
        np.testing.assert_array_equal(joined, batch["source"])
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be shared by 4 processes"):
        data.train(1, 0, 4)


def test_pairs_over_the_limit_are_left_out_and_counted():
    data = make(train=61, max_source=9)
    short = [text for text in make(train=61).sources("train") if len(text) < 9]
    assert sorted(data.sources("train")) == sorted(short)
    assert data.skipped["train"] == 61 - len(short) > 0
    assert data.notes[0] == (
        f"train: {61 - len(short)} of 61 pairs left out, empty or over 8 source or 19 target tokens"
    )


def test_pairs_with_an_empty_side_are_left_out():
    words = Words.fit(["a b"])
    data = TextData(
        {"train": Pairs(["a", " ", "b"], ["b", "a", ""])}, words, words, batch_size=2, max_source=5, max_target=5
    )
    assert data.sources("train") == ["a"]
    assert data.skipped == {"train": 2}


def test_no_pair_within_the_limits():
    with pytest.raises(ValueError, match="train: all 61 pairs are empty or over 19 source or 0 target tokens"):
        make(max_target=1)


def test_fewer_pairs_than_a_batch():
    data = make(train=5, dev=2, batch_size=12)
    batch = next(iter(data.train(0)))
    assert batch["source"].shape[0] == 12
    assert batch["valid"].all()
    assert [b["valid"].sum() for b in data.split("dev")] == [2]


def longer_dev(longest):
    texts = {"train": ["a" * size for size in range(1, 17)], "dev": ["a", "a" * longest]}
    letters = Characters("a")
    splits = {name: Pairs(lines, lines) for name, lines in texts.items()}
    return TextData(splits, letters, letters, batch_size=2, max_source=50, max_target=50, buckets=2)


def test_dev_a_little_longer_than_train_widens_the_last_bucket():
    data = longer_dev(18)
    widths = {batch["source"].shape[1] for batch in data.shapes()}
    assert max(widths) == 19
    assert {batch["source"].shape[1] for batch in data.split("dev")} <= widths


def test_dev_much_longer_than_train_gets_a_shape_of_its_own():
    data = longer_dev(30)
    assert max(batch["source"].shape[1] for batch in data.shapes()) == 17
    assert max(batch["source"].shape[1] for batch in data.split("dev")) == 31


def test_inputs_become_a_batch_of_a_known_width():
    data = make()
    batch = data.encode_batch(["abc", "f"])
    assert batch["source"].shape[1] in {shape["source"].shape[1] for shape in data.shapes()}
    assert [data.source.decode(ids) for ids in batch["source"]] == ["abc", "f"]
    assert batch["source_lengths"].tolist() == [4, 2]
    assert batch["valid"].tolist() == [True, True]
    assert data.encode_batch(["a" * 19])["source"].shape == (1, 20)


def test_inputs_that_cannot_be_read():
    data = make()
    with pytest.raises(ValueError, match="input 2 is empty"):
        data.encode_batch(["a", ""])
    with pytest.raises(ValueError, match="input 1 has 20 tokens, more than the 19 that are read"):
        data.encode_batch(["a" * 20])


def test_a_saved_folder_reads_inputs_the_same_way(tmp_path):
    data = make()
    data.save(tmp_path)
    again = TextData.load(tmp_path)
    same([again.encode_batch(["abc", "fx"])], [data.encode_batch(["abc", "fx"])])
    assert (again.batch_size, again.max_source, again.max_target) == (6, 20, 20)
    with pytest.raises(ValueError, match="no split 'train': there is none at all"):
        again.train(0)


def test_a_save_that_is_cut_off_leaves_the_files_as_they_were(tmp_path, monkeypatch):
    make().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def cut_off(path, content):
        write(path, content[:5])
        if path.name.startswith("text.json"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    monkeypatch.setattr(Path, "write_text", lambda path, text: cut_off(path, text.encode()))
    with pytest.raises(KeyboardInterrupt):
        make().save(tmp_path)
    assert (tmp_path / "text.json").read_bytes() == before["text.json"]


def test_a_sentencepiece_model_is_kept_in_the_folder(tmp_path):
    texts = ["one cat and two dogs", "three dogs and no cat"]
    pieces = SentencePiece.fit(texts, 53)
    TextData({"train": Pairs(texts, texts)}, pieces, pieces, batch_size=2, max_source=40, max_target=40).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "source.json",
        "source.model",
        "target.json",
        "target.model",
        "text.json",
    }
    assert TextData.load(tmp_path).source.encode(texts[0]) == pieces.encode(texts[0])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"shapes": [[1]]}', '{"shapes": [], "batch_size": "x"}'])
def test_a_damaged_folder_is_one_sentence(tmp_path, content):
    make().save(tmp_path)
    (tmp_path / "text.json").write_text(content)
    with pytest.raises(ValueError, match=r"text.json is damaged or was not written by this program"):
        TextData.load(tmp_path)
    (tmp_path / "text.json").unlink()
    with pytest.raises(ValueError, match=r"text.json cannot be read: No such file"):
        TextData.load(tmp_path)


def test_the_digest_changes_with_the_data_only():
    assert make().digest == make().digest
    others = {make(train=62).digest, make(batch_size=4).digest, make(max_source=19).digest, make(buckets=2).digest}
    assert len(others | {make().digest}) == 5


@pytest.mark.parametrize("setting", ["batch_size", "max_source", "max_target", "buckets"])
def test_settings_below_one(setting):
    with pytest.raises(ValueError, match=f"{setting} is 0: it must be at least 1"):
        make(**{setting: 0})


def test_batches_cost_little_memory():
    data = make(train=997)
    flat = data._tables["train"].source.flat
    assert flat.dtype == np.int32
    assert flat.size == data._tables["train"].source.lengths.sum() + 1

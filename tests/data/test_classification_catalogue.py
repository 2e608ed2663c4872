import numpy as np
import pytest
import tensorflow_datasets as tfds

from attention_zoo.data.catalogue import tfds_classification


@pytest.fixture
def mocked():
    with tfds.testing.mock_data(num_examples=17):
        yield


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("imdb_reviews", ("neg", "pos")),
        ("ag_news_subset", ("World", "Sports", "Business", "Sci/Tech")),
        ("glue/sst2", ("negative", "positive")),
    ],
)
def test_a_classification_data_set_by_name(mocked, name, labels):
    data = tfds_classification(name, tokenizer="words", batch_size=5)
    assert data.labels == labels
    batch = next(iter(data.train(0)))
    assert batch["tokens"].shape[0] == batch["labels"].shape[0] == 5
    for split in ("dev", "test"):
        found = np.concatenate([batch["labels"][batch["valid"]] for batch in data.split(split)])
        assert [labels[label] for label in found] == data.raw(split).labels
        assert len(found) > 0


def test_features_can_be_chosen(mocked):
    coarse = tfds_classification("trec", label="label-coarse", tokenizer="words", batch_size=5)
    fine = tfds_classification("trec", label="label-fine", tokenizer="words", batch_size=5)
    assert (len(coarse.labels), len(fine.labels)) == (6, 47)
    titles = tfds_classification("ag_news_subset", text="title", tokenizer="words", batch_size=5)
    assert titles.raw("dev").texts != tfds_classification("ag_news_subset", tokenizer="words").raw("dev").texts


def test_texts_without_a_label_are_left_out_and_such_a_test_split_is_held_out_instead(monkeypatch):
    rows = {
        "train": [(f"word {number}", number % 2) for number in range(40)] + [("never seen", -1)],
        "validation": [("good", 1), ("bad", 0)],
        "test": [("hidden", -1)],
    }

    def source(builder, split, **settings):
        return [{"sentence": text.encode(), "label": label} for text, label in rows[split]]

    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", source)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda builder: True)
    data = tfds_classification("glue/sst2", tokenizer="words", batch_size=5)
    assert sorted(zip(data.raw("dev").texts, data.raw("dev").labels, strict=True)) == [
        ("bad", "negative"),
        ("good", "positive"),
    ]
    assert data.notes == ["test: 2 of 40 training pairs held out, as no test was given"]
    every = [*data.raw("train").texts, *data.raw("test").texts]
    assert sorted(every) == sorted(text for text, label in rows["train"] if label >= 0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("no_such_thing", {}, "has no data set 'no_such_thing'"),
        ("mnist", {}, r"text= one of the Text features of mnist/.*, of which there is none; got no choice"),
        ("trec", {}, r"label= one of the ClassLabel features of trec/.*, label-coarse, label-fine; got no choice"),
        ("imdb_reviews", {"text": "words"}, r"text= one of the Text features of imdb_reviews/.*, text; got words"),
        (
            "wmt14_translate/de-en",
            {},
            r"label= one of the ClassLabel features .*, of which there is none; got no choice",
        ),
        ("imdb_reviews", {"tokenizer": "bytes"}, "no tokenizer 'bytes'"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(mocked, name, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        tfds_classification(name, **settings)
    assert "\n" not in str(error.value)


def test_a_data_set_that_needs_more_packages_is_one_sentence(monkeypatch):
    def refuse(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'pandas'")

    monkeypatch.setattr(tfds, "builder", refuse)
    with pytest.raises(ValueError, match="data set 'imdb_reviews' cannot be had without more packages: No module"):
        tfds_classification("imdb_reviews")

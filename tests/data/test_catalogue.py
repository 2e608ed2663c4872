import pytest
import tensorflow_datasets as tfds

from attention_zoo.data import tfds_translation


@pytest.fixture
def mocked():
    with tfds.testing.mock_data(num_examples=17):
        yield


@pytest.mark.parametrize("name", ["ted_hrlr_translate/pt_to_en", "wmt14_translate/de-en", "para_crawl/ende"])
def test_a_translation_data_set_by_name(mocked, name):
    data = tfds_translation(name, tokenizer="characters", batch_size=5)
    batch = next(iter(data.train(0)))
    assert batch["source"].shape[0] == 5
    assert len(data.references("dev")) == len(data.references("test")) == 17


@pytest.mark.parametrize("tokenizer", ["words", "sentencepiece"])
def test_any_tokenizer(mocked, tokenizer):
    data = tfds_translation("ted_hrlr_translate/pt_to_en", tokenizer=tokenizer, vocabulary_size=53, batch_size=5)
    assert 4 < data.source.size <= 53


def test_the_direction_is_the_data_sets_own_unless_told(mocked):
    name = "ted_hrlr_translate/pt_to_en"
    own = tfds_translation(name, tokenizer="words", batch_size=5)
    turned = tfds_translation(name, tokenizer="words", batch_size=5, languages=("en", "pt"))
    assert sorted(own.sources("dev")) == sorted(turned.references("dev"))
    assert sorted(own.references("dev")) == sorted(turned.sources("dev"))
    assert sorted(own.sources("dev")) != sorted(own.references("dev"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("no_such_thing/at_all", {}, "has no data set 'no_such_thing/at_all': it has, for example, ted_hrlr"),
        ("ted_hrlr_translate/pt_to_xx", {}, "of ted_hrlr_translate it has, for example, pt_to_en"),
        ("mnist", {}, r"mnist/.* is no translation of one language into another"),
        ("ted_hrlr_translate/pt_to_en", {"languages": ("pt", "xx")}, "has no language 'xx': it has"),
        ("ted_hrlr_translate/pt_to_en", {"tokenizer": "bytes"}, "no tokenizer 'bytes'"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(name, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        tfds_translation(name, **settings)
    assert "\n" not in str(error.value)


def test_data_that_cannot_be_fetched_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", refuse)
    with pytest.raises(ValueError, match=r"data set ted_hrlr_translate/.* cannot be prepared in .*: no route to host"):
        tfds_translation("ted_hrlr_translate/pt_to_en", data_dir=tmp_path)

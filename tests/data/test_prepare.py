import io
from contextlib import redirect_stderr, redirect_stdout

import pytest
import tensorflow_datasets as tfds
from absl import logging

from attention_zoo.data import prepare, reverse
from attention_zoo.data.reverse import Reverse, ReverseConfig

SMALL = {"train_examples": 53, "dev_examples": 11, "test_examples": 7}


def files(folder):
    return sorted(folder.glob("reverse/*/1.0.0/*train.array_record*"))


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_damaged_files_are_one_sentence(tmp_path, damage):
    reverse(data_dir=tmp_path, **SMALL)
    damage(files(tmp_path)[0])
    with pytest.raises(ValueError, match=r"the data set in .*/1.0.0 cannot be read; remove that folder") as error:
        reverse(data_dir=tmp_path, **SMALL)
    assert "\n" not in str(error.value)


def test_what_a_killed_run_left_does_not_matter(tmp_path):
    builder = prepare.prepared(Reverse, ReverseConfig(**SMALL), tmp_path)
    shards = files(tmp_path)
    left = tmp_path / "reverse" / builder.builder_config.name / "incomplete.ABC_1.0.0"
    (tmp_path / "reverse" / builder.builder_config.name / "1.0.0").rename(left)
    reverse(data_dir=tmp_path, **SMALL)
    assert files(tmp_path) == shards


def test_another_process_may_be_first(tmp_path, monkeypatch):
    def second(builder, progress):
        monkeypatch.undo()
        reverse(data_dir=tmp_path, **SMALL)
        raise ValueError("Directory not empty")

    monkeypatch.setattr(prepare, "download_and_prepare", second)
    assert len(reverse(data_dir=tmp_path, **SMALL).sources("train")) == 53


def test_an_error_that_is_nobody_elses_is_told(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", fail)
    with pytest.raises(ValueError, match=r"data set reverse/.* cannot be prepared in .*: .*No space left on device"):
        reverse(data_dir=tmp_path, **SMALL)


def test_tfds_is_kept_quiet_and_then_as_it_was(tmp_path):
    before, out, err = logging.get_verbosity(), io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        reverse(data_dir=tmp_path, **SMALL)
    assert logging.get_verbosity() == before
    assert out.getvalue() == ""
    assert err.getvalue().count("\n") == 1


def test_blocks_and_single_rows_read_alike(tmp_path, monkeypatch):
    builder = prepare.prepared(Reverse, ReverseConfig(**SMALL), tmp_path)
    blocks = list(prepare.examples(builder, "train"))
    monkeypatch.setattr(prepare, "BLOCK", 7)
    assert list(prepare.examples(builder, "train")) == blocks
    source = builder.as_data_source("train")
    assert [source[row] for row in range(53)] == blocks

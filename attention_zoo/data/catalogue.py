"""Any translation data set of the TensorFlow Datasets catalogue by name, with TensorFlow absent."""

import contextlib
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
import tensorflow_datasets.translate  # TFDS itself stops at the first module that needs TensorFlow, before this one

from attention_zoo.data.parallel import hold_out, read_plain, text_data
from attention_zoo.data.prepare import download_and_prepare, folder, is_prepared
from attention_zoo.data.text import TextData
from attention_zoo.data.vocabulary import check_kind

DEV_NAMES = ("validation", "dev", "valid")


def tfds_translation(
    name: str,
    *,
    languages: Sequence[str] | None = None,
    tokenizer: str = "sentencepiece",
    vocabulary_size: int | None = None,
    shared_vocabulary: bool = False,
    batch_size: int = 64,
    max_source: int | None = None,
    max_target: int | None = None,
    buckets: int = 4,
    data_dir: Path | str | None = None,
) -> TextData:
    """A translation data set such as `ted_hrlr_translate/pt_to_en` or `wmt14_translate/de-en`.

    `languages` is (source, target), the data set's own direction unless told. A dev or test split that the data
    set lacks is held out from train. The other arguments are those of `parallel_text`. First use downloads.

    Raises:
        ValueError: TFDS has no such data set, it is no translation data set, lacks a language, or cannot be had.
    """
    check_kind(tokenizer)
    builder = _builder(name, data_dir)
    source, target = _direction(builder, languages)
    if not is_prepared(builder):
        with contextlib.redirect_stdout(sys.stderr):  # a command's standard output holds its results only
            download_and_prepare(builder, progress=sys.stderr.isatty())
    splits = {ours: read_plain(builder, theirs, (source, target)) for ours, theirs in _split_names(builder).items()}
    filled, notes = hold_out(splits)
    return text_data(
        filled,
        tokenizer=tokenizer,
        vocabulary_size=vocabulary_size,
        shared_vocabulary=shared_vocabulary,
        batch_size=batch_size,
        max_source=max_source,
        max_target=max_target,
        buckets=buckets,
        notes=notes,
    )


def _builder(name: str, data_dir: Path | str | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=folder(data_dir), file_format="array_record")
    except ValueError as error:  # TFDS's own message lists its whole catalogue
        raise ValueError(f"TensorFlow Datasets has no data set '{name}': {_hint(name)}") from error


def _hint(name: str) -> str:
    """What there is instead: configurations of the data set, if it exists."""
    family, _, config = name.partition("/")
    try:
        known = tfds.builder_cls(family).builder_configs
    except ValueError:
        return "it has, for example, ted_hrlr_translate/pt_to_en and wmt14_translate/de-en"
    return f"of {family} it has, for example, {', '.join(difflib.get_close_matches(config, known, n=5, cutoff=0))}"


def _direction(builder: tfds.core.DatasetBuilder, languages: Sequence[str] | None) -> tuple[str, str]:
    features: Any = builder.info.features
    if not isinstance(features, tfds.features.Translation):
        raise ValueError(f"the TFDS data set {builder.info.full_name} is no translation of one language into another")
    source, target = languages or builder.info.supervised_keys or tuple(features.languages)
    for language in (source, target):
        if language not in features.languages:
            raise ValueError(
                f"the TFDS data set {builder.info.full_name} has no language '{language}': "
                f"it has {', '.join(features.languages)}"
            )
    return source, target


def _split_names(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    """Our split names to the data set's."""
    known = list(builder.info.splits) or ["train", DEV_NAMES[0], "test"]  # tfds.testing.mock_data tells no names
    if "train" not in known:
        raise ValueError(f"the TFDS data set {builder.info.full_name} has no train split: it has {', '.join(known)}")
    dev = next((name for name in DEV_NAMES if name in known), None)
    names = {"train": "train", "dev": dev, "test": "test" if "test" in known else None}
    return {ours: theirs for ours, theirs in names.items() if theirs}

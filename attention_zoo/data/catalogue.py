"""Any translation or classification data set of the TensorFlow Datasets catalogue by name, with TensorFlow absent."""

import contextlib
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
import tensorflow_datasets.text
import tensorflow_datasets.translate  # TFDS itself stops at the first module that needs TensorFlow, before these two

from attention_zoo.data.labelled import Labelled, LabelledText, labelled_text
from attention_zoo.data.parallel import hold_out, read_plain, text_data
from attention_zoo.data.prepare import as_text, download_and_prepare, examples, folder, is_prepared
from attention_zoo.data.text import Pairs, TextData
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
    buckets: int | None = None,
    data_dir: Path | str | None = None,
) -> TextData:
    """A translation data set such as `ted_hrlr_translate/pt_to_en` or `wmt14_translate/de-en`.

    `languages` is (source, target), the data set's own direction unless told. A dev or test split that the data
    set lacks is held out from train. The other arguments are those of `parallel_text`. First use downloads.

    Raises:
        ValueError: TFDS has no such data set, it is no translation data set, lacks a language, or cannot be had.
    """
    check_kind(tokenizer)
    builder = builder_of(name, data_dir)
    source, target = _direction(builder, languages)
    make_ready(builder)
    splits = {ours: read_plain(builder, theirs, (source, target)) for ours, theirs in split_names(builder).items()}
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


def tfds_classification(
    name: str,
    *,
    text: str | None = None,
    label: str | None = None,
    tokenizer: str = "sentencepiece",
    vocabulary_size: int | None = None,
    batch_size: int = 64,
    max_length: int | None = None,
    buckets: int = 4,
    data_dir: Path | str | None = None,
) -> LabelledText:
    """A data set of texts with a class each, such as `imdb_reviews` or `ag_news_subset`.

    `text` and `label` name its features: unless told the only ones of their kind, or those that TFDS itself would
    take. Texts without a label are left out; a dev or test split that the data set lacks, or gives without labels, is
    held out from train. `max_length` counts tokens, START and END too. First use downloads.

    Raises:
        ValueError: TFDS has no such data set, it has no such features or too many, or it cannot be had.
    """
    check_kind(tokenizer)
    builder = builder_of(name, data_dir)
    keys = _feature(builder, 0, text), _feature(builder, 1, label)
    make_ready(builder)
    read = {ours: _read_labelled(builder, theirs, keys) for ours, theirs in split_names(builder).items()}
    filled, notes = hold_out({name: pairs for name, pairs in read.items() if pairs.sources or name == "train"})
    splits = {name: Labelled(pairs.sources, pairs.targets) for name, pairs in filled.items()}
    return labelled_text(
        splits,
        builder.info.features[keys[1]].names,
        tokenizer=tokenizer,
        vocabulary_size=vocabulary_size,
        max_length=max_length,
        batch_size=batch_size,
        buckets=buckets,
        notes=notes,
    )


def _feature(builder: tfds.core.DatasetBuilder, place: int, wanted: str | None) -> str:
    """The name of the data set's text (place 0) or label (1): as wanted, or the only one, or TFDS's own choice."""
    kind = (tfds.features.Text, tfds.features.ClassLabel)[place]
    features: Any = builder.info.features
    flat = features if isinstance(features, tfds.features.FeaturesDict) else {}
    found = [name for name, feature in flat.items() if isinstance(feature, kind)]
    own = (builder.info.supervised_keys or (None, None))[place]
    asked = wanted or (found[0] if len(found) == 1 else own)
    if asked in found:
        return str(asked)
    argument = ("text", "label")[place]
    raise ValueError(
        f"tfds_classification: {argument}= one of the {kind.__name__} features of {builder.info.full_name}, "
        f"{', '.join(found) or 'of which there is none'}; got {wanted or 'no choice'}"
    )


def _read_labelled(builder: tfds.core.DatasetBuilder, split: str, keys: tuple[str, str]) -> Pairs:
    """The texts of a split and the names of their labels; those without a label, which TFDS marks by -1, left out."""
    names: Any = builder.info.features[keys[1]].names
    rows = [row for row in examples(builder, split) if row[keys[1]] >= 0]
    return Pairs([as_text(row[keys[0]]) for row in rows], [names[row[keys[1]]] for row in rows])


def make_ready(builder: tfds.core.DatasetBuilder) -> None:
    """Downloads and prepares a data set at first use."""
    if not is_prepared(builder):
        with contextlib.redirect_stdout(sys.stderr):  # a command's standard output holds its results only
            download_and_prepare(builder, progress=sys.stderr.isatty())


def builder_of(name: str, data_dir: Path | str | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set by name.

    Raises:
        ValueError: TFDS has no such data set, or it cannot be had here; the message says why.
    """
    try:
        return tfds.builder(name, data_dir=folder(data_dir), file_format="array_record")
    except ValueError as error:  # TFDS's own message lists its whole catalogue
        raise ValueError(f"TensorFlow Datasets has no data set '{name}': {_hint(name)}") from error
    except ImportError as error:
        raise ValueError(f"the TFDS data set '{name}' cannot be had without more packages: {error}") from error


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


def split_names(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    """Our split names to the data set's."""
    known = list(builder.info.splits) or ["train", DEV_NAMES[0], "test"]  # tfds.testing.mock_data tells no names
    if "train" not in known:
        raise ValueError(f"the TFDS data set {builder.info.full_name} has no train split: it has {', '.join(known)}")
    dev = next((name for name in DEV_NAMES if name in known), None)
    names = {"train": "train", "dev": dev, "test": "test" if "test" in known else None}
    return {ours: theirs for ours, theirs in names.items() if theirs}

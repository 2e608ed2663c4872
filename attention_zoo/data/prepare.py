"""TFDS builders from nothing to texts, with TensorFlow absent: prepared once, read from ArrayRecord files."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

BLOCK = 10_000  # examples read at once, which costs less than one by one


def prepared(
    builder: type[tfds.core.GeneratorBasedBuilder], config: tfds.core.BuilderConfig, data_dir: Path | str | None
) -> tfds.core.DatasetBuilder:
    """The builder with its data on disk, in `data_dir`, `$TFDS_DATA_DIR` or TFDS's own default folder.

    Raises:
        ValueError: the folder cannot be written, or holds the data in another file format.
    """
    made = _make(builder, config, data_dir)
    if is_prepared(made):
        return made
    print(f"preparing the data set '{made.name}', once, in {made.data_dir}", file=sys.stderr)
    try:
        with _quiet(), contextlib.redirect_stdout(io.StringIO()):
            download_and_prepare(made, progress=False)
    except ValueError:
        # Another process may have prepared the same data meanwhile; then its copy is as good as ours.
        if not is_prepared(made):
            raise
    return _make(builder, config, data_dir)


def _make(
    builder: type[tfds.core.GeneratorBasedBuilder], config: tfds.core.BuilderConfig, data_dir: Path | str | None
) -> tfds.core.DatasetBuilder:
    config = builder.builder_configs.get(config.name, config)
    with _quiet():
        return builder(config=config, data_dir=folder(data_dir), file_format="array_record")


def download_and_prepare(builder: tfds.core.DatasetBuilder, progress: bool = True) -> None:
    """Writes a builder's data, with TFDS's progress bars or without.

    Raises:
        ValueError: the data cannot be fetched or written.
    """
    tfds.display_progress_bar(progress)
    try:
        builder.download_and_prepare(file_format="array_record")
    except (OSError, ImportError, tfds.download.DownloadError) as error:
        reason = " ".join(str(error).split())
        where = f"{builder.info.full_name} cannot be prepared in {builder.data_dir}"
        raise ValueError(f"the data set {where}: {reason}") from error
    finally:
        tfds.display_progress_bar(True)


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether a builder's data is on disk."""
    with _quiet():
        return builder.is_prepared()


def folder(data_dir: Path | str | None) -> str | None:
    """The data folder asked for; `$TFDS_DATA_DIR` is read at call time, TFDS reads it only when it is imported."""
    return str(data_dir) if data_dir else os.environ.get("TFDS_DATA_DIR")


def examples(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split in their stored order.

    Raises:
        ValueError: the stored files are damaged, gone, or in a format without random access.
    """
    try:
        source = builder.as_data_source(split)
        for start in range(0, len(source), BLOCK):
            yield from _block(source, range(start, min(start + BLOCK, len(source))))
    except RuntimeError as error:  # ArrayRecord's; TFDS's NotImplementedError is one too
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the data set in {builder.data_dir} cannot be read; remove that folder to prepare it anew ({reason})"
        ) from error


def _block(source: Any, rows: Sequence[int]) -> Sequence[dict[str, Any]]:
    try:
        return source.__getitems__(rows)
    except (AttributeError, TypeError):  # the sources of tfds.testing.mock_data know single rows only
        return [source[row] for row in rows]


def as_text(value: str | bytes) -> str:
    """TFDS's text as a string: it stores bytes."""
    return value if isinstance(value, str) else value.decode()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's warnings that a configuration is a new one and that its folder is not there yet."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)

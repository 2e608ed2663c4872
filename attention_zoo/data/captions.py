"""Pictures with captions: the user's own folder, and COCO; read, resized and stored once, in TFDS's form.

COCO: Lin et al. 2014, "Microsoft COCO: Common Objects in Context", arXiv:1405.0312, with five captions a picture and
the splits of Karpathy and Li 2015, arXiv:1412.2306. TFDS's own `coco_captions` cannot be had without TensorFlow.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from attention_zoo.data.batches import FILLER, Ragged, draw_plan
from attention_zoo.data.captioned import CaptionedImages
from attention_zoo.data.catalogue import make_ready
from attention_zoo.data.images import read_picture
from attention_zoo.data.packing import Epoch
from attention_zoo.data.parallel import LONGEST, hold_out
from attention_zoo.data.pictures import resized
from attention_zoo.data.prepare import as_text, examples, prepared
from attention_zoo.data.prepare import folder as data_folder
from attention_zoo.data.text import Batch, Pairs
from attention_zoo.data.vocabulary import END, Tokenizer, Words

SPLITS = ("train", "dev", "test")
COCO = "http://images.cocodataset.org/zips/"
KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
EXPECTED = "expected a folder of pictures with a captions file: a file name, a tab and a caption a line"
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}


class Row(NamedTuple):
    """A picture's file, its captions, and where they are said."""

    path: Path
    captions: list[str]
    where: str


@dataclass(eq=False)
class PictureConfig(tfds.core.BuilderConfig):
    """What the data depends on, all of it in the name: the content of the files, and the shape they are stored in."""

    name: str = ""
    shape: tuple[int, int, int] = (1, 1, 1)
    splits: dict[str, list[Row]] = field(default_factory=dict, repr=False)
    content: str = "coco2014"

    def __post_init__(self) -> None:
        self.name = f"{self.content}-{'x'.join(map(str, self.shape))}"


class CaptionedPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures of one size with captions, from files of the user's own."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=self.builder_config.shape, dtype=np.uint8),
            "captions": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {name: self._generate_examples(rows) for name, rows in self.builder_config.splits.items()}

    def _generate_examples(self, rows: Iterable[Row]) -> Iterator[tuple[int, dict[str, Any]]]:
        height, width, channels = self.builder_config.shape
        for number, row in enumerate(rows):
            try:
                image = resized(read_picture(row.path, coloured=channels == 3), height, width)
            except ValueError as error:
                raise ValueError(f"{row.where}: {error}") from error
            yield number, {"image": np.rint(image * 255).astype(np.uint8), "captions": row.captions}


class KarpathyCoco(CaptionedPictures):
    """COCO 2014 with captions: Karpathy's train and restval as train, his val as dev, his test."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        addresses = {"train2014": f"{COCO}train2014.zip", "val2014": f"{COCO}val2014.zip", "captions": KARPATHY}
        folders = {name: Path(path) for name, path in dl_manager.download_and_extract(addresses).items()}
        rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
        listed = folders["captions"] / "dataset_coco.json"
        for picture in json.loads(listed.read_text())["images"]:
            path = folders[picture["filepath"]] / picture["filepath"] / picture["filename"]
            captions = [sentence["raw"] for sentence in picture["sentences"]]
            rows[KARPATHY_SPLITS[picture["split"]]].append(Row(path, captions, str(listed)))
        return {name: self._generate_examples(found) for name, found in rows.items()}


class Stored:
    """One split of stored pictures: of train every caption of each is shown once an epoch, of a pass the first."""

    def __init__(self, builder: tfds.core.DatasetBuilder, name: str, texts: Sequence[Sequence[str]], target: Tokenizer):
        self._source, self._name = builder.as_data_source(name), f"{builder.info.full_name} {name}"
        self._shape, self._texts = builder.info.features["image"].shape, texts
        places = [(row, place) for row, captions in enumerate(texts) for place in range(len(captions))]
        self._picture, self._place = np.array(places).reshape(-1, 2).T  # of every caption, and its place among its own
        self._target = Ragged([*target.encode(texts[row][place]), END] for row, place in places)
        self._width, self._kept = 0, np.arange(0)

    def limit(self, name: str, max_target: int) -> list[str]:
        """Leaves out captions of more than `max_target` ids, END counted; a sentence if there were any.

        Raises:
            ValueError: all were.
        """
        self._width, kept = max_target, np.flatnonzero(self._target.lengths <= max_target)
        self._kept, total = kept, len(self._picture)
        if not len(kept):
            raise ValueError(f"{name}: all {total:,} captions have more than {max_target - 1} words")
        left = total - len(kept)
        return [f"{name}: {left:,} of {total:,} captions left out, over {max_target - 1} words"] if left else []

    def draw(self, batch_size: int, rng: np.random.Generator | None) -> Epoch:
        """Which captions are in which batch."""
        chosen = self._kept if rng is not None else self._firsts()
        rows = draw_plan(np.zeros(len(chosen), int), batch_size, rng).rows
        return Epoch(np.where(rows == FILLER, FILLER, chosen[rows]), np.empty(0))

    def _firsts(self) -> np.ndarray:
        """The first caption kept of each picture."""
        return self._kept[np.unique(self._picture[self._kept], return_index=True)[1]]

    def make(self, rows: np.ndarray, drawn: np.ndarray) -> Batch:
        """The pictures of some captions."""
        valid = rows != FILLER
        images = np.zeros((len(rows), *self._shape), np.float32)
        for row, stored in zip(np.flatnonzero(valid), self._read(self._picture[rows[valid]].tolist()), strict=True):
            images[row] = stored / np.float32(255)
        target, lengths = self._target.padded(rows, self._width)
        boxes = np.zeros((*target.shape, 4), np.float32)
        return {"images": images, "target": target, "target_lengths": lengths, "boxes": boxes, "valid": valid}

    def _read(self, pictures: list[int]) -> list[np.ndarray]:
        return [row["image"] for row in self._source.__getitems__(pictures)] if pictures else []

    def captions(self) -> list[list[str]]:
        """Every caption of each picture, the one of the batch first."""
        firsts = self._firsts()
        shown = zip(self._picture[firsts].tolist(), self._place[firsts].tolist(), strict=True)
        return [[self._texts[row][place], *_without(self._texts[row], place)] for row, place in shown]

    def content(self) -> bytes:
        """The name of the stored data, which tells the content of its files, and the captions as ids."""
        return self._name.encode() + self._target.lengths.tobytes() + self._target.flat.tobytes()


def _without(texts: Sequence[str], place: int) -> list[str]:
    return [text for number, text in enumerate(texts) if number != place]


def read_captions(captions: Path, folder: Path) -> tuple[list[Row], list[str]]:
    """The pictures of a captions file, in the order in which it first names them, and a note about repeated lines.

    Raises:
        ValueError: the file cannot be read or is empty, or a line (its number is told) is no file's name, tab, caption.
    """
    try:
        lines = captions.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{captions} cannot be read: {error.strerror}; {EXPECTED}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{captions} is no UTF-8 text") from error
    if not lines:
        raise ValueError(f"{captions} is empty; {EXPECTED}")
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{captions}, line {number}"
        name, caption = _columns(where, line)
        row = rows.setdefault(name, Row(folder / name, [], where))
        if not row.path.is_file():
            raise ValueError(f"{where}: there is no file {row.path}")
        row.captions.append(caption)
    unique = [row._replace(captions=list(dict.fromkeys(row.captions))) for row in rows.values()]
    repeated = len(lines) - sum(len(row.captions) for row in unique)
    return unique, [f"{repeated:,} repeated lines of {captions} left out"] if repeated else []


def _columns(where: str, line: str) -> list[str]:
    columns = [column.strip() for column in line.split("\t")]
    if len(columns) != 2:
        raise ValueError(f"{where}: {len(columns) - 1} tabs, where one is expected between file name and caption")
    for side, text in zip(("file name", "caption"), columns, strict=True):
        if not text:
            raise ValueError(f"{where}: the {side} is empty")
    return columns


def image_captions(
    folder: Path | str,
    captions: Path | str | None = None,
    batch_size: int = 64,
    *,
    size: tuple[int, int] = (64, 64),
    channels: int = 3,
    vocabulary_size: int | None = None,
    max_target: int | None = None,
    data_dir: Path | str | None = None,
) -> CaptionedImages:
    """The user's own folder of pictures with a captions file: a file name, a tab and a caption a line.

    A picture may have several captions, a line each. 5 % of the pictures, 2,000 at most, become dev, and as many test;
    which ones depends on their content alone, so equal pictures are in one split. A word is what white space separates.

    Args:
        captions: the captions file, `captions.tsv` in the folder unless told.
        size: height and width that every picture is resized to, whatever its own.
        channels: 3 for colours, 1 for grey values.
        vocabulary_size: the most frequent words of train that are kept, four special ones counted; all unless told.
        max_target: the longest caption kept, in words and END; unless told, that of train, 100 at most.

    Raises:
        ValueError: one sentence with the file and line number that is wrong, or the wrong argument.
    """
    home, shape = Path(folder), _shape(size, channels)
    rows, notes = read_captions(Path(captions or home / "captions.tsv"), home)
    digests = [hashlib.sha256(row.path.read_bytes()).hexdigest() for row in rows]
    if len(set(digests)) < len(SPLITS):
        raise ValueError(f"{folder}: 3 different pictures at least, for train, dev and test; got {len(set(digests))}")
    filled, held = hold_out({"train": Pairs(digests, [str(number) for number in range(len(rows))])})
    splits = {name: [rows[int(number)] for number in filled[name].targets] for name in SPLITS}
    text = json.dumps([digests, [row.captions for row in rows]])
    config = PictureConfig(shape=shape, splits=splits, content=hashlib.sha256(text.encode()).hexdigest()[:16])
    notes += [note.replace(" training pairs ", " pictures ").partition(", as no ")[0] for note in held]
    builder = prepared(CaptionedPictures, config, data_dir)
    return _captioned(builder, str, vocabulary_size, max_target, batch_size=batch_size, shape=shape, notes=notes)


def coco_captions(
    batch_size: int = 64,
    *,
    size: tuple[int, int] = (224, 224),
    channels: int = 3,
    vocabulary_size: int | None = 10_000,
    max_target: int | None = 21,
    data_dir: Path | str | None = None,
) -> CaptionedImages:
    """COCO 2014 with five captions a picture; the first use downloads 19 GB and stores every picture at `size`.

    Captions are in lower case and without punctuation. The arguments are those of `image_captions`.

    Raises:
        ValueError: an argument is out of range, or the data cannot be had.
    """
    shape = _shape(size, channels)
    builder = KarpathyCoco(
        config=PictureConfig(shape=shape), data_dir=data_folder(data_dir), file_format="array_record"
    )
    make_ready(builder)
    return _captioned(builder, plain_words, vocabulary_size, max_target, batch_size=batch_size, shape=shape, notes=[])


def plain_words(text: str) -> str:
    """A caption in lower case without punctuation.

    >>> plain_words("A man's dog, half-asleep.")
    "a man's dog half-asleep"
    """
    return " ".join(re.findall(r"\w+(?:['’-]\w+)*", text.lower()))


def _shape(size: tuple[int, int], channels: int) -> tuple[int, int, int]:
    if min(size) < 1 or channels not in (1, 3):
        raise ValueError(f"size is at least 1 pixel each way and channels 1 or 3; got {tuple(size)} and {channels}")
    return int(size[0]), int(size[1]), channels


def _captioned(
    builder: tfds.core.DatasetBuilder,
    clean: Callable[[str], str],
    vocabulary_size: int | None,
    max_target: int | None,
    *,
    notes: list[str],
    **settings: Any,
) -> CaptionedImages:
    """What is stored, with the words of its `train`; `settings` go to `CaptionedImages`."""
    texts = {
        name: [[clean(as_text(text)) for text in row["captions"]] for row in examples(builder, name)] for name in SPLITS
    }
    every = [text for captions in texts["train"] for text in captions]
    target = Words.fit(every, vocabulary_size)
    if max_target is None:
        max_target = min(max(len(text.split()) for text in every) + 1, LONGEST["words"])
    splits = {name: Stored(builder, name, texts[name], target) for name in SPLITS}
    notes = notes + [note for name, split in splits.items() for note in split.limit(name, max_target)]
    return CaptionedImages(splits, target, max_target=max_target, resize=True, notes=notes, **settings)

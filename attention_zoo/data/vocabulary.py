"""Text to ids and back: by characters, by words, or by a SentencePiece model trained on the corpus."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import sentencepiece

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")  # their labels, by id


class Tokenizer(Protocol):
    """Text to ids and back; ids 0 to 3 are PAD, START, END and UNKNOWN in every kind."""

    @property
    def size(self) -> int:
        """How many ids there are, the four special ones included."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with no special id added."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to the first END; PAD and START are skipped."""

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """One label for every id given, special ones too: what a figure writes on its axis."""

    def unknown(self, text: str) -> list[str]:
        """The symbols of a text that the vocabulary lacks, once each, in order of appearance."""

    def to_dict(self) -> dict[str, Any]:
        """What `save` writes as JSON."""

    def save(self, path: Path) -> None:
        """Writes a JSON file that `load` reads."""


class _Table:
    """A vocabulary that is a list of symbols, the most frequent first."""

    kind: ClassVar[str]
    joiner: ClassVar[str]

    def __init__(self, symbols: Iterable[str]):
        self.symbols = tuple(symbols)
        self._labels = SPECIALS + self.symbols
        self._index = {symbol: index for index, symbol in enumerate(self.symbols, start=len(SPECIALS))}
        if len(self._index) != len(self.symbols):
            raise ValueError("a vocabulary lists some symbol twice")

    @staticmethod
    def split(text: str) -> Sequence[str]:
        """The symbols of a text, in order."""
        raise NotImplementedError

    @classmethod
    def fit(cls, texts: Iterable[str], size: int | None = None) -> Self:
        """The vocabulary of a corpus: its most frequent symbols, at most `size` ids with the special ones.

        Raises:
            ValueError: the special ones leave no room in `size`.
        """
        if size is not None and size <= len(SPECIALS):
            raise ValueError(
                f"a vocabulary of {size} ids has no room for any symbol beside the {len(SPECIALS)} special ones: "
                "ask for more"
            )
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(cls.split(text))
        ranked = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        return cls(ranked if size is None else ranked[: size - len(SPECIALS)])

    @property
    def size(self) -> int:
        return len(self._labels)

    def encode(self, text: str) -> list[int]:
        return [self._index.get(symbol, UNKNOWN) for symbol in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        return self.joiner.join(self._labels[index] for index in _before_end(ids))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._labels[index] for index in ids]

    def unknown(self, text: str) -> list[str]:
        return [symbol for symbol in dict.fromkeys(self.split(text)) if symbol not in self._index]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "symbols": list(self.symbols)}

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps(self.to_dict()).encode())


class Characters(_Table):
    """One id a character (Unicode code point): nothing of a text is lost, white space included."""

    kind = "characters"
    joiner = ""

    @staticmethod
    def split(text: str) -> Sequence[str]:
        return text


class Words(_Table):
    """One id a word, a word being what white space separates; texts come back with single spaces."""

    kind = "words"
    joiner = " "

    @staticmethod
    def split(text: str) -> Sequence[str]:
        return text.split()


class SentencePiece:
    """Byte-pair pieces (Sennrich 2016) of a SentencePiece model that was trained on the corpus.

    Text is taken as it is, without Unicode normalisation; runs of spaces become one space.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes):
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def fit(cls, texts: Iterable[str], size: int | None = None) -> Self:
        """Trains a model of at most `size` (8,000 unless told) pieces; the same corpus gives the same bytes.

        Raises:
            ValueError: the corpus has more different characters than `size` has room for.
        """
        model, corpus = io.BytesIO(), list(texts)
        longest = max((len(text.encode()) for text in corpus), default=0)
        default = 4192  # the trainer leaves longer lines out, silently
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus),
                model_writer=model,
                model_type="bpe",
                vocab_size=size or 8000,
                hard_vocab_limit=False,  # a small corpus gives fewer pieces instead of an error
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=max(longest, default),
                num_threads=1,
                minloglevel=2,
                pad_id=PAD,
                bos_id=START,
                eos_id=END,
                unk_id=UNKNOWN,  # the trainer's own labels for the four are those of SPECIALS
            )
        except RuntimeError as error:
            characters = len(set().union(*corpus))
            raise ValueError(
                f"no SentencePiece model of {size or 8000} pieces can be trained on {len(corpus):,} texts "
                f"with {characters:,} different characters: ask for more pieces"
            ) from error
        return cls(model.getvalue())

    @property
    def size(self) -> int:
        return self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        pieces = [self._processor.id_to_piece(index) for index in _before_end(ids)]
        return "".join(pieces).replace("▁", " ").removeprefix(" ")

    def tokens(self, ids: Iterable[int]) -> list[str]:
        return [self._processor.id_to_piece(int(index)) for index in ids]

    def unknown(self, text: str) -> list[str]:
        pieces = self._processor.encode(text, out_type=str)
        missing = "".join(piece for piece, index in zip(pieces, self.encode(text), strict=True) if index == UNKNOWN)
        return [symbol for symbol in dict.fromkeys(missing) if symbol != "▁"]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "pieces": self.size}

    def save(self, path: Path) -> None:
        """Writes the JSON file and, beside it, the model with the ending `.model`."""
        write_whole(path.with_suffix(".model"), self.model)
        write_whole(path, json.dumps({**self.to_dict(), "model": path.with_suffix(".model").name}).encode())


KINDS: dict[str, type[Characters] | type[Words] | type[SentencePiece]] = {
    "characters": Characters,
    "words": Words,
    "sentencepiece": SentencePiece,
}


def fit(kind: str, texts: Iterable[str], size: int | None = None) -> Tokenizer:
    """The tokenizer of a kind ("characters", "words" or "sentencepiece") made from a corpus.

    Raises:
        ValueError: the kind is none of the three, or no vocabulary of that size can be made.
    """
    check_kind(kind)
    return KINDS[kind].fit(texts, size)


def check_kind(kind: str) -> None:
    """Raises ValueError when there is no tokenizer of that name."""
    if kind not in KINDS:
        raise ValueError(f"there is no tokenizer '{kind}': choose one of {', '.join(KINDS)}")


def load(path: Path) -> Tokenizer:
    """Reads the tokenizer that `save` wrote.

    Raises:
        ValueError: a file is missing or is not what `save` writes.
    """
    try:
        record = json.loads(path.read_bytes())
        if record["kind"] == SentencePiece.kind:
            return SentencePiece((path.parent / record["model"]).read_bytes())
        table = {"characters": Characters, "words": Words}[record["kind"]]
        return table(record["symbols"])
    except OSError as error:
        raise ValueError(f"the vocabulary file {error.filename} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is no vocabulary file: it is damaged or was not written by this program") from error


def _before_end(ids: Iterable[int]) -> Iterator[int]:
    for index in ids:
        if index == END:
            return
        if index not in (PAD, START):
            yield int(index)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)

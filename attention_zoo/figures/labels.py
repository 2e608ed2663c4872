"""Tokens as axis labels that can be read: spaces seen, marks carried, no empty boxes for missing letters."""

import unicodedata
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

LONGEST = 16
# Letters that DejaVu Sans lacks are taken from the first of these that is installed.
_WIDE = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Source Han Sans",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Yu Gothic",
    "Malgun Gothic",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)
_SHOWN = {" ": "␣", "\t": "⇥", "\n": "↵", "\r": "↵"}
_FIXED_SPACE = "⍽"


@cache
def families() -> tuple[str, ...]:
    """The font families labels are drawn in: DejaVu Sans, which matplotlib carries, then what is installed."""
    installed = set(font_manager.fontManager.get_font_names())
    return ("DejaVu Sans", *(family for family in _WIDE if family in installed))


@cache
def _letters() -> frozenset[int]:
    paths = (font_manager.findfont(family) for family in families())
    return frozenset(code for path in paths for code in FT2Font(path).get_charmap())


def label(token: str, longest: int = LONGEST) -> str:
    """A token as it is written on an axis, at most `longest` letters long.

    A space is ␣ and one that may not break ⍽; a mark without its letter stands on a dotted circle;
    a letter that no installed font has is written as its code point (U+65E5).
    """
    shown = [_shown(character) for character in unicodedata.normalize("NFC", token)]
    if token and unicodedata.combining(token[0]):
        shown.insert(0, "◌")
    if len("".join(shown)) > longest:
        shown = _shortened(shown, longest)
    return "".join(shown)


def sentence(text: str) -> str:
    """Running text as it is written in a title: spaces stay spaces, a letter that no installed font has is □."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(character if ord(character) in _letters() else "□" for character in composed)


def _shown(character: str) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    if unicodedata.category(character) == "Zs":
        return _FIXED_SPACE
    if character.isprintable() and ord(character) in _letters():
        return character
    return f"U+{ord(character):04X}"


def _shortened(shown: list[str], longest: int) -> list[str]:
    kept: list[str] = []
    for piece in shown:
        if sum(map(len, kept)) + len(piece) > longest - 1:
            break
        kept.append(piece)
    return [*kept, "…"]

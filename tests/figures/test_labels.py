"""Tokens as axis labels."""

import pytest

from attention_zoo.figures.labels import label, sentence


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("a", "a"),
        ("ж", "ж"),
        ("é", "é"),
        ("e\u0301", "é"),
        (" ", "␣"),
        ("\u00a0", "⍽"),
        ("\u202f", "⍽"),
        ("\t", "⇥"),
        ("\u0301", "◌\u0301"),
        ("\u200e", "U+200E"),
        ("\U000e0041", "U+E0041"),
        ("▁the", "▁the"),
        ("", ""),
    ],
)
def test_a_label_can_be_read(token: str, shown: str) -> None:
    assert label(token) == shown


def test_long_words_are_shortened() -> None:
    assert label("Donaudampfschifffahrt", longest=7) == "Donaud…"
    # A code point is kept whole or left out.
    assert label("\u200e\u200e", longest=9) == "U+200E…"


def test_a_title_keeps_its_spaces_and_has_a_box_for_a_letter_no_font_has() -> None:
    assert sentence("3 мая\n2016") == "3 мая 2016"
    assert sentence("a\U000e0041") == "a□"

"""The alignment heat map: what is on it, in which script, at which size; any warning (a missing glyph) fails."""

from itertools import pairwise

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attention_zoo.figures import draw_alignment

FRENCH = [*"mardi 3 mai 2016", "</s>"]
ISO = [*"2016-05-03", "</s>"]
NONE = (0, 0)
SPANS = np.array([(12, 16)] * 4 + [NONE] + [(8, 11)] * 2 + [NONE] + [(6, 7)] * 2 + [NONE])


def random_weights(targets: int, sources: int) -> np.ndarray:
    return np.random.default_rng(5).dirichlet(np.ones(sources), targets).astype(np.float32)


def drawn(figure: Figure) -> Figure:
    figure.canvas.draw()
    return figure


def names(figure: Figure) -> tuple[list[str], list[str]]:
    axes = figure.axes[0]
    return [text.get_text() for text in axes.get_xticklabels()], [text.get_text() for text in axes.get_yticklabels()]


def outlines(figure: Figure) -> list[tuple[float, float, float, float]]:
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [(*box.get_xy(), box.get_width(), box.get_height()) for box in boxes]


def test_every_token_and_weight_is_at_its_place() -> None:
    weights = random_weights(11, 17)
    figure = drawn(draw_alignment(weights, FRENCH, ISO))
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    columns, rows = names(figure)
    assert columns == [*"mardi␣3␣mai␣2016", "</s>"]
    assert rows == ISO
    assert axes.get_xticks().tolist() == list(range(17))
    # The first target token is written at the top, as a text is read.
    assert axes.yaxis_inverted()


def test_gold_spans_are_outlined_once_a_block() -> None:
    figure = drawn(draw_alignment(random_weights(11, 17), FRENCH, ISO, SPANS))
    assert outlines(figure) == [(11.5, -0.5, 4, 4), (7.5, 4.5, 3, 2), (5.5, 7.5, 1, 2)]


def test_without_spans_nothing_is_outlined() -> None:
    assert outlines(draw_alignment(random_weights(11, 17), FRENCH, ISO)) == []


@pytest.mark.parametrize(
    "text",
    [
        "вторник, 3 мая 2016\u202fг.",
        "Dienstag, 3. März 2016",
        "2016年5月3日",
        "오후 3시",
        "😀👍🏽",
        "ไทย",
        "e\u0301\u0301",
        "$x^_{$",
    ],
)
def test_any_script_is_drawn_without_a_missing_glyph(text: str) -> None:
    source = list(text)
    figure = drawn(draw_alignment(random_weights(3, len(source)), source, ["a", "b", "c"], title=text))
    assert len(names(figure)[0]) == len(source)


def test_letters_stand_upright_and_words_are_turned() -> None:
    letters = draw_alignment(random_weights(2, 17), FRENCH, ["a", "b"]).axes[0].get_xticklabels()
    assert [text.get_rotation() for text in letters] == [0.0] * 16 + [60.0]
    words = "the agreement on the European Economic Area".split()
    turned = draw_alignment(random_weights(2, 7), words, ["a", "b"]).axes[0].get_xticklabels()
    assert {text.get_rotation() for text in turned} == {60.0}


def test_size_grows_with_the_lengths_up_to_a_page() -> None:
    def size(rows: int, columns: int) -> tuple[float, float]:
        figure = draw_alignment(random_weights(rows, columns), ["x"] * columns, ["y"] * rows)
        return tuple(figure.get_size_inches())

    (short, low), (wide, high) = size(5, 7), size(11, 61)
    assert short < wide < 18 and low < high
    assert max(size(401, 503)) < 18


def test_labels_never_overlap_however_long_the_source() -> None:
    figure = drawn(draw_alignment(random_weights(3, 503), ["w"] * 503, ["a", "b", "c"]))
    boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_all_zero_weights_are_drawn() -> None:
    drawn(draw_alignment(np.zeros((2, 3), np.float32), ["a", "b", "c"], ["d", "e"]))


def test_a_long_title_is_broken_into_lines() -> None:
    figure = draw_alignment(random_weights(2, 3), ["a", "b", "c"], ["d", "e"], title="word " * 30)
    assert len(figure.get_suptitle().splitlines()) > 1


def test_as_many_labels_as_weights_are_wanted() -> None:
    with pytest.raises(ValueError, match="3 target and 5 source positions, but there are 2 target and 5 source tokens"):
        draw_alignment(random_weights(3, 5), list("abcde"), list("fg"))


@pytest.mark.parametrize("span", [(-1, 2), (2, 6), (3, 2)])
def test_spans_outside_the_source_are_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not within the 5 source positions"):
        draw_alignment(random_weights(1, 5), list("abcde"), ["f"], np.array([span]))


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        draw_alignment(np.full((1, 2), np.nan, np.float32), ["a", "b"], ["c"])


def test_an_empty_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        draw_alignment(np.zeros((0, 2), np.float32), ["a", "b"], [])


def test_weights_of_several_heads_are_refused_by_name() -> None:
    with pytest.raises(TypeCheckError, match="weights"):
        draw_alignment(np.zeros((2, 3, 5), np.float32), list("abcde"), list("fgh"))

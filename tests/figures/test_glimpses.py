"""Glimpses over an image: the squares and the path by hand, what cannot be drawn, and costs on logarithmic axes."""

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from attention_zoo.figures import draw_cost, draw_glimpses, save
from attention_zoo.figures.glimpses import BOX

IMAGE = np.random.default_rng(0).random((8, 10, 1)).astype(np.float32)
ROW = {"implementation": "a", "direction": "inference", "side": 64, "median_ms": 3.0, "temporary_bytes": 5e6}


def rectangles(axes):
    """Left, top, width, height of each square that is drawn."""
    return [(*box.get_xy(), box.get_width(), box.get_height()) for box in axes.patches if isinstance(box, Rectangle)]


def test_squares_and_path_by_hand():
    figure = draw_glimpses(IMAGE, np.float32([[0, 0], [-1, 1]]), 2, 2, "five", np.float32([1, 2, 5, 7]))
    axes = figure.axes[0]
    # The box, then the squares of two and of four pixels around (y, x) = (4, 5), then around (0, 10).
    assert rectangles(axes) == [(2, 1, 5, 4), (4, 3, 2, 2), (3, 2, 4, 4), (9, -1, 2, 2), (8, -2, 4, 4)]
    assert axes.patches[0].get_edgecolor() == matplotlib.colors.to_rgba(BOX)
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[5, 4], [10, 0]])
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [("1", (5, 4)), ("2", (10, 0))]
    assert axes.get_title() == "five" and axes.get_ylim() == (8, 0)
    assert axes.patches[1].get_edgecolor()[:3] != axes.patches[3].get_edgecolor()[:3]


def test_colours_and_one_glimpse_are_drawn(tmp_path):
    coloured = np.repeat(IMAGE, 3, -1)
    figure = draw_glimpses(coloured, np.zeros((1, 2), np.float32), 3, 1)
    assert figure.axes[0].images[0].get_array().shape == (8, 10, 3)
    assert save(figure, tmp_path / "one.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("channels", "places", "sentence"),
    [
        (2, [[0, 0]], "An image has one channel or three; got 2"),
        (1, np.zeros((0, 2)), "There is no glimpse to draw"),
        (1, [[0, np.nan]], "A location is not finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(channels, places, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw_glimpses(np.repeat(IMAGE, channels, -1), np.array(places, np.float32), 2, 1)


def test_costs_by_hand():
    rows = [{**ROW, "side": side, "flops": flops} for side, flops in ((64, 1e9), (128, 4e9))]
    figure = draw_cost([*rows, {**rows[0], "implementation": "b"}, {**rows[0], "direction": "training"}])
    assert [axes.get_title() for axes in figure.axes] == [
        f"{direction}: {label}"
        for direction in ("inference", "training")
        for label in ("milliseconds", "temporary MB", "GFLOP")
    ]
    operations = figure.axes[2]
    assert (operations.get_xscale(), operations.get_yscale()) == ("log", "log")
    assert [line.get_label() for line in operations.lines] == ["a", "b"]
    np.testing.assert_array_equal(operations.lines[0].get_xydata(), [[64, 1], [128, 4]])
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [5, 5])
    with pytest.raises(ValueError, match="no cost to draw"):
        draw_cost([])

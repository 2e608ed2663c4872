"""A caption over its image: what is drawn on each panel, and where; any warning (a missing glyph) fails."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attention_zoo.figures import draw_caption, save

Y, X, GRID = 20, 30, (4, 5)  # cells of 5 x 6 pixels
WORDS = ["seven", "two", "</s>"]
IMAGE = np.random.default_rng(0).random((Y, X, 1)).astype(np.float32)
CELLS = [(0, 0), (3, 4), (1, 2)]
CHOSEN = np.eye(20, dtype=np.float32)[[5 * row + column for row, column in CELLS]]
SOFT = np.random.default_rng(1).dirichlet(np.ones(20), 3).astype(np.float32)
BOXES = np.array([[1, 2, 9, 11], [12, 20, 20, 30], [0, 0, 0, 0]], np.float32)


def outlines(figure: Figure) -> list[list[tuple[float, float, float, float]]]:
    """Left, top, width, height of what is outlined on each panel."""
    boxes = [[patch for patch in axes.patches if isinstance(patch, Rectangle)] for axes in figure.axes]
    return [[(*box.get_xy(), box.get_width(), box.get_height()) for box in panel] for panel in boxes]


def test_the_image_comes_first_then_a_panel_a_word_with_its_heat():
    figure = draw_caption(IMAGE, WORDS, SOFT, GRID)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == ["", *WORDS]
    first, *panels = figure.axes
    np.testing.assert_array_equal(first.images[0].get_array(), IMAGE[..., 0])
    assert len(first.images) == 1
    for axes, row in zip(panels, SOFT, strict=True):
        picture, heat = axes.images
        np.testing.assert_array_equal(picture.get_array(), IMAGE[..., 0])
        # Row by row from the top left, over the whole image.
        np.testing.assert_array_equal(heat.get_array(), row.reshape(GRID))
        assert heat.get_extent() == picture.get_extent() == [0, X, Y, 0]
        assert heat.get_interpolation() == "bicubic" and heat.get_clim() == (0, row.max())
        assert axes.yaxis_inverted() and axes.get_xlim() == (0, X)
    assert heat.cmap(0.0)[3] == 0 and heat.cmap(1.0)[3] > 0.5


def test_the_heat_is_where_the_weight_is():
    black = np.zeros((Y, X, 1), np.float32)
    figure = draw_caption(black, WORDS, CHOSEN, GRID)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., 0].astype(int)
    for axes, (row, column) in zip(figure.axes[1:], CELLS, strict=True):
        middles = [((c + 0.5) * 6, (r + 0.5) * 5) for r in range(4) for c in range(5)]
        columns, rows = axes.transData.transform(middles).round().astype(int).T
        red = pixels[len(pixels) - rows, columns]
        assert red.argmax() == 5 * row + column and np.sum(red > 0.5 * red.max()) == 1


def test_chosen_cells_are_outlined_with_their_probability():
    figure = draw_caption(IMAGE, WORDS, CHOSEN, GRID, probabilities=np.array([0.254, 0.999, 1.0], np.float32))
    assert outlines(figure) == [[], [(0, 0, 6, 5)], [(24, 15, 6, 5)], [(12, 5, 6, 5)]]
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [[], ["0.25"], ["1.00"], ["1.00"]]
    figure.canvas.draw()
    for axes in figure.axes[1:]:
        assert len(axes.images) == 1
        box, written = axes.get_window_extent(), axes.texts[0].get_window_extent()
        assert box.x0 <= written.x0 and written.x1 <= box.x1 and box.y0 <= written.y0 and written.y1 <= box.y1


def test_chosen_without_probabilities_and_true_boxes():
    figure = draw_caption(IMAGE, WORDS, CHOSEN, GRID, chosen=True, boxes=BOXES)
    assert outlines(figure) == [[], [(0, 0, 6, 5), (2, 1, 9, 8)], [(24, 15, 6, 5), (20, 12, 10, 8)], [(12, 5, 6, 5)]]
    assert not any(axes.texts for axes in figure.axes)


def test_a_word_that_looked_nowhere_is_bare():
    for options in ({}, {"chosen": True}, {"probabilities": np.ones(3, np.float32)}):
        figure = draw_caption(IMAGE, WORDS, CHOSEN * [[0], [1], [1]], GRID, **options)
        figure.canvas.draw()
        bare, looked = figure.axes[1:3]
        assert len(bare.images) + len(bare.patches) + len(bare.texts) == 1
        assert len(looked.images) + len(looked.patches) > 1


def test_a_caption_without_words_is_the_image_alone():
    figure = draw_caption(IMAGE, [], SOFT[:0], GRID, boxes=BOXES[:0])
    figure.canvas.draw()
    assert len(figure.axes) == 1


def test_a_coloured_image_is_grey_under_what_was_attended_to():
    colours = np.zeros((Y, X, 3), np.float32) + np.array([1.0, 0.0, 0.5], np.float32)
    first, *panels = draw_caption(colours, WORDS, SOFT, GRID).axes
    np.testing.assert_array_equal(first.images[0].get_array(), colours)
    for axes in panels:
        np.testing.assert_allclose(axes.images[0].get_array(), 0.356, rtol=1e-6)


def test_many_words_wrap_into_rows_and_a_title_into_lines(tmp_path):
    words = ["слово", "$x^_{$", "語", *map(str, range(9))]
    figure = draw_caption(IMAGE, words, np.full((12, 20), 0.05, np.float32), GRID, title="a long title " * 20)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 13 and {axes.get_subplotspec().colspan.start for axes in shown} == set(range(6))
    assert [axes.get_subplotspec().rowspan.start for axes in shown] == [0] * 6 + [1] * 6 + [2]
    assert "\n" in figure.get_suptitle()
    assert save(figure, tmp_path / "caption.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"words": []}, "0 words, but there are weights of 3"),
        ({"words": ["a"]}, "1 words, but there are weights of 3"),
        ({"grid": (4, 6)}, "4 x 6 has not the 20 locations"),
        ({"grid": (-4, -5)}, "-4 x -5 has not the 20 locations"),
        ({"image": np.zeros((Y, X, 2), np.float32)}, r"1 or 3 channels\]; got \[20, 30, 2\]"),
        ({"weights": SOFT * np.nan}, "Not all of the weights are finite"),
        ({"boxes": BOXES + np.inf}, "Not all of the boxes are finite"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    given = {"image": IMAGE, "words": WORDS, "weights": SOFT, "grid": GRID} | change
    with pytest.raises(ValueError, match=said):
        draw_caption(**given)


def test_not_a_box_for_each_word_is_refused_by_name():
    with pytest.raises(TypeCheckError, match="boxes"):
        draw_caption(IMAGE, WORDS, SOFT, GRID, boxes=BOXES[:2])

"""The picture of growth: a panel a letter, and every exponent where it belongs."""

import pytest

from attention_zoo.figures import draw_growth, save

ROWS = [
    {"implementation": "dot", "time_growth": {"T": 0.9, "S": 1.1}, "temporaries_growth": {"T": 1.0, "S": None}},
    {"implementation": "$a$", "time_growth": {"T": 0.1, "S": 2.0}, "temporaries_growth": {"T": 0.5, "S": 0.7}},
]


def test_every_exponent_stands_in_its_panel_and_line(tmp_path):
    panels = draw_growth(ROWS).axes
    assert [axes.get_title() for axes in panels] == ["exponent of T", "exponent of S"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["dot", "$a$"]
    found = [[(*line.get_xdata(), *line.get_ydata()) for line in axes.lines[:2]] for axes in panels]
    assert found == [[(0.9, 0.1, 0, 1), (1.0, 0.5, 0, 1)], [(1.1, 2.0, 0, 1), (0.7, 1)]]
    times, temporaries = panels[0].lines[:2]
    assert times.get_color() != temporaries.get_color() and times.get_marker() != temporaries.get_marker()
    assert panels[0].get_ylim()[0] > panels[0].get_ylim()[1]  # the first on top
    assert save(draw_growth(ROWS), tmp_path / "growth.png").stat().st_size > 0


@pytest.mark.parametrize("rows", [[], [{"implementation": "dot", "time_growth": {}, "temporaries_growth": {}}]])
def test_what_cannot_be_drawn_is_refused(rows):
    with pytest.raises(ValueError, match="no growth to draw"):
        draw_growth(rows)

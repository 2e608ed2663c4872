"""The picture of estimators: where each point stands and what is said of it."""

import math

import pytest

from attention_zoo.figures import draw_variance, save

ROWS = [
    {"implementation": "soft $a$", "case": "bound, B2", "variance": 0, "error_vs_reference": 0.43, "bias_bound": 1e-5},
    {"implementation": "marginal", "case": "marginal, B2", "variance": 0.0, "error_vs_reference": 0, "bias_bound": 0.1},
    {"implementation": "none", "case": "bound, B2", "variance": 20.0, "error_vs_reference": 0.05, "bias_bound": 0.1},
    {"implementation": "gumbel", "case": "bound, B2", "variance": 2.0, "error_vs_reference": 0.271, "bias_bound": 0.2},
]


def test_variance_on_a_logarithmic_axis_and_bias_in_words(tmp_path):
    (axes,) = draw_variance(ROWS).axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["soft $a$", "none", "gumbel", "marginal"]
    points = [line for line in axes.lines if line.get_marker() in "<oD"]
    assert [line.get_marker() for line in points] == ["<", "o", "D", "<"]
    assert [float(line.get_xdata()[0]) for line in points[1:3]] == [20, 2]
    assert all(math.isclose(float(point.get_xdata()[0]), 0.5) for point in points[::3])  # on the left edge
    assert points[0].get_color() == points[2].get_color() != points[1].get_color() == points[3].get_color()
    words = [text.get_text() for text in axes.texts]
    assert [text for text in words if ", B2" not in text] == ["no variance, bias 43 %", "", "bias 27 %", "no variance"]
    assert [text for text in words if ", B2" in text] == ["bound, B2", "marginal, B2"]
    low, high = axes.get_xlim()
    assert low < 0.5 and high > 20 and axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert save(draw_variance(ROWS[:2]), tmp_path / "variance.png").stat().st_size > 0


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no estimator to draw"):
        draw_variance([])
    with pytest.raises(ValueError, match="row of none has no number 'bias_bound'"):
        draw_variance([{**ROWS[2], "bias_bound": None}])

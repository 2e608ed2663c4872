"""The cost of glimpses at its smallest size: it does not grow with the canvas, a convolution's does."""

import numpy as np

from benchmarks import glimpse_large


def test_the_glimpse_models_work_does_not_grow_with_the_canvas(tmp_path):
    rows = [*glimpse_large.benchmark("small", repetitions=1)]
    assert len(rows) == 2 * 2 * 3 and all(np.isfinite(row.ratio) and row.median_ms > 0 for row in rows)
    for direction in ("forward", "forward+gradient"):
        flops = {
            name: [row.flops for row in rows if (row.implementation, row.direction) == (name, direction)]
            for name in {row.implementation for row in rows}
        }
        small, large = flops.pop("attention_zoo")
        assert 0 < large <= 1.1 * small
        assert all(large > 3 * small > 0 for small, large in flops.values())
    figure = glimpse_large.draw(rows)
    assert [axes.get_title() for axes in figure.axes][:2] == ["inference: milliseconds", "inference: temporary MB"]
    assert all(len(axes.lines) == 3 for axes in figure.axes)

"""The additive benchmark at its smallest size: equal results, and fewer temporaries than the plain formula."""

import jax
import numpy as np

from benchmarks import additive


def test_additive_agrees_with_the_plain_formula():
    with jax.numpy_rank_promotion("allow"):  # Keras wants it
        rows = additive.benchmark("small", repetitions=1)
    names = [row.implementation for row in rows]
    assert names[:2] == ["attention_zoo", "plain JAX"] and set(names[2:]) <= {"keras"}
    assert {(row.benchmark, row.case, row.direction) for row in rows} == {
        ("additive", "B2 T7 S5 D11", "forward+gradient")
    }
    assert all(row.error_vs_reference < 1e-5 and np.isfinite(row.ratio) for row in rows)

"""What is known of bounds while tracing: of which nothing has to be cleared, and which hide nothing at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import dot_product
from attention_zoo.functional.dot_product import dot_product_attention
from attention_zoo.functional.weighing import seen
from tests.functional.test_blocks import call

BOUNDS = (None, 0), (2, None), (2, 0), (0, 1), (4, 4)
OFFSETS = range(-6, 7)


def allowed(queries: int, keys: int, left: int | None, right: int | None, offset: int) -> list[np.ndarray]:
    """Which keys a query sees by each bound, pair by pair."""
    distances = np.arange(keys)[None] - np.arange(queries)[:, None] - offset
    found = [distances >= -left] if left is not None else []
    return [*found, distances <= right] if right is not None else found


@pytest.mark.parametrize("keys", [1, 4, 5])
@pytest.mark.parametrize("queries", [1, 3, 5])
def test_no_rule_of_a_bound_that_leaves_everyone_something(queries, keys):
    for offset in OFFSETS:
        for left, right in BOUNDS:
            rules = seen(call(queries, keys, left=left, right=right, offset=offset))
            found = allowed(queries, keys, left, right, offset)
            needed = sum(not (bound.any(0).all() and bound.any(1).all()) for bound in found)
            assert len(rules.queries) == len(rules.keys) == needed
    assert len(seen(call(queries, keys, offset=None)).keys) == 1


@pytest.mark.parametrize("keys", [1, 4, 5])
@pytest.mark.parametrize("queries", [1, 3, 5])
def test_bounds_that_hide_nothing_are_dropped(queries, keys, monkeypatch):
    calls = []
    monkeypatch.setattr(dot_product, "whole", lambda call: calls.append(call.settings) or call.queries)
    arrays = [jnp.ones((1, 1, size, 1)) for size in (queries, keys, keys)]
    for offset in OFFSETS:
        for window in (2, 0), (0, 1), (4, 4):
            dot_product_attention(*arrays, window=window, offset=offset, implementation="plain")
            hiding = [not bound.all() for bound in allowed(queries, keys, *window, offset)]
            assert [bound is not None for bound in calls[-1][2:4]] == hiding
    dot_product_attention(*arrays, causal=True, window=(9, 9), offset=jnp.array(0), implementation="plain")
    assert calls[-1][2:4] == (9, 0)


def test_bounds_of_sizes_that_only_names_stand_for():
    queries, keys = jax.export.symbolic_shape("t, s")
    arrays = [jax.ShapeDtypeStruct((1, 2, size, 3), "float32") for size in (queries, keys, keys)]
    run = jax.jit(lambda *arrays: dot_product_attention(*arrays, causal=True, window=(2, 2), implementation="plain"))
    given = [np.float32(np.random.default_rng(0).normal(size=(1, 2, size, 3))) for size in (5, 7, 7)]
    np.testing.assert_allclose(jax.export.export(run)(*arrays).call(*given), run(*given), rtol=1e-5, atol=1e-6)

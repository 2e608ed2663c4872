"""Heads side by side and apart: the transposes they stand for, their gradients, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jaxtyping import TypeCheckError

from attention_zoo.functional import heads
from attention_zoo.functional.heads import join_heads, split_heads

B, T, H, D = 2, 5, 3, 7
VECTORS = np.random.default_rng(0).normal(size=(B, T, H * D))


def transposed(vectors, number):
    return np.swapaxes(np.reshape(vectors, (*vectors.shape[:-1], number, -1)), -2, -3)


@pytest.fixture(params=["slices", "transposes"], autouse=True)
def _way(request, monkeypatch):
    if request.param == "transposes":
        monkeypatch.setattr(heads, "_transposed", lambda steps: True)


@pytest.mark.parametrize("lead", [(), (B,), (B, 1)])
@pytest.mark.parametrize("number", [1, H, H * D])
def test_a_head_is_a_slice_of_every_vector_and_goes_back_to_its_place(number, lead):
    vectors = np.broadcast_to(VECTORS[0], (*lead, T, H * D))
    found = split_heads(vectors, number)
    np.testing.assert_array_equal(found, np.float32(transposed(vectors, number)))
    np.testing.assert_array_equal(join_heads(found), np.float32(vectors))


@pytest.mark.parametrize("steps", [0, 1])
def test_no_step_and_one(steps):
    vectors = np.float32(VECTORS[:, :steps])
    found = split_heads(vectors, H)
    assert found.shape == (B, H, steps, D)
    np.testing.assert_array_equal(join_heads(found), vectors)


def test_gradients_equal_finite_differences_and_map_over_examples(float64):
    work = lambda vectors: join_heads(jnp.sin(split_heads(vectors, H) * 3.0))  # noqa: E731
    check_grads(work, (VECTORS,), order=2, modes=("fwd", "rev"))
    np.testing.assert_array_equal(jax.vmap(partial(split_heads, heads=H))(VECTORS), split_heads(VECTORS, H))


def test_slices_are_for_one_cpu_and_several_steps(request, monkeypatch):
    if "transposes" in request.node.name:
        pytest.skip("says itself which way")

    def kinds(steps, devices):
        monkeypatch.setattr(heads, "one_cpu", lambda: devices == 1)
        work = lambda vectors: join_heads(split_heads(vectors, H))  # noqa: E731
        return {equation.primitive.name for equation in jax.make_jaxpr(work)(jnp.ones((B, steps, H * D))).eqns}

    assert "split" in kinds(T, 1) and "transpose" not in kinds(T, 1)
    for found in (kinds(1, 1), kinds(T, 2)):
        assert "transpose" in found and "split" not in found


def test_what_makes_no_heads_is_refused():
    with pytest.raises(ValueError, match="vectors of 21 numbers do not make 4 heads of one width"):
        split_heads(VECTORS, 4)
    with pytest.raises(ValueError, match="do not make 0 heads"):
        split_heads(VECTORS, 0)
    with pytest.raises(TypeCheckError, match="parameter 'vectors'"):
        split_heads(VECTORS[0, 0], H)
    with pytest.raises(TypeCheckError, match="parameter 'heads'"):
        join_heads(VECTORS[0])

"""Scores: cases solved by hand, equivalences between scores, gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional import scores
from attention_zoo.functional.loop import scan

QUERIES = np.array([[1.0, 2.0], [0.0, -1.0]])
KEYS = np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 1.0]])
B, T, S, D, K, H, L = 2, 3, 7, 5, 11, 13, 17
dot, scaled_dot, general = map(jax.jit, (scores.dot, scores.scaled_dot, scores.general))
additive, concat, cosine = map(jax.jit, (scores.additive, scores.concat, scores.cosine))
normalised_energy = jax.jit(scores.normalised_energy)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def test_dot_by_hand():
    np.testing.assert_array_equal(dot(QUERIES, KEYS), [[11, 0, 0], [-4, 0, -1]])


def test_scaled_dot_by_hand():
    # Width 4: every product is halved.
    queries, keys = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, -8.0]])
    np.testing.assert_array_equal(scaled_dot(queries, keys), [[5, -16]])


def test_general_by_hand():
    # W k is the (sum, difference) of k: (7, -1), (0, 0), (-1, -3).
    weight = np.array([[1.0, 1.0], [1.0, -1.0]])
    np.testing.assert_array_equal(general(QUERIES, KEYS, weight), [[5, 0, -7], [1, 0, 3]])


def test_general_weight_has_queries_in_rows():
    # q^T W k with W = [[0, 0, 5]]: only the third key entry counts, five times.
    weight = np.array([[0.0, 0.0, 5.0]])
    assert general(np.array([[2.0]]), np.array([[7.0, 8.0, 1.0]]), weight) == 10


def test_additive_by_hand():
    # tanh(ln 2) = 3/5 and tanh(ln 3) = 4/5, so the score is 10 * 3/5 - 5 * 4/5.
    queries, keys = np.array([[np.log(2), 1.0]]), np.array([[0.0, np.log(3) - 1], [-np.log(2), -1.0]])
    np.testing.assert_allclose(additive(queries, keys, np.array([10.0, -5.0])), [[2, 0]], atol=1e-6)


def test_concat_by_hand():
    # One unit that sums ln(2) * (first of q) and ln(3) * (second of k): tanh(ln 6) = 35/37, tanh(ln(2/3)) = -5/13.
    weight = np.array([[np.log(2), 0.0, 0.0, np.log(3)]])
    found = concat(np.array([[1.0, 9.0]]), np.array([[9.0, 1.0], [9.0, -1.0]]), weight, np.array([2.0]))
    np.testing.assert_allclose(found, [[70 / 37, -10 / 13]], rtol=1e-6)


def test_normalised_energy_by_hand():
    np.testing.assert_allclose(normalised_energy(np.array([3.0, -4.0]), np.array(10.0)), [6, -8], rtol=1e-6)


def test_location_by_hand():
    # Columns are positions; the fourth position lies beyond this source.
    weight = np.array([[1.0, 0.0, 2.0, 50.0], [0.0, 1.0, -1.0, 50.0]])
    np.testing.assert_array_equal(scores.location(QUERIES, weight, 3), [[1, 2, 0], [0, -1, 1]])


def test_cosine_by_hand():
    queries, keys = np.array([[3.0, 4.0]]), np.array([[6.0, 8.0], [-4.0, 3.0], [-3.0, -4.0], [5.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(cosine(queries, keys, 10.0), [[10, 0, -10, 6, 0]], atol=1e-6)


def test_cosine_of_a_zero_vector_has_no_gradient():
    gradients = jax.jit(jax.grad(lambda q, k: cosine(q, k).sum(), argnums=(0, 1)))(np.zeros((1, 2)), KEYS)
    np.testing.assert_array_equal(gradients[0], 0)
    np.testing.assert_array_equal(gradients[1], 0)


def test_cosine_ignores_scale():
    queries, keys = draw(T, D), draw(S, D)
    np.testing.assert_allclose(cosine(100 * queries, keys), cosine(queries, 0.01 * keys), atol=1e-6)


def test_scaled_dot_is_dot_of_scaled(float64):
    queries, keys = draw(B, T, D), draw(B, S, D)
    np.testing.assert_allclose(scaled_dot(queries, keys), np.asarray(dot(queries, keys)) / np.sqrt(D), rtol=1e-12)


def test_general_is_dot_of_projected_keys(float64):
    queries, keys, weight = draw(B, T, D), draw(B, S, K), draw(D, K)
    expected = dot(queries, keys @ weight.T)
    np.testing.assert_allclose(general(queries, keys, weight), expected, rtol=1e-10, atol=1e-12)


def test_concat_is_the_formula_on_joined_vectors(float64):
    queries, keys, weight, energy = draw(B, T, D), draw(B, S, K), draw(H, D + K), draw(H)
    found = np.asarray(concat(queries, keys, weight, energy))
    for b, t, s in np.ndindex(B, T, S):
        expected = energy @ np.tanh(weight @ np.concatenate([queries[b, t], keys[b, s]]))
        np.testing.assert_allclose(found[b, t, s], expected, atol=1e-12)


def test_normalised_energy_has_length_gain_and_ignores_scale(float64):
    energy = draw(D)
    normalised = normalised_energy(energy, np.array(0.7))
    np.testing.assert_allclose(np.linalg.norm(normalised), 0.7, rtol=1e-12)
    np.testing.assert_allclose(normalised_energy(1000 * energy, np.array(0.7)), normalised, rtol=1e-12)


@pytest.mark.parametrize("score", [dot, scaled_dot, cosine])
def test_leading_axes_broadcast(score):
    # One query set for all examples, one key set for all heads.
    queries, keys = draw(T, D), draw(B, 1, S, D)
    found = np.asarray(score(queries, keys))
    assert found.shape == (B, 1, T, S)
    np.testing.assert_allclose(found[1, 0], score(queries, keys[1, 0]), atol=1e-5)


def test_additive_and_friends_broadcast():
    energy = draw(D)
    found = np.asarray(additive(draw(T, D), draw(B, S, D), energy))
    np.testing.assert_allclose(found[1], additive(draw(T, D), draw(B, S, D)[1], energy), atol=1e-5)
    assert general(draw(T, D), draw(B, S, K), draw(D, K)).shape == (B, T, S)
    assert concat(draw(T, D), draw(B, S, K), draw(H, D + K), draw(H)).shape == (B, T, S)


GRADIENTS = {
    "dot": (scores.dot, (T, D), (S, D)),
    "scaled_dot": (scores.scaled_dot, (T, D), (S, D)),
    "general": (scores.general, (T, D), (S, K), (D, K)),
    "additive": (scores.additive, (T, D), (S, D), (D,)),
    "normalised_energy": (scores.normalised_energy, (D,), ()),
    "concat": (scores.concat, (T, D), (S, K), (H, D + K), (H,)),
    "location": (lambda queries, weight: scores.location(queries, weight, S), (T, D), (D, L)),
    "cosine": (scores.cosine, (T, D), (S, D), ()),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_finite_differences(name, float64):
    function, *shapes = GRADIENTS[name]
    arguments = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    check_grads(jax.jit(function), arguments, order=1, atol=1e-6, rtol=1e-6)


def test_location_refuses_a_source_longer_than_its_positions():
    with pytest.raises(ValueError, match="19 source positions, but the weight knows only 17"):
        scores.location(draw(T, D), draw(D, L), 19)


def test_concat_refuses_a_weight_of_another_width():
    with pytest.raises(ValueError, match=r"weight has 17 columns, queries and keys have 5 \+ 11 together"):
        scores.concat(draw(T, D), draw(S, K), draw(H, 17), draw(H))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [S, scores.TERMS + 3, 0])
def test_additive_in_a_loop_has_the_gradients_of_additive(size, monkeypatch):
    """Several queries a step, more sources than one loop sums, and none."""
    keys, energy, xs = draw(B, size, D), draw(D), draw(3, B, T, D)

    def step(constants, state, x):
        found = scores.additive(x + state, *constants)
        return jnp.tanh(state + jnp.sum(found**2, -1, keepdims=True)), found

    def total(loop, *arguments):
        last, found = loop(*arguments)
        return jnp.sum(last**2) + jnp.sum(jnp.sin(found))

    def plain(constants, state, xs):
        return jax.lax.scan(lambda state, x: step(constants, state, x), state, xs)

    taken = []
    inside = scores._additive_once_more
    monkeypatch.setattr(scores, "_additive_once_more", lambda *arrays: taken.append(arrays) or inside(*arrays))
    loops = (lambda *a: scan(step, *a), plain)
    arguments = (keys, energy), draw(B, T, 1), xs
    found, expected = (
        jax.jit(jax.value_and_grad(lambda *a, loop=loop: total(loop, *a), (0, 1, 2)))(*arguments) for loop in loops
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), found, expected)
    slopes = (lambda keys, loop=loop: jax.grad(total, 1)(loop, (keys, energy), *arguments[1:])[0] for loop in loops)
    along, other = (jax.jvp(slope, (keys,), (np.cos(keys),))[1] for slope in slopes)
    np.testing.assert_allclose(along, other, rtol=1e-10, atol=1e-11)
    assert bool(taken) == bool(size and jax.default_backend() == "cpu")


def test_a_loop_of_additive_is_exported_for_any_source():
    def total(keys, xs):
        step = lambda keys, state, x: (state, scores.additive(x, keys, jnp.ones(D)))  # noqa: E731
        return jnp.sum(scan(step, keys, jnp.float32(0), xs)[1] ** 2)

    some, xs = draw(B, S, D).astype(np.float32), draw(3, B, T, D).astype(np.float32)
    keys = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"{B}, s, {D}"), np.float32)
    exported = jax.export.export(jax.jit(jax.grad(total)))(keys, xs)
    np.testing.assert_allclose(exported.call(some, xs), jax.grad(total)(some, xs), rtol=1e-5, atol=1e-5)

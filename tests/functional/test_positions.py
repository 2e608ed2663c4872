"""Positions: by hand, against transformers, what turning keeps, published slopes, buckets at their edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jaxtyping import TypeCheckError

from attention_zoo.functional.positions import (
    alibi,
    alibi_slopes,
    relative,
    relative_buckets,
    rotary,
    sinusoidal,
    sinusoidal_2d,
)
from tests.quick import quick

B, H, T, S, D = 2, 3, 5, 7, 14


turn = quick(rotary)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def test_sinusoidal_by_hand():
    # Frequencies 1 and 10000^(-1/2) = 1/100.
    expected = [np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)]
    np.testing.assert_allclose(sinusoidal(jnp.array([3]), 4)[0], expected, rtol=1e-6)
    apart = sinusoidal(jnp.array([3]), 4, interleaved=False)[0]
    np.testing.assert_allclose(apart, [expected[0], expected[2], expected[1], expected[3]], rtol=1e-6)
    quarter = sinusoidal(jnp.array([1, 2]), 4, longest=4.0)[:, 2]
    np.testing.assert_allclose(quarter, np.sin([0.5, 1.0]), rtol=1e-6)


def test_sinusoidal_equals_marian(golden):
    table = golden("huggingface_positions", "sinusoidal")["table"]
    np.testing.assert_allclose(sinusoidal(jnp.arange(13), 22, interleaved=False), table, atol=1e-6)


def test_sinusoidal_takes_positions_of_each_row_and_a_dtype():
    positions = np.array([[0, 1, 2, 3, 4], [4, 4, 0, 9, 1]])
    found = quick(lambda: sinusoidal(positions, D))()
    np.testing.assert_array_equal(found[1, [0, 1, 2, 4]], found[0, [4, 4, 0, 1]])
    assert found.shape == (B, T, D) and found.dtype == jnp.float32
    half = quick(lambda: sinusoidal(positions, D, dtype=jnp.bfloat16))()
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, found.astype(jnp.bfloat16))


def test_sinusoidal_2d_by_hand():
    found = quick(lambda: sinusoidal_2d(3, 5, 8))()
    rows = columns = quick(lambda: sinusoidal(jnp.arange(5), 4))()
    assert found.shape == (15, 8)
    np.testing.assert_array_equal(found[2 * 5 + 3], np.concatenate([rows[2], columns[3]]))
    np.testing.assert_array_equal(found[1 * 5], np.concatenate([rows[1], columns[0]]))


def test_rotary_by_hand():
    # Width 4: the pairs turn by 1 and 1/100 radian a position; (1, 0) goes to (cos, sin).
    vector, position = jnp.array([[1.0, 1.0, 0.0, 0.0]]), jnp.array([2])
    expected = [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)]
    np.testing.assert_allclose(rotary(vector, position)[0], expected, rtol=1e-6)
    pairs = rotary(jnp.array([[1.0, 0.0, 1.0, 0.0]]), position, interleaved=True)[0]
    np.testing.assert_allclose(pairs, [expected[0], expected[2], expected[1], expected[3]], rtol=1e-6)
    faster = rotary(vector, position, base=4.0)[0]
    np.testing.assert_allclose(faster, [np.cos(2), np.cos(1), np.sin(2), np.sin(1)], rtol=1e-6)


def test_rotary_equals_llama(golden):
    case = golden("huggingface_positions", "rotary")
    for name in ("queries", "keys"):
        found = turn(case[name], case["positions"][:, None])
        np.testing.assert_allclose(found, case[f"turned_{name}"], atol=2e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_turned_product_depends_on_the_distance_alone_and_lengths_stay(interleaved):
    turn = quick(partial(rotary, interleaved=interleaved))
    queries, keys, positions = draw(B, H, T, D), draw(B, 1, T, D), jnp.array([0, 1, 3, 11, 17])
    products = np.einsum("bhtd,bgsd->bhts", turn(queries, positions), turn(keys, positions))
    shifted = np.einsum("bhtd,bgsd->bhts", turn(queries, positions + 29), turn(keys, positions + 29))
    np.testing.assert_allclose(shifted, products, atol=1e-4)
    assert np.abs(products - np.einsum("bhtd,bgsd->bhts", queries, keys)).max() > 1
    lengths = np.linalg.norm(turn(queries, positions), axis=-1)
    np.testing.assert_allclose(lengths, np.linalg.norm(queries, axis=-1), rtol=1e-5)


def test_rotary_has_positions_for_all_or_for_each_row():
    queries, positions = draw(B, H, T, D), jnp.array([[0, 1, 2, 3, 4], [0, 0, 5, 6, 7]])
    found = turn(queries, positions[:, None])
    for row in range(B):
        np.testing.assert_allclose(found[row], turn(queries, positions[row])[row], atol=1e-6)
    by_vmap = quick(jax.vmap(lambda queries, positions: rotary(queries, positions[None])))(queries, positions)
    np.testing.assert_allclose(by_vmap, found, atol=1e-6)


def test_rotary_turns_in_float32_and_answers_in_the_dtype_of_the_vectors():
    vectors, positions = draw(T, D).astype(jnp.bfloat16), jnp.arange(4001, 4001 + T)
    found = turn(vectors, positions)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, turn(vectors.astype(np.float32), positions).astype(jnp.bfloat16))


def test_rotary_gradient_equals_finite_differences(float64):
    turn = jax.jit(lambda vectors: rotary(vectors, jnp.arange(T)))
    check_grads(turn, (draw(B, T, D).astype(np.float64),), order=1, atol=1e-6, rtol=1e-6)


def test_published_slopes():
    np.testing.assert_allclose(alibi_slopes(8), [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256])
    between = 2.0 ** -np.array([0.5, 1.5, 2.5, 3.5])
    np.testing.assert_allclose(alibi_slopes(12), np.concatenate([alibi_slopes(8), between]), rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(1), [1 / 256])


@pytest.mark.parametrize("heads", [8, 12])
def test_alibi_equals_bloom(golden, heads):
    expected = golden("huggingface_positions", "alibi")[f"heads{heads}"]
    bias = alibi(heads)(jnp.array([6]), jnp.arange(7))[:, 0]
    np.testing.assert_allclose(bias + 6 * alibi_slopes(heads)[:, None], expected, atol=1e-6)


@pytest.mark.parametrize(
    "bias", [alibi(H), relative(draw(8, H), max_distance=20, bidirectional=True)], ids=["alibi", "relative"]
)
def test_a_bias_takes_positions_of_each_row_and_is_the_same_in_chunks(bias):
    queries, keys = np.array([[0, 1, 2, 3, 4], [3, 9, 0, 2, 1]]), np.arange(2 * S).reshape(2, S)

    @quick
    def run(queries, keys):
        rows = [bias(queries[row], keys[row]) for row in range(2)]
        chunks = [bias(queries[:, :3], keys), bias(queries[:, 3:], keys)]
        shared = bias(queries, keys[0]), bias(queries[1], keys[0])
        return bias(queries, keys), rows, chunks, jax.vmap(bias)(queries, keys), bias(queries + 17, keys + 17), shared

    both, rows, chunks, by_vmap, shifted, shared = run(queries, keys)
    assert both.shape == (2, H, T, S) and both.dtype == jnp.float32
    for same in (np.stack(rows), np.concatenate(chunks, -2), by_vmap, shifted):
        np.testing.assert_array_equal(same, both)
    np.testing.assert_array_equal(shared[0][1], shared[1])


def test_buckets_by_hand():
    # 4 buckets a direction: distances 0, 1, then 2 ... 7 and 8 ... on a scale of sqrt(32 / 2) = 4.
    distances = np.array([[0, 1, 2, 7], [8, 31, 32, 10**6]])
    both = quick(partial(relative_buckets, buckets=8, max_distance=32, bidirectional=True))
    np.testing.assert_array_equal(both(-distances), [[0, 1, 2, 2], [3, 3, 3, 3]])
    np.testing.assert_array_equal(both(distances), [[0, 5, 6, 6], [7, 7, 7, 7]])
    past = quick(partial(relative_buckets, buckets=4, max_distance=32, bidirectional=False))
    np.testing.assert_array_equal(past(-distances), [[0, 1, 2, 2], [3, 3, 3, 3]])
    np.testing.assert_array_equal(past(distances), np.zeros((2, 4)))


def test_buckets_equal_t5(golden):
    case = golden("huggingface_positions", "buckets")
    distances = case.pop("distances")
    assert len(case) == 8

    def bucket(name: str) -> jax.Array:
        buckets, largest, kind = name.split("_")
        sizes = {"buckets": int(buckets), "max_distance": int(largest)}
        return relative_buckets(distances, **sizes, bidirectional=kind == "both")

    found = quick(lambda: {name: bucket(name) for name in case})()
    jax.tree.map(np.testing.assert_array_equal, found, case)


def test_the_relative_bias_reads_its_table_and_teaches_it():
    table, queries, keys = draw(8, H), np.arange(T), np.arange(S)
    sizes = {"max_distance": 20, "bidirectional": True}

    @quick
    def run(table):
        found, pull_back = jax.vjp(lambda table: relative(table, **sizes)(queries, keys), table)
        return found, *pull_back(jnp.ones_like(found))

    found, gradient = run(table)
    buckets = relative_buckets(keys[None] - queries[:, None], buckets=8, **sizes)
    np.testing.assert_array_equal(found[1, 3, 6], table[buckets[3, 6], 1])
    counts = np.bincount(np.ravel(buckets), minlength=8)
    np.testing.assert_array_equal(gradient, np.repeat(counts[:, None], H, 1))


def test_the_relative_bias_is_a_pytree_of_its_table():
    sizes = {"max_distance": 20, "bidirectional": True}
    leaves, structure = jax.tree.flatten(relative(draw(8, H), **sizes))
    assert [leaf.shape for leaf in leaves] == [(8, H)]
    assert structure == jax.tree.structure(relative(draw(8, H, seed=1), **sizes))


def test_positions_may_be_traced_and_exported():
    bias = relative(draw(32, H), bidirectional=True)

    def run(queries: jax.Array, positions: jax.Array) -> tuple[jax.Array, ...]:
        return rotary(queries, positions), sinusoidal(positions, D), bias(positions, positions)

    arguments = draw(H, T, D), np.arange(T)
    exported = jax.export.export(jax.jit(run))(*arguments).call(*arguments)
    known = jax.jit(lambda: run(*arguments))()  # the positions are no arguments
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), exported, known)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: sinusoidal(jnp.arange(T), 7), "sinusoidal: the width is a multiple of 2, above zero; got 7"),
        (lambda: sinusoidal_2d(3, 5, 6), "sinusoidal_2d: the width is a multiple of 4, above zero; got 6"),
        (lambda: rotary(draw(T, 7), jnp.arange(T)), "rotary: the width is a multiple of 2, above zero; got 7"),
        (lambda: alibi(0), "alibi_slopes: heads is at least 1; got 0"),
        (
            lambda: relative_buckets(jnp.arange(T), buckets=7, bidirectional=True),
            "relative_buckets: an even number of buckets serves two directions; got 7",
        ),
        (
            lambda: relative_buckets(jnp.arange(T), max_distance=16, bidirectional=False),
            "got 32 a direction and max_distance 16",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("positions", [np.arange(S), np.zeros((3, 1, T), int), np.zeros(T, np.float32)])
def test_wrong_positions_are_refused(positions):
    with pytest.raises(TypeCheckError, match="parameter 'positions'"):
        rotary(draw(B, H, T, D), positions)

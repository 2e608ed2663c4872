"""Monotonic alignment at work: in chunks, in a loop, with noise; decided offline, and online with few reads."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax import lax
from jaxtyping import TypeCheckError

from attention_zoo.functional import loop, masks, monotonic, scores

B, T, S, V = 2, 5, 7, 11
assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
compiled_hard = jax.jit(monotonic.hard)
FUNCTIONS = {"expected": jax.jit(monotonic.monotonic), "hard": compiled_hard}
seeds = st.integers(0, 999)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def start(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.eye(1, shape[-1], dtype=np.float32)[0], shape)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_in_chunks_with_the_state_handed_on(function):
    # The same to the last bit, also in bfloat16, for the state stays float32.
    scores, mask = jnp.asarray(draw(B, T, S), jnp.bfloat16), np.arange(S) < np.array([[[S]], [[4]]]) + np.zeros((T, 1))
    begin = monotonic.first(mask[:, 0])
    whole, last = function(scores, mask, begin)
    early, state = function(scores[:, :3], mask[:, :3], begin)
    late, state = function(scores[:, 3:], mask[:, 3:], state)
    np.testing.assert_array_equal(np.concatenate([early, late], axis=1), whole)
    np.testing.assert_array_equal(state, last)
    assert state.dtype == jnp.float32


def test_in_a_decoder_loop():
    # `loop.scan` has a gradient of its own making; one query a step, which depends on what was attended to before.
    keys = np.float32(draw(B, S, V))

    def step(keys: jax.Array, carry: tuple, x: jax.Array) -> tuple:
        query, state = carry
        weights, state = monotonic.monotonic(scores.dot(query[:, None], keys), None, state)
        return (jnp.tanh(x + jnp.einsum("bts,bsv->bv", weights, keys)), state), weights[:, 0]

    def loss(scan: Callable, keys: jax.Array) -> jax.Array:
        return jnp.sum(scan(step, keys, (keys[:, 0], jnp.asarray(start(B, S))), np.float32(draw(T, B, V)))[1] ** 2)

    def plain(step: Callable, constants: jax.Array, carry: tuple, xs: jax.Array) -> tuple:
        return lax.scan(partial(step, constants), carry, xs)

    assert_close(jax.jit(jax.grad(partial(loss, loop.scan)))(keys), jax.jit(jax.grad(partial(loss, plain)))(keys))


def test_hard_by_hand():
    # Step 1 goes to position 1; step 2 stays there; step 3 skips a masked one; step 4 runs off, and step 5 is lost.
    scores = jnp.array([[-1, 1, 9, 9], [9, 1, 9, 9], [9, -1, 9, 2], [9, 9, 9, -1], [9, 9, 9, 9]], float)
    mask = jnp.array([[True, True, False, True]])
    weights, last = monotonic.hard(scores, mask, monotonic.first(mask[0]))
    np.testing.assert_array_equal(weights, [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(last, [0, 0, 0, 0])


def test_a_fair_coin_does_not_stop():
    np.testing.assert_array_equal(monotonic.hard(jnp.array([[0.0, 1e-30]]), None, start(2))[0], [[0, 1]])


def test_hard_has_a_gradient_of_zero():
    gradients = jax.grad(lambda x, y: monotonic.hard(x, None, y)[0].sum(), (0, 1))(draw(T, S), start(S) + 0.0)
    jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, 0), gradients)


def test_certain_choices_are_decisions():
    scores, mask = 1e4 * np.float32(np.sign(draw(B, T, S, seed=1) - 0.5)), draw(B, T, S, seed=2) > -1
    weights, last = FUNCTIONS["expected"](scores, mask, start(B, S))
    decided, position = compiled_hard(scores, mask, start(B, S))
    np.testing.assert_array_equal(weights, decided)
    np.testing.assert_array_equal(last, position)
    assert len(np.unique(np.argmax(decided, -1))) > 2


def spelled(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys of which the dot scores are this very table."""
    return np.eye(len(table), dtype=np.float32), np.float32(table.T)


values_of = np.float32(draw(S, V))
online = jax.jit(partial(monotonic.online, scores.dot))
tables = st.builds(lambda seed, bias: draw(T, S, seed=seed) + bias, seeds, st.sampled_from([-2.0, -1.0, 0.0, 1.0]))


@given(table=tables, length=st.integers(0, S))
@example(table=np.full((T, S), -1.0), length=S)
@example(table=np.full((T, S), 1.0), length=0)
def test_online_equals_hard(table, length):
    positions, context = online(*spelled(table), values_of, length)
    mask = masks.within(jnp.array(length), S)
    weights, _ = compiled_hard(np.float32(table), mask[None], monotonic.first(mask))
    np.testing.assert_array_equal(jax.nn.one_hot(positions, S) * (positions < length)[:, None], weights)
    np.testing.assert_array_equal(positions == length, ~np.any(weights, axis=-1))
    assert_close(context, weights @ values_of)


@given(table=tables, length=st.integers(0, S), begin=st.integers(0, S))
def test_online_goes_on_where_it_stopped(table, length, begin):
    queries, keys = spelled(table)
    begin = min(begin, length)
    whole, _ = online(queries, keys, values_of, length, begin)
    early, _ = online(queries[:3], keys, values_of, length, begin)
    late, _ = online(queries[3:], keys, values_of, length, early[-1])
    np.testing.assert_array_equal(np.concatenate([early, late]), whole)
    assert np.all(whole >= begin)


def test_online_reads_a_position_at_most_twice_and_scores_at_most_s_plus_t_pairs(monkeypatch):
    reads, pairs, read = Counter(), [], lax.dynamic_index_in_dim

    def counted(memory: jax.Array, position: jax.Array, **options: bool) -> jax.Array:
        jax.debug.callback(lambda position: reads.update([(memory.shape[-1], int(position))]), position)
        return read(memory, position, **options)

    def score(query: jax.Array, key: jax.Array) -> jax.Array:
        assert query.shape == key.shape == (1, T)
        jax.debug.callback(lambda *pair: pairs.append(pair), query, key)
        return scores.dot(query, key)

    monkeypatch.setattr(lax, "dynamic_index_in_dim", counted)
    run = jax.jit(partial(monotonic.online, score))
    for seed, length in [(0, S), (1, S), (2, S - 2), (3, 1), (4, 0)]:
        reads.clear(), pairs.clear()
        table = draw(T, S, seed=seed) + 0.3
        positions, _ = jax.block_until_ready(run(*spelled(table), values_of, length))
        jax.effects_barrier()
        attended = {int(position) for position in positions if position < length}
        farthest = min(max(positions) + 1, length)
        assert reads == Counter([(T, s) for s in range(farthest)] + [(V, s) for s in attended])
        stopped = sum(int(position < length) for position in positions)
        assert len(pairs) == stopped + positions[-1] <= T + length
        # Some position is attended to by several steps, else there was nothing to read twice.
        assert seed > 1 or len(attended) < stopped


@given(seed=seeds, length=st.integers(0, S))
def test_a_decoder_whose_next_query_waits_for_the_context(seed, length):
    keys, first = np.float32(draw(S, V, seed=seed)), np.float32(draw(V, seed=seed))
    positions, queries = decode(keys, first, length)
    expected, query, mask = [], first, np.arange(S) < length
    state = monotonic.first(mask)
    for t in range(T):
        np.testing.assert_allclose(queries[t], query, rtol=1e-5, atol=1e-5)
        weights, state = compiled_hard(scores.dot(query[None], keys), mask[None], state)
        expected.append(np.argmax(weights) if np.any(weights) else length)
        query = np.roll(query - (weights @ keys)[0], 1)
    np.testing.assert_array_equal(positions, expected)


@jax.jit
def decode(keys: jax.Array, query: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], tuple]:
        query, position = carry
        position, found = monotonic.online_step(scores.dot, query, keys, length, position)
        context = jnp.where(found, keys[position], 0)
        return (jnp.roll(query - context, 1), position), (position, query)

    return lax.scan(step, (query, jnp.int32(0)), None, T)[1]


def test_online_under_vmap():
    tables, lengths = draw(3, T, S, seed=5), np.array([S, 4, 0])
    queries, keys = map(np.stack, zip(*map(spelled, tables), strict=True))
    values = np.float32(draw(3, S, V))
    found = jax.vmap(partial(monotonic.online, scores.dot))(queries, keys, values, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = online(queries[row], keys[row], values[row], length)
        jax.tree.map(partial(np.testing.assert_array_equal), jax.tree.map(lambda x, row=row: x[row], found), alone)


def test_online_reads_nothing_beyond_the_length():
    queries, keys = spelled(np.where(np.arange(S) < 4, -1.0, 5.0) * np.ones((T, 1)))
    dirty = np.where(np.arange(S)[:, None] < 4, values_of, np.float32(np.nan))
    positions, context = online(queries, keys, dirty, 4)
    np.testing.assert_array_equal(positions, 4)
    np.testing.assert_array_equal(context, 0)


def test_online_without_a_source():
    positions, context = monotonic.online(scores.dot, jnp.ones((T, 3)), jnp.ones((0, 3)), jnp.ones((0, V)), 0)
    np.testing.assert_array_equal(positions, np.zeros(T))
    np.testing.assert_array_equal(context, np.zeros((T, V)))


def test_noise_is_normal_with_the_given_scale():
    scores = jnp.full((101, 103), 3.0)
    noise = np.array(monotonic.with_noise(scores, jax.random.key(0), 2.0) - scores)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 2], atol=0.05)
    np.testing.assert_allclose(np.mean(np.abs(noise) < 2), 0.6827, atol=0.02)
    once = monotonic.with_noise(scores, jax.random.key(0)) - scores
    np.testing.assert_allclose(noise, 2 * once, atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="monotonic: method is one of parallel, recursive; got 'clipped'"):
        monotonic.monotonic(draw(T, S), None, start(S), method="clipped")
    for name, function, arguments in [
        ("previous", monotonic.monotonic, (draw(B, T, S), None, start(S))),
        ("mask", monotonic.monotonic, (draw(B, T, S), np.ones((B, S), bool), start(B, S))),
        ("previous", monotonic.hard, (draw(T, S), None, start(T))),
        ("scores", monotonic.hard, (np.ones((T, S), int), None, start(S))),
        ("mask", monotonic.first, (np.ones((B, S)),)),
        ("values", monotonic.online, (scores.dot, draw(T, 3), draw(S, 3), draw(T, V), S)),
        ("query", monotonic.online_step, (scores.dot, draw(1, 3), draw(S, 3), S, 0)),
    ]:
        with pytest.raises(TypeCheckError, match=rf"parameter '{name}'\.\nActual value: .*\nExpected type: "):
            function(*arguments)

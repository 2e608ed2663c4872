"""Additive attention in chunks: by hand, against `attend` and JoeyNMT, at every size, with dropout, in memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from attention_zoo.functional import masks, scores
from attention_zoo.functional.additive_attention import _powers, _tanh_of_sum, additive_attention
from attention_zoo.functional.attend import attend
from attention_zoo.functional.scores import sum_of_slopes
from tests.quick import quick

B, T, S, D, V = 2, 7, 5, 11, 3
PADDING = np.asarray(masks.padding(jnp.array([3, 0]), S))
ROWS = np.random.default_rng(0).random((B, T, S)) < 0.6
ROWS[0, 2] = ROWS[1, 6] = False
ROWS[:, :, 4] = False


def draw(seed: int = 0, lead: tuple[int, ...] = (B,), dtype: type = np.float32) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=s).astype(dtype) for s in ((*lead, T, D), (*lead, S, D), (*lead, S, V), (D,))]


def plain(queries, keys, values, energy, mask=None):
    return attend(queries, keys, values, mask, score=lambda q, k: scores.additive(q, k, energy))[0]


def with_gradients(function):
    """(arguments, mask, cotangents) -> context, and the gradients by queries, keys, values and energy."""

    def run(arguments, mask, cotangents):
        context, pull_back = jax.vjp(lambda *arguments: function(*arguments, mask), *arguments)
        return context, pull_back(cotangents)

    return quick(run)


chunk_of_3, reference = with_gradients(partial(additive_attention, chunk=3)), with_gradients(plain)
COTANGENTS = np.random.default_rng(1).normal(size=(B, T, V)).astype(np.float32)


def test_by_hand():
    # tanh(ln 2) = 3/5, and v = ln(3) * 5/3: scores ln 3 and -ln 3, so weights 9/10 and 1/10; then the first key alone.
    keys, values = jnp.array([[np.log(2)], [-np.log(2)]]), jnp.array([[10.0], [-30.0]])
    mask = jnp.array([[True, True], [True, False], [False, False]])
    found = quick(additive_attention)(jnp.zeros((3, 1)), keys, values, jnp.array([np.log(3) * 5 / 3]), mask)
    np.testing.assert_allclose(found, [[6], [10], [0]], rtol=1e-6)


@pytest.mark.parametrize(("chunk", "mask"), [(None, None), (3, PADDING), (3, ROWS)], ids=["all", "padding", "rows"])
def test_equals_attend_in_value_and_gradient(chunk, mask, float64):
    arguments, cotangents = draw(dtype=np.float64), COTANGENTS.astype(np.float64)
    run = chunk_of_3 if chunk else with_gradients(additive_attention)
    found = run(arguments, mask, cotangents)
    expected = reference(arguments, mask, cotangents)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), found, expected)


def test_equals_joeynmt(golden, float64):
    case = golden("joeynmt_attention", "bahdanau")
    queries = case["queries"] @ case["weights/query_layer.weight"].T
    keys = case["values"] @ case["weights/key_layer.weight"].T
    energy = case["weights/energy_layer.weight"][0]
    found = quick(additive_attention)(queries, keys, case["values"], energy, case["mask"][:, None])
    np.testing.assert_allclose(found, case["context"], rtol=1e-10, atol=1e-10)


def test_gradient_equals_finite_differences_with_dropout(float64):
    key = jax.random.key(3, impl="unsafe_rbg")  # compiles in less time than the default
    run = with_gradients(partial(additive_attention, dropout=0.4, key=key, chunk=3))
    arguments, direction = draw(dtype=np.float64), draw(1, dtype=np.float64)
    _, gradients = run(arguments, ROWS, COTANGENTS.astype(np.float64))
    for n, gradient in enumerate(gradients):
        ends = [[a + (m == n) * h * d for m, (a, d) in enumerate(zip(arguments, direction, strict=True))]
                for h in (1e-5, -1e-5)]  # fmt: skip
        up, down = (run(end, ROWS, COTANGENTS.astype(np.float64))[0] for end in ends)
        np.testing.assert_allclose(np.sum(COTANGENTS * (up - down)) / 2e-5, np.sum(gradient * direction[n]), rtol=1e-6)


def test_the_quick_tanh_is_one_to_float32_rounding():
    x = np.float32(np.concatenate([-np.geomspace(1e-6, 42.9, 401)[::-1], np.geomspace(1e-6, 42.9, 401)])[:, None])
    exact = np.tanh(np.add.outer(np.asarray(x, np.float64)[:, 0], np.asarray(x, np.float64)[:, 0]))
    found = quick(_tanh_of_sum)(x, x, _powers(x), np.array(True))[..., 0]
    assert np.abs(found - exact).max() < 2**-22  # four units of the last place of one


@pytest.mark.parametrize(("steps", "source"), [(3, 67), (131, 2), (64, 1)])
def test_sums_of_slopes_at_sizes_below_and_above_the_terms_of_one_loop(steps, source, float64):
    weights, hidden = [np.random.default_rng(0).random(s) for s in ((steps, source), (steps, source, D))]
    terms = weights[..., None] * (1 - hidden**2)
    for axis in (0, 1):
        found = quick(partial(sum_of_slopes, axis=axis))(weights, hidden)
        np.testing.assert_allclose(found, terms.sum(axis), rtol=1e-12)


@pytest.mark.parametrize("size", [1e-4, 0.3, 3, 40, 60, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_size_of_queries_and_keys_is_exact(size, sign):
    # With sign -1 the two nearly cancel, where nothing saturates.
    queries, keys, values, energy = draw()
    spread = 0.5 * min(size, 1)
    arguments = [np.float32(size) + spread * queries, np.float32(sign * size) + spread * keys, values, energy]
    arguments = [array.astype(np.float32) for array in arguments]
    found = jax.tree.leaves(chunk_of_3(arguments, ROWS, COTANGENTS))
    with jax.enable_x64(True):
        wide = [array.astype(np.float64) for array in arguments]
        expected = jax.tree.leaves(reference(wide, ROWS, COTANGENTS.astype(np.float64)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6, rtol=1e-6)
    np.testing.assert_allclose(found[-1], expected[-1], atol=2e-6 * min(size, 1), rtol=1e-6)  # by the energy


def test_empty_rows_and_unseen_keys_have_no_gradient_and_their_contents_change_nothing():
    queries, keys, values, energy = arguments = draw()
    clean, clean_gradients = chunk_of_3(arguments, ROWS, COTANGENTS)
    empty, unseen = ~ROWS.any(-1), ~ROWS.any(1)
    np.testing.assert_array_equal(clean[empty], 0)
    np.testing.assert_array_equal(clean_gradients[0][empty], 0)
    np.testing.assert_array_equal(clean_gradients[1][unseen], 0)
    np.testing.assert_array_equal(clean_gradients[2][unseen], 0)
    for garbage in (1e4, -1e4):
        dirty = [np.where(empty[..., None], np.float32(-garbage), queries)]
        dirty += [np.where(unseen[..., None], np.float32(garbage), array) for array in (keys, values)]
        found, gradients = chunk_of_3([*dirty, energy], ROWS, COTANGENTS)
        jax.tree.map(np.testing.assert_array_equal, (found, gradients), (clean, clean_gradients))
    hidden = [queries, np.where(unseen[..., None], np.float32(np.nan), keys), values, energy]
    np.testing.assert_array_equal(chunk_of_3(hidden, ROWS, COTANGENTS)[0], clean)


def test_bfloat16_is_computed_in_float32_and_comes_back():
    arguments = [array.astype(jnp.bfloat16) for array in draw()]
    found, gradients = chunk_of_3(arguments, ROWS, COTANGENTS.astype(jnp.bfloat16))
    wide = [array.astype(np.float32) for array in arguments]
    expected, _ = chunk_of_3(wide, ROWS, COTANGENTS)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, gradients))} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


def test_bfloat16_stays_near_float64_in_long_sources():
    # As a share of the norm, of which rounding the result to bfloat16 alone costs 1.7e-3.
    rng = np.random.default_rng(0)
    shapes = (17, 23), (4096, 23), (4096, 5), (23,)
    arrays = [rng.normal(size=shape).astype(jnp.bfloat16) for shape in shapes]
    q, k, v, energy = (np.asarray(array, np.float64) for array in arrays)
    weights = np.exp(np.tanh(q[:, None] + k[None]) @ energy)
    expected = weights / weights.sum(-1, keepdims=True) @ v
    found = np.asarray(quick(additive_attention)(*arrays), np.float64)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 3e-3


def test_leading_axes_vmap_checkpoint_and_export():
    arguments = *draw(), ROWS

    def run(queries, keys, values, energy, mask):
        one = partial(additive_attention, energy=energy, chunk=3)
        single = lambda example: jax.checkpoint(one)(*example[:3], mask=example[3])  # noqa: E731
        examples = queries, keys, values, mask
        more = one(queries[None], keys[None], values[None], mask=mask)[0]
        return more, jax.vmap(single)(examples)

    exported = jax.export.export(jax.jit(run))(*arguments)
    expected, _ = chunk_of_3(arguments[:4], ROWS, COTANGENTS)
    for found in exported.call(*arguments):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_dropout_drops_each_weight_on_its_own():
    # With values one-hot the context is the weights. Every example and row is the same, but for what is dropped.
    examples, rows, source = 5, 13, 101
    values = np.broadcast_to(np.eye(source, dtype=np.float32), (examples, source, source))
    arguments = [np.zeros(shape, np.float32) for shape in ((examples, rows, 2), (examples, source, 2), (2,))]
    arguments.insert(2, values)
    run = quick(lambda key: source * additive_attention(*arguments, dropout=0.25, key=key, chunk=5))
    keys = [jax.random.key(seed, impl="unsafe_rbg") for seed in range(2)]
    found = np.asarray(run(keys[0]))
    kept = found > 0
    np.testing.assert_allclose(found[kept], 4 / 3, rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / kept.size)
    assert len(np.unique(kept.reshape(-1, source), axis=0)) == examples * rows
    np.testing.assert_array_equal(run(keys[0]), found)
    assert np.any(np.asarray(run(keys[1])) != found)


def test_memory_does_not_grow_with_queries_times_source():
    source, width = 211, 7

    def temporaries(steps: int) -> int:
        shapes = ((B, steps, width), (B, source, width), (B, source, width), (width,))
        arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        loss = lambda *arguments: jnp.sum(additive_attention(*arguments, chunk=3) ** 2)  # noqa: E731
        lowered = quick(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*arguments)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(512), temporaries(2048)
    assert few < 4 * B * 512 * source * width / 20  # a twentieth of the [..., T, S, D] tensor
    assert many - few < 4 * B * (2048 - 512) * source / 4  # a few arrays [..., T, D], but none of T S


@pytest.mark.parametrize("gone", ["T", "S"])
def test_nothing_to_attend_to_or_from(gone):
    queries, keys, values, energy = draw()
    queries, keys, values = (queries[:, :0], keys, values) if gone == "T" else (queries, keys[:, :0], values[:, :0])
    found = additive_attention(queries, keys, values, energy)
    np.testing.assert_array_equal(found, np.zeros((*queries.shape[:2], V)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dropout": 1.0}, r"additive_attention: dropout lies in \[0, 1\); got 1.0"),
        ({"dropout": 0.1}, "additive_attention: dropout draws from a key; got dropout 0.1 and no key"),
        ({"chunk": 0}, "additive_attention: a chunk is at least 1 query; got 0"),
    ],
)
def test_bad_options_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        additive_attention(*draw(), **options)


def test_a_wrong_shape_names_the_argument():
    queries, keys, values, energy = draw()
    with pytest.raises(TypeCheckError, match="parameter 'keys'"):
        additive_attention(queries, keys[..., :7], values, energy)
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        additive_attention(queries, keys, values, energy, np.ones((B, S), bool))

"""Attention in chunks is the whole attention: values, gradients, masks, empty rows; its memory and its work."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attention_zoo.functional import blocks, chunked
from attention_zoo.functional.dot_product import dot_product_attention
from tests.quick import quick

B, H, G, T, S, D, V = 2, 6, 3, 13, 17, 5, 7
CHUNK = 4  # three rows of padding


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


INPUTS = (draw(B, H, T, D), draw(B, G, S, D), draw(B, G, S, V))
COTANGENT = draw(B, H, T, V)
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles faster than the default
MASK = np.random.default_rng(0).random((B, 1, T, S)) < 0.6
MASK[0, :, 3] = False
NUMBERS = tuple(np.random.default_rng(size).integers(0, 3, (B, size)) for size in (T, S))
BIAS = draw(H, T, S)
CASES = {
    "nothing": {},
    "causal": {"causal": True},
    "causal, late": {"causal": True, "offset": 4},
    "causal, early": {"causal": True, "offset": -3},
    "causal, traced offset": {"causal": True, "offset": jnp.array(4)},
    "window": {"window": (2, 1)},
    "causal window": {"causal": True, "window": (2, 3), "offset": 2},
    "window, traced offset": {"window": (2, 3), "offset": jnp.array(1)},
    "window beyond": {"window": (1, 1), "offset": 40},
    "mask": {"mask": MASK},
    "mask of keys, soft cap": {"mask": MASK[:, :, :1], "soft_cap": 1.5},
    "segments": {"segments": NUMBERS},
    "bias": {"bias": BIAS, "causal": True, "offset": 3},
    "bias of examples, window": {"bias": draw(B, 1, T, S), "window": (1, 2)},
    "bias of keys": {"bias": BIAS[:, :1], "mask": MASK[..., :1]},
    "all": {"bias": BIAS[:1], "mask": MASK, "causal": True, "window": (5, 9), "offset": 2, "segments": NUMBERS,
            "soft_cap": 2.0, "scale": 0.7},
}  # fmt: skip


def value_and_gradients(arguments: dict, implementation: str, chunk: int | None = None) -> tuple[jax.Array, ...]:
    """Context, and gradients of queries, keys, values and bias."""
    bias = arguments.get("bias")
    others = {name: value for name, value in arguments.items() if name != "bias"}

    def attention(queries, keys, values, bias):
        return dot_product_attention(
            queries, keys, values, **others, bias=bias, implementation=implementation, chunk=chunk
        )

    def run(cotangent, *inputs):
        context, pull_back = jax.vjp(attention, *inputs)
        return context, *pull_back(cotangent)

    return quick(run)(COTANGENT, *INPUTS, bias)


whole = cache(lambda case: value_and_gradients(CASES[case], "plain"))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_whole(case, together, float64, monkeypatch):
    monkeypatch.setattr(blocks, "_LOOPS", 2)  # two chunks each; fewer loops compile faster
    if not together:  # an example at a time going forward, one head of keys backward; else all of them
        monkeypatch.setattr(blocks, "cores", lambda: 1)
        monkeypatch.setattr(chunked, "few", lambda: 1)
        monkeypatch.setattr(chunked, "FORWARD", H * CHUNK * S)
    found = value_and_gradients(CASES[case], "chunked", CHUNK)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), found, whole(case))


@pytest.mark.parametrize("offset", [2, "traced"])
def test_a_bias_function_is_its_array_and_its_arrays_get_gradients(offset, float64, monkeypatch):
    monkeypatch.setattr(blocks, "_LOOPS", 2)

    def attention(implementation, as_array, slopes, table, offset):
        def bias(queries, keys):
            distance = keys[None, :] - queries[:, None]
            return slopes[:, None, None] * jnp.abs(distance)[None] + table[jnp.clip(distance, -3, 3) + 3][None]

        at = jnp.arange(T) + offset
        given = bias(at, jnp.arange(S)) if as_array else bias
        chunk = CHUNK if implementation == "chunked" else None
        options = {"causal": True, "offset": offset, "implementation": implementation, "chunk": chunk}
        return jnp.vdot(dot_product_attention(*INPUTS, MASK, bias=given, **options), COTANGENT)

    slopes, table = draw(H), draw(7)
    results = []
    for how in (("plain", True), ("plain", False), ("chunked", False)):
        run = jax.value_and_grad(partial(attention, *how), (0, 1))
        if offset == "traced":
            results.append(quick(run)(slopes, table, jnp.array(2)))
        else:
            results.append(quick(lambda *start, run=run: run(*start, 2))(slopes, table))
    for other in results[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), other, results[0])
    slopes, table = results[0][1]
    assert np.all(np.abs(slopes) > 1e-6) and np.all(np.abs(table[:4]) > 1e-6)
    np.testing.assert_array_equal(table[4:], 0)  # distances to the future


def test_gradient_equals_finite_differences(float64, monkeypatch):
    monkeypatch.setattr(blocks, "_LOOPS", 2)

    # With dropout: the same weights are dropped going backward.
    def loss(inputs):
        options = {"causal": True, "soft_cap": 2.0, "dropout": 0.3, "key": KEY, "bias": inputs[3]}
        context = dot_product_attention(*inputs[:3], MASK, **options, implementation="chunked", chunk=CHUNK)
        return jnp.vdot(context, COTANGENT)

    inputs = (*INPUTS, BIAS)
    value, gradients = quick(loss), quick(jax.grad(loss))(inputs)
    for number, gradient in enumerate(gradients):
        step = 1e-5 * draw(*gradient.shape, seed=2)
        ends = [(*inputs[:number], inputs[number] + way * step, *inputs[number + 1 :]) for way in (1, -1)]
        np.testing.assert_allclose((value(ends[0]) - value(ends[1])) / 2, np.vdot(gradient, step), rtol=1e-6)


@cache
def compiled(vmapped: bool) -> Callable:
    def run(queries, keys, values, mask, cotangent):
        attention = partial(dot_product_attention, implementation="chunked", chunk=CHUNK)
        context, pull_back = jax.vjp(lambda *inputs: attention(*inputs, mask), queries, keys, values)
        return context, *pull_back(cotangent)

    return quick(jax.vmap(run) if vmapped else run)


SINGLE = [np.float32(array) for array in (*INPUTS, COTANGENT)]
rows = arrays(bool, (B, 1, T, 1), elements=st.integers(0, 3).map(bool), fill=st.nothing())
masks = st.builds(np.logical_and, arrays(bool, (B, 1, T, S), fill=st.nothing()), rows)


@settings(max_examples=10)
@given(mask=masks)
@example(mask=np.zeros((B, 1, T, S), bool))
def test_masks_empty_rows_and_vmap(mask):
    context, *gradients = jax.device_get(compiled(False)(*SINGLE[:3], mask, SINGLE[3]))
    empty, unseen = ~mask.any(-1)[:, 0], ~mask.any(2)[:, 0]
    assert all(np.all(np.isfinite(array)) for array in (context, *gradients))
    for array in (context, gradients[0]):
        np.testing.assert_array_equal(np.swapaxes(array, 1, 2)[empty], 0)
    for array in gradients[1:]:
        np.testing.assert_array_equal(np.swapaxes(array, 1, 2)[unseen], 0)
    one_by_one = compiled(True)(*SINGLE[:3], mask, SINGLE[3])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one_by_one, (context, *gradients))


@pytest.mark.parametrize("garbage", [1e4, np.nan, np.inf])
def test_padding_changes_no_result_and_no_gradient(garbage):
    mask = np.arange(S) < np.array([11, 0])[:, None, None, None]
    queries, keys, values, cotangent = SINGLE
    clean = compiled(False)(queries, keys, values, np.broadcast_to(mask, MASK.shape), cotangent)
    hidden = ~np.swapaxes(mask, 2, 3)
    dirty = [np.where(hidden, np.float32(garbage), array) for array in (keys, values)]
    dirty = compiled(False)(queries, *dirty, np.broadcast_to(mask, MASK.shape), cotangent)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_what_sees_nothing_or_is_seen_by_nobody_may_hold_anything(implementation):
    """A query in an empty row, keys and values beyond a causal mask or a window, wherever the first query stands."""
    rows, far = np.arange(T)[:, None] != 2, 2**31 - 1
    late, early = {"window": (1, 2), "offset": jnp.array(0)}, {"causal": True, "window": (far, far), "offset": -3}
    behind, ahead = np.s_[:, :, :3], np.s_[:, :, T + 2 :]
    cases = (({"causal": True, "offset": 2}, 2, ahead), (late, 2, ahead), (early, 1, ahead),
             ({"window": (1, 9), "offset": 4}, 2, behind), ({"window": (1, 1), "offset": 9}, 12, behind))  # fmt: skip
    for options, empty, unseen in cases:

        def run(queries, keys, values, options=options):
            attention = partial(dot_product_attention, mask=rows, **options, implementation=implementation)
            context, pull_back = jax.vjp(attention, queries, keys, values)
            return context, *pull_back(SINGLE[3])

        clean = quick(run)(*SINGLE[:3])
        queries, keys, values = (array.copy() for array in SINGLE[:3])
        queries[:, :, empty], keys[unseen], values[unseen] = np.nan, np.inf, np.nan
        jax.tree.map(np.testing.assert_array_equal, quick(run)(queries, keys, values), clean)


@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_one_key_that_nobody_sees(implementation):
    """XLA reduces one column by a reshape, whatever the reduction starts from."""
    options = {"implementation": implementation, "chunk": 3 if implementation == "chunked" else None}

    def run(queries, keys, values, cotangent, **hidden):
        attention = partial(dot_product_attention, **options, **hidden)
        context, pull_back = jax.vjp(attention, queries, keys, values)
        return context, *pull_back(cotangent)

    queries, keys, values, cotangent = SINGLE
    one = quick(partial(run, lengths=jnp.array([0, 1])))(queries, keys[:, :, :1], values[:, :, :1], cotangent)
    assert all(np.all(np.asarray(array[0]) == 0) and np.all(np.isfinite(array)) for array in one)
    np.testing.assert_allclose(one[0][1], np.broadcast_to(np.repeat(values[1, :, :1], H // G, 0), (H, T, V)), rtol=1e-6)
    late = quick(partial(run, causal=True, offset=-4))(queries, keys, values, cotangent)  # the first chunk sees nothing
    assert all(np.all(np.isfinite(array)) for array in late)
    np.testing.assert_array_equal(late[0][:, :, :4], 0)


@pytest.mark.parametrize("implementation", ["plain", "chunked", None])
@pytest.mark.parametrize(("examples", "rows", "columns"), [(0, T, S), (B, 0, S), (B, T, 0), (0, 150, 150)])
def test_nothing_of_an_axis(examples, rows, columns, implementation):
    shapes = ((examples, H, rows, D), (examples, G, columns, D), (examples, G, columns, V))
    attention = partial(dot_product_attention, causal=True, implementation=implementation)
    context, pull_back = quick(partial(jax.vjp, attention))(*(np.ones(shape, np.float32) for shape in shapes))
    assert context.shape == (examples, H, rows, V) and not np.any(context)
    assert [gradient.shape for gradient in quick(lambda: pull_back(context))()] == list(shapes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_ten_thousand_are_finite(dtype):
    arguments = [jnp.asarray(scale * array, dtype) for scale, array in zip((150, 150, 1, 1), SINGLE, strict=True)]
    found = compiled(False)(*arguments[:3], MASK, arguments[3])
    assert {str(array.dtype) for array in found} == {dtype}
    assert all(np.all(np.isfinite(np.float32(array))) for array in found)
    assert np.abs(SINGLE[0] @ np.swapaxes(np.repeat(SINGLE[1], 2, 1), 2, 3)).max() * 150**2 / D**0.5 > 1e4


def test_compiled_equals_eager_in_scan_checkpoint_and_export(monkeypatch):
    monkeypatch.setattr(blocks, "_LOOPS", 2)
    attention = partial(dot_product_attention, causal=True, implementation="chunked", chunk=CHUNK)
    expected = np.asarray(quick(attention)(*SINGLE[:3]))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    exported = jax.export.export(quick(attention))(*SINGLE[:3])
    close(exported.call(*SINGLE[:3]), expected)
    few = [array[:1, :, :5] for array in SINGLE[:3]]  # queries and keys 0-4 see nothing of the others
    close(attention(*few), expected[:1, :, :5])

    def step(carry, inputs):
        return carry, jax.checkpoint(attention)(*inputs)

    def run(inputs):
        return jnp.sum(jax.lax.scan(step, None, [array[None] for array in inputs])[1][0] * SINGLE[3])

    gradients = quick(jax.grad(run))(SINGLE[:3])
    direct = quick(jax.grad(lambda inputs: jnp.sum(attention(*inputs) * SINGLE[3])))(SINGLE[:3])
    jax.tree.map(close, gradients, direct)


def compiled_gradient(size: int, **arguments):
    arrays = [jax.ShapeDtypeStruct((1, 2, size, 8), jnp.float32)] * 3
    run = partial(dot_product_attention, implementation="chunked", chunk=16, **arguments)
    loss = jax.grad(lambda *inputs: jnp.sum(run(*inputs) ** 2), (0, 1, 2))
    return quick(loss).lower(*arrays).compile()


@pytest.mark.parametrize("arguments", [{}, {"causal": True}, {"window": (9, 7), "offset": 5}])
def test_temporaries_grow_linearly(arguments):
    short, long = (compiled_gradient(size, **arguments).memory_analysis().temp_size_in_bytes for size in (512, 2048))
    assert long < 6 * short  # linear is 4, quadratic 16
    assert long < 2 * 2048 * 2048 * 4  # one [H, T, S] matrix

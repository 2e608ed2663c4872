"""Scaled dot-product attention: by hand, against torch and a loop over rows, its precision, kernels and refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from attention_zoo.functional.dot_product import attention_rows, choose, dot_product_attention
from tests.quick import quick

B, H, G, T, S, D, V = 2, 6, 3, 5, 7, 11, 13
OURS = ("plain", "chunked")
both = pytest.mark.parametrize("implementation", OURS)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


QUERIES, KEYS, VALUES = draw(B, H, T, D), draw(B, G, S, D), draw(B, G, S, V)
MASK = np.random.default_rng(0).random((B, 1, T, S)) < 0.6
MASK[0, 0, 2] = False
NUMBERS = (np.array([[1, 1, 1, 2, 0]] * B), np.array([[1, 1, 2, 1, 1, 2, 0]] * B))
EVERYTHING = {
    "mask": MASK,
    "lengths": np.array([1, 5]),
    "causal": True,
    "window": (1, 3),
    "offset": 1,
    "segments": NUMBERS,
    "bias": draw(H, T, S),
    "soft_cap": 1.7,
    "scale": 0.6,
}


def loop(
    queries, keys, values, *, mask=True, lengths=(S,) * B, causal=False, window=(99, 99), offset=0, segments=None,
    bias=0, soft_cap=None, scale=None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Context and weights in plain numpy, a row at a time, as the equation is written."""
    mask, bias = np.broadcast_to(mask, (B, H, T, S)), np.broadcast_to(bias, (B, H, T, S))
    context, weights = np.zeros((B, H, T, V)), np.zeros((B, H, T, S))
    for b, h, t in np.ndindex(B, H, T):
        row, group = queries[b, h, t], h // (H // G)
        for s in range(S):
            distance = s - (t + offset)
            seen = mask[b, h, t, s] and s < lengths[b] and -window[0] <= distance <= (0 if causal else window[1])
            if segments is not None:
                seen = seen and segments[0][b, t] == segments[1][b, s] != 0
            score = row @ keys[b, group, s] * (scale or D**-0.5)
            score = soft_cap * np.tanh(score / soft_cap) if soft_cap else score
            weights[b, h, t, s] = np.exp(score + bias[b, h, t, s]) if seen else 0
        weights[b, h, t] /= weights[b, h, t].sum() or 1
        context[b, h, t] = weights[b, h, t] @ values[b, group]
    return context, weights


@both
def test_by_hand(implementation):
    # Scores ln 1, ln 2, ln 5 after the scale of 1/2; the third key is hidden from the second query, all from the third.
    queries = np.float32([[[2, 0, 0, 0]] * 3])
    keys = np.float32(np.log([[[1, 1, 1, 1], [2, 1, 1, 1], [5, 1, 1, 1]]]))
    values = np.float32([[[8, 0], [0, 8], [16, 24]]])
    mask = np.array([[True, True, True], [True, True, False], [False] * 3])
    found = quick(partial(dot_product_attention, implementation=implementation))(queries, keys, values, mask)
    np.testing.assert_allclose(found[0], [[11, 17], [8 / 3, 16 / 3], [0, 0]], rtol=1e-6)


@both
@pytest.mark.parametrize("name", ["plain", "causal", "mask", "bias", "grouped"])
def test_equals_torch(name, implementation, golden, float64):
    case = golden("torch_sdpa", name)
    differentiated = [key.removeprefix("gradients/") for key in case if key.startswith("gradients/")]
    options = {"causal": name == "causal", "scale": 0.7 if name == "grouped" else None, "mask": case.get("mask")}

    def attention(arrays):
        return dot_product_attention(**arrays, **options, implementation=implementation)

    def run(arrays, cotangent):
        context, pull_back = jax.vjp(attention, arrays)
        return context, pull_back(cotangent)[0]

    context, gradients = quick(run)({key: case[key] for key in differentiated}, case["cotangent"])
    np.testing.assert_allclose(context, case["context"], rtol=1e-10, atol=1e-12)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, case[f"gradients/{key}"], rtol=1e-10, atol=1e-12, err_msg=key)


@both
@pytest.mark.parametrize(
    "left_out", [None, "mask", "lengths", "causal", "window", "segments", "bias", "soft_cap", "scale"]
)
def test_every_argument_counts_as_in_a_loop_over_rows(implementation, left_out, float64):
    arguments = {name: value for name, value in EVERYTHING.items() if name != left_out}
    context, _ = loop(QUERIES, KEYS, VALUES, **arguments)
    found = quick(partial(dot_product_attention, **arguments, implementation=implementation))(QUERIES, KEYS, VALUES)
    np.testing.assert_allclose(found, context, atol=1e-12)
    if left_out is not None:
        with_all, _ = loop(QUERIES, KEYS, VALUES, **EVERYTHING)
        assert np.abs(with_all - context).max() > 1e-3


def test_rows_are_the_weights_of_the_whole(float64):
    _, weights = loop(QUERIES, KEYS, VALUES, **EVERYTHING)
    heads, rows = np.array([5, 1]), np.array([3, 0, 2])
    arguments = EVERYTHING | {"bias": lambda q, k: jnp.asarray(EVERYTHING["bias"])[:, q - 1][..., k]}
    for given in (EVERYTHING, arguments):
        found = quick(partial(attention_rows, **given))(QUERIES, KEYS, heads=heads, rows=rows)
        np.testing.assert_allclose(found, weights[:, heads][:, :, rows], atol=1e-12)
    with pytest.raises(ValueError, match=r"attention_rows: rows are numbers from 0 to 4; got \[5\]"):
        attention_rows(QUERIES, KEYS, heads=heads, rows=np.array([5]))


def test_rows_cost_what_was_asked_for():
    arguments = [jax.ShapeDtypeStruct((1, 16, 512, 8), jnp.float32)] * 2
    rows = quick(lambda q, k: attention_rows(q, k, heads=np.array([3]), rows=np.array([7, 9]), causal=True))
    assert rows.lower(*arguments).compile().memory_analysis().temp_size_in_bytes < 16 * 512 * 512


@both
@pytest.mark.parametrize(
    ("dtype", "rows", "size"), [("bfloat16", 521, 521), ("float16", 521, 521), ("bfloat16", 97, 4096)]
)
def test_half_precision_stays_near_float64(implementation, dtype, rows, size):
    # As a share of the norm. Rounding the result to bfloat16 alone costs 1.7e-3 of it, rounding the weights as much.
    lengths = rows, size, size
    arrays = [jnp.asarray(draw(2, 3, length, 16, seed=seed), dtype) for seed, length in enumerate(lengths)]
    q, k, v = (np.asarray(array, np.float64) for array in arrays)
    causal = rows == size
    scores = q @ np.swapaxes(k, -1, -2) / 4
    scores = np.where(np.tri(size, dtype=bool), scores, -np.inf) if causal else scores
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    found = quick(partial(dot_product_attention, causal=causal, implementation=implementation))(*arrays)
    assert found.dtype == dtype
    error = np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)
    assert error < {"bfloat16": 2e-3, "float16": 3e-4}[dtype]


@both
def test_dropout_differs_between_heads_and_examples_and_keeps_the_mean(implementation):
    # All weights 1/S and all values 1: the context is the share kept over 1 - dropout.
    zeros = np.zeros((B, H, 64, 1), np.float32)
    values = np.broadcast_to(np.eye(64, dtype=np.float32), (B, H, 64, 64))
    run = quick(lambda key: dot_product_attention(zeros, zeros, values, dropout=0.25, key=key,
                                                    implementation=implementation))  # fmt: skip
    weights = np.asarray(run(jax.random.key(0)))
    kept = weights != 0
    np.testing.assert_allclose(weights[kept], 1 / 64 / 0.75, rtol=1e-5)
    assert abs(kept.mean() - 0.75) < 0.01
    patterns = kept.reshape(B * H * 64, 64)
    assert len(np.unique(patterns, axis=0)) == len(patterns)
    assert abs(np.corrcoef(patterns[:64].ravel(), patterns[64:128].ravel())[0, 1]) < 0.1
    np.testing.assert_array_equal(weights, run(jax.random.key(0)))
    assert np.any(kept != (np.asarray(run(jax.random.key(1))) != 0))


HALF = [jnp.zeros(shape, jnp.bfloat16) for shape in ((6, 5, 16), (3, 7, 16), (3, 7, 16))]
KEY = jax.random.key(0)
REFUSED = [
    ("tokamax", HALF, {"dropout": 0.1, "key": KEY}, "'tokamax' wants no dropout; got 0.1"),
    ("cudnn", HALF, {"dropout": 0.1, "key": KEY}, "'cudnn' wants no dropout; got 0.1"),
    ("tokamax", HALF, {"soft_cap": 2.0, "bias": lambda q, k: 0}, "function gives"),
    ("tokamax", HALF, {"soft_cap": 2.0, "bias": HALF[0][:, :1, :1]}, "'tokamax' wants no soft cap beside a bias"),
    ("cudnn", HALF, {"soft_cap": 2.0}, "'cudnn' wants no soft cap; got 2.0"),
    ("cudnn", [array.astype(float) for array in HALF], {}, "'cudnn' wants float16 or bfloat16; got float32"),
    ("cudnn", [array[..., :12] for array in HALF], {}, "a multiple of 8 up to 128; got 12 and 12"),
    ("cudnn", [*HALF[:2], HALF[2][..., :8]], {}, "keys and values of one width, a multiple of 8 up to 128; got 16 and"),
    ("cudnn", HALF, {"causal": True}, "even T and S; got 5 and 7"),
    ("fast", HALF, {}, "implementation is one of plain, chunked, cudnn, tokamax; got 'fast'"),
    ("plain", HALF, {"chunk": 3}, "chunk is at least 1, and for implementation 'chunked'; got 3"),
    ("chunked", HALF, {"chunk": 0}, "chunk is at least 1, and for implementation 'chunked'; got 0"),
    (None, [HALF[0][:5], *HALF[1:]], {}, "H is a multiple of G; got 5 query heads and 3 key heads"),
    (None, [HALF[0], HALF[1].astype(float), HALF[2]], {}, "one dtype; got bfloat16, float32, bfloat16"),
    (None, HALF, {"window": (2, -1)}, r"window is \(left, right\), both at least 0; got \(2, -1\)"),
    (None, HALF, {"soft_cap": 0.0}, "soft_cap is above 0; got 0.0"),
    (None, HALF, {"dropout": 1.0, "key": KEY}, r"dropout is in \[0, 1\); got 1.0"),
    (None, HALF, {"dropout": 0.1}, "dropout wants a key; got none for dropout 0.1"),
    (None, HALF, {"mask": np.ones((5, 6), bool)}, r"mask broadcasts against \[6, 5, 7\], .* got \[5, 6\]"),
    (None, HALF, {"bias": np.ones((1, 6, 5, 7), float)}, r"bias broadcasts against \[6, 5, 7\], .* got \[1, 6, 5, 7\]"),
    (None, HALF, {"bias": lambda q, k: jnp.zeros((2, 1, 1))}, r"gives \[H or 1, t, s\] of .* got \[2, 1, 1\]"),
]


@pytest.mark.parametrize(("implementation", "arrays", "arguments", "sentence"), REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(implementation, arrays, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        dot_product_attention(*arrays, **arguments, implementation=implementation)


def test_wrong_shapes_name_the_argument():
    with pytest.raises(TypeCheckError, match="parameter 'keys'"):
        dot_product_attention(QUERIES, KEYS[:1], VALUES)
    with pytest.raises(TypeCheckError, match="parameter 'segments'"):
        dot_product_attention(QUERIES, KEYS, VALUES, segments=NUMBERS[::-1])
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        dot_product_attention(QUERIES, KEYS, VALUES, np.zeros((T, S)))


@pytest.mark.parametrize(
    ("backend", "dtype", "size", "cudnn", "chosen"),
    [
        ("cpu", "float32", 128, False, "plain"),
        ("cpu", "bfloat16", 1024, True, "chunked"),
        ("tpu", "bfloat16", 1024, True, "chunked"),
        ("gpu", "bfloat16", 128, True, "cudnn"),
        ("gpu", "float16", 1024, False, "chunked"),
        ("gpu", "float32", 1024, True, "chunked"),
        ("gpu", "float32", 128, True, "plain"),
    ],
)
def test_choice(backend, dtype, size, cudnn, chosen):
    assert choose(backend, dtype, size, size, cudnn=cudnn) == chosen


def test_curvature_is_finite_where_a_row_sees_nothing():
    q, k, v = (np.float32(np.sin(np.arange(2 * 5 * 3) * step)).reshape(1, 2, 5, 3) for step in (1, 2, 3))
    mask = np.arange(5)[:, None] != np.full((1, 1, 1, 5), 1)

    def total(q, implementation):
        return (dot_product_attention(q, k, v, mask, implementation=implementation) ** 2).sum()

    found, expected = (quick(jax.hessian(partial(total, implementation=one)))(q) for one in ("chunked", "plain"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_going_back_reads_weights_and_no_context(dropout):
    """Of what has a row for each query: the queries, and their weights, which are as wide as the keys are many."""
    options = {"dropout": dropout, "key": jax.random.key(0), "implementation": "plain"}
    _, pull_back = jax.vjp(partial(dot_product_attention, **options), QUERIES, KEYS, VALUES)
    rows = H // G * T
    widths = {leaf.shape[-1] for leaf in jax.tree.leaves(pull_back) if leaf.shape[-2:-1] == (rows,)}
    assert widths == {D, S}

"""What only a GPU can show: outside kernels honour every mask they are given, and both dtypes err as little as told.

Skipped where JAX has no GPU. On one: JAX_PLATFORMS=cuda JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest tests/test_on_gpu.py
"""

from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional import masks
from attention_zoo.functional.additive_attention import additive_attention
from attention_zoo.functional.dot_product import choose, dot_product_attention
from attention_zoo.functional.positions import alibi

GPU = jax.default_backend() == "gpu"
pytestmark = pytest.mark.skipif(not GPU, reason="JAX has no GPU here")
B, H, T, D = 2, 4, 128, 64
# Of the whole array's norm. bfloat16 rounds an output by 2^-9 at most; a kernel rounds the weights before it too.
CONTEXT, GRADIENTS = {"bfloat16": 3e-3, "float32": 2e-6}, {"bfloat16": 1e-2, "float32": 1e-5}
TF32 = 2e-3  # tokamax multiplies float32 in TF32, of 2^-11
IMPLEMENTATIONS = ("plain", "chunked", "cudnn", *(["tokamax"] if find_spec("tokamax") else []))


def cases():
    """By name: key heads, T, S and options."""
    lengths = jnp.array([T - T // 4 - 2, 0])
    numbers = np.stack([np.minimum(np.arange(T) // (T // 3) + 1, 3), np.where(np.arange(T) < T - 5, 1, 0)])
    some = np.random.default_rng(5).random((B, 1, T, T)) < 0.7
    padding = {"mask": masks.padding(lengths, T)[:, None]}
    return {
        "plain": (H, T, T, {}),
        "causal": (H, T, T, {"causal": True}),
        "padding": (H, T, T, padding),
        "lengths": (H, T, T, {"lengths": lengths}),
        "causal and lengths": (H, T, T, {"lengths": lengths, "causal": True}),
        "window and lengths": (H, T, T, {"lengths": lengths, "causal": True, "window": (T // 8, 0)}),
        "bias and lengths": (H, T, T, {"lengths": lengths, "bias": drawn(6, 1, H, T, T)}),
        "causal and padding": (H, T, T, {"causal": True, **padding}),
        "any mask": (H, T, T, {"mask": jnp.asarray(some)}),
        "window": (H, T, T, {"causal": True, "window": (T // 8, 0)}),
        "window of both sides": (H, T, T, {"window": (T // 8, T // 16)}),
        "grouped": (H // 2, T, T, {"causal": True}),
        "one key head": (1, T, T, {}),
        "segments": (H, T, T, {"segments": (jnp.asarray(numbers), jnp.asarray(numbers)), "causal": True}),
        "bias": (H, T, T, {"bias": drawn(6, 1, H, T, T)}),
        "ALiBi": (H, T, T, {"bias": alibi(H), "causal": True}),
        "soft cap": (H, T, T, {"soft_cap": 5.0}),
        "cross": (H, T // 4, T, {"mask": masks.padding(lengths + 1, T)[:, None]}),
        "cross by lengths": (H, T // 4, T, {"lengths": lengths + 1}),
        "offset": (H, T // 4, T, {"causal": True, "offset": T - T // 4}),
        "odd sizes": (H, T - 3, T - 5, {}),
    }


# Beside all float32 by cuDNN; tokamax has no gradient of a soft cap in float32.
REFUSED = {("soft cap", "cudnn", "bfloat16"), ("odd sizes", "cudnn", "bfloat16"), ("soft cap", "tokamax", "float32")}


def drawn(seed, *shape):
    """Normal numbers that bfloat16 holds exactly."""
    return jnp.float32(np.random.default_rng(seed).normal(size=shape).astype(jnp.bfloat16))


def inputs(groups, size, keys, heads=H, batch=B):
    q, cotangent = drawn(0, batch, heads, size, D), drawn(3, batch, heads, size, D)
    return q, drawn(1, batch, groups, keys, D), drawn(2, batch, groups, keys, D), cotangent


def gradients(function, *arrays):
    """The context, and the gradients of all arrays but the last, its cotangent."""
    context, pull_back = jax.vjp(function, *arrays[:-1])
    return context, *pull_back(arrays[-1].astype(context.dtype))


def precise(function, arrays):
    """The same in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.float64(array)) for array in arrays]
        return [np.asarray(leaf) for leaf in jax.jit(partial(gradients, function))(*wide)]


def error(found, expected):
    found = np.asarray(jnp.asarray(found, jnp.float32), np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", CONTEXT)
@pytest.mark.parametrize("case", cases() if GPU else ())
def test_every_implementation_honours_every_mask(case, dtype):
    groups, size, keys, options = cases()[case]
    arrays = inputs(groups, size, keys)
    expected = precise(partial(dot_product_attention, implementation="plain", **options), arrays)
    narrow = [array.astype(dtype) for array in arrays]
    able = [name for name in IMPLEMENTATIONS if (case, name, dtype) not in REFUSED]
    able = [name for name in able if name != "cudnn" or dtype != "float32"]

    def every(*arrays):
        run = lambda name: partial(dot_product_attention, implementation=name, **options)  # noqa: E731
        return {name: gradients(run(name), *arrays) for name in able}

    # tokamax promotes ranks.
    with (
        jax.default_matmul_precision("highest" if dtype == "float32" else "default"),
        jax.numpy_rank_promotion("allow"),
    ):
        found = jax.jit(every)(*narrow)
    zero = [np.all(part == 0, axis=-1) for part in expected]
    errors = {}
    for name, parts in found.items():
        for part, one, other in zip(("context", "queries", "keys", "values"), parts, expected, strict=True):
            allowed = (CONTEXT if part == "context" else GRADIENTS)[dtype]
            if name == "tokamax" and dtype == "float32":
                allowed = TF32
            errors[name, part] = error(one, other), allowed
        # Queries with nothing to attend to, and keys that nobody sees, are zero in all that is theirs.
        hidden = [parts[0][zero[0]], parts[1][zero[0]], parts[2][zero[3]], parts[3][zero[3]]]
        assert all(np.all(np.asarray(part, np.float32) == 0) for part in hidden), name
    print(case, dtype, {" ".join(key): f"{one:.1e}" for key, (one, _) in errors.items()})
    wrong = {key: one for key, (one, allowed) in errors.items() if not one <= allowed}
    assert not wrong


def test_cudnn_refuses_what_it_cannot_do():
    queries, keys, values, _ = inputs(H, T, T)
    with pytest.raises(ValueError, match="float16 or bfloat16; got float32"):
        dot_product_attention(queries, keys, values, implementation="cudnn")
    with pytest.raises(ValueError, match="no soft cap; got 5"):
        narrow = [array.astype(jnp.bfloat16) for array in (queries, keys, values)]
        dot_product_attention(*narrow, soft_cap=5.0, implementation="cudnn")
    with pytest.raises(ValueError, match="even T and S; got 127 and 128"):
        dot_product_attention(narrow[0][:, :, 1:], *narrow[1:], implementation="cudnn")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_errs_within_3e_3_at_4096_positions(implementation):
    arrays = inputs(2, 4096, 4096, heads=2, batch=1)
    expected = precise(partial(dot_product_attention, implementation="plain"), arrays)
    narrow = [array.astype(jnp.bfloat16) for array in arrays]
    attend = partial(dot_product_attention, implementation=implementation)
    found = jax.jit(partial(gradients, attend))(*narrow)
    errors = [error(one, other) for one, other in zip(found, expected, strict=True)]
    print(implementation, [f"{one:.1e}" for one in errors])
    assert errors[0] <= 3e-3 and max(errors) <= 1e-2


@pytest.mark.parametrize("lengths", [None, jnp.array([T - 6, 0])], ids=["none", "lengths"])
def test_a_bias_of_any_shape_has_its_gradient(lengths):
    arrays = inputs(H // 2, T, T)
    biases = {str(lead): drawn(7, *lead, T, T) for lead in ((1, H), (B, 1), (B, H), (1, 1))}

    def every(implementation, arrays, biases):
        attend = partial(dot_product_attention, lengths=lengths, causal=True, implementation=implementation)
        run = lambda q, k, v, bias: attend(q, k, v, bias=bias)  # noqa: E731
        return {lead: gradients(run, *arrays[:3], bias, arrays[3])[-1] for lead, bias in biases.items()}

    with jax.enable_x64(True):
        expected = jax.jit(partial(every, "plain"))(*jax.tree.map(np.float64, (list(arrays), biases)))
        expected = jax.tree.map(np.asarray, expected)
    narrow = jax.tree.map(lambda array: array.astype(jnp.bfloat16), (arrays, biases))
    with jax.numpy_rank_promotion("allow"):
        found = jax.jit(lambda *some: {name: every(name, *some) for name in IMPLEMENTATIONS})(*narrow)
    errors = {(name, lead): error(one, expected[lead]) for name, of in found.items() for lead, one in of.items()}
    print({" ".join(key): f"{one:.1e}" for key, one in errors.items()})
    assert max(errors.values()) <= GRADIENTS["bfloat16"]


@pytest.mark.parametrize("case", ["padding", "lengths", "any mask", "bias", "bias and lengths", "plain"])
def test_vmap_is_a_larger_batch(case):
    """Of queries [2, B, H, T, D] and a mask or lengths of each; a bias is shared."""
    options = cases()[case][-1]
    shared = {name: value for name, value in options.items() if name == "bias"}
    own = {name: jnp.stack([value, jnp.roll(value, 1, axis=-1)]) for name, value in options.items() if name != "bias"}
    arrays = [jnp.stack([array, -array[::-1]]) for array in inputs(H, T, T)]
    batched, together = jax.tree.map(lambda array: array.reshape(2 * B, *array.shape[2:]), (arrays, own))
    expected = precise(partial(dot_product_attention, implementation="plain", **shared, **together), batched)

    def mapped(*arrays, implementation):
        attend = partial(dot_product_attention, **shared, implementation=implementation)
        return jax.vmap(lambda own, *arrays: gradients(partial(attend, **own), *arrays))(own, *arrays)

    narrow = [array.astype(jnp.bfloat16) for array in arrays]
    with jax.numpy_rank_promotion("allow"):
        found = jax.jit(lambda *some: {name: mapped(*some, implementation=name) for name in IMPLEMENTATIONS})(*narrow)
    for name, parts in found.items():
        errors = [error(one.reshape(other.shape), other) for one, other in zip(parts, expected, strict=True)]
        print(case, name, [f"{one:.1e}" for one in errors])
        assert errors[0] <= CONTEXT["bfloat16"] and max(errors) <= GRADIENTS["bfloat16"], name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_of_single_examples_each_with_a_mask_of_its_own(implementation):
    arrays, mask = inputs(H, T, T), cases()["any mask"][-1]["mask"][:, 0]
    expected = precise(partial(dot_product_attention, mask=mask[:, None], implementation="plain"), arrays)

    def one(mask, *arrays):
        return gradients(partial(dot_product_attention, mask=mask, implementation=implementation), *arrays)

    with jax.numpy_rank_promotion("allow"):
        found = jax.jit(jax.vmap(one))(mask, *(array.astype(jnp.bfloat16) for array in arrays))
    errors = [error(part, other) for part, other in zip(found, expected, strict=True)]
    print(implementation, [f"{one:.1e}" for one in errors])
    assert errors[0] <= CONTEXT["bfloat16"] and max(errors) <= GRADIENTS["bfloat16"]


def test_the_default_is_cudnn_where_it_can():
    narrow = [array.astype(jnp.bfloat16) for array in inputs(H, T, T)[:3]]
    text = jax.jit(dot_product_attention).lower(*narrow).as_text()
    assert "fmha" in text or "cudnn" in text
    assert choose("gpu", jnp.float32, 128, 128, cudnn=False) == "plain"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 2.4, 60.0])  # tiny, moderate, moderate by a hair, and beyond
@pytest.mark.parametrize("dtype", CONTEXT)
def test_additive_attention(dtype, scale):
    queries, keys, values = scale * drawn(0, 3, 50, 96), scale * drawn(1, 3, 70, 96), drawn(2, 3, 70, 40)
    energy, cotangent = drawn(4, 96) / 8, drawn(5, 3, 50, 40)
    mask = masks.padding(jnp.array([70, 13, 0]), 70) & (np.random.default_rng(6).random((3, 50, 70)) < 0.7)

    def plain(queries, keys, values, energy):
        scores = jnp.where(mask, jnp.tanh(queries[:, :, None] + keys[:, None]) @ energy, -jnp.inf)
        weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask.any(-1, keepdims=True), scores, 0)), 0)
        return jnp.einsum("bts,bsv->btv", weights, values)

    narrow = [array.astype(dtype) for array in (queries, keys, values, energy, cotangent)]
    expected = precise(plain, [array.astype(jnp.float32) for array in narrow])
    found = jax.jit(partial(gradients, partial(additive_attention, mask=mask)))(*narrow)
    errors = [error(one, other) for one, other in zip(found, expected, strict=True)]
    print(dtype, scale, [f"{one:.1e}" for one in errors])
    if scale < 0.1:  # A row's gradients by its scores sum to zero, and so do, but for rounding, those by its query.
        del errors[1]
    assert errors[0] <= CONTEXT[dtype] and max(errors) <= GRADIENTS[dtype]

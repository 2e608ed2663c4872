"""A function that is vmapped by a larger batch: as if every example ran by itself."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.batching import fold
from tests.quick import quick

SIZE, T, S, D = 3, 2, 5, 4
NAMES = ("queries", "keys", "bias", "mask", "lengths")
SMOOTH = NAMES[:3]
MAPPED = [*({name} for name in NAMES), set(NAMES), *map(set, combinations(("queries", "bias", "mask"), 2))]


def attend(queries, keys, bias, mask, lengths):
    """As strict as a kernel: one batch, but for a bias and a mask that all share."""
    assert len(queries) == len(keys) == len(lengths) and {len(bias), len(mask)} <= {1, len(queries)}
    scores = jnp.einsum("btd,bsd->bts", queries, keys) + bias
    within = jnp.arange(S)[None, None] < lengths[:, None, None]
    weights = jax.nn.softmax(jnp.where(within, scores, -9.0)) * jnp.where(mask, 1.0, 0.5)
    return jnp.einsum("bts,bsd->btd", weights, keys)


folded = fold(attend, shared=("bias", "mask"))


def drawn(batch, shared_bias, shared_mask, mapped):
    """The arrays, of which those in `mapped` have an axis more."""
    rng = np.random.default_rng((batch, shared_bias, shared_mask, *mapped))
    bias, mask = (1 if shared_bias else batch), (1 if shared_mask else batch)
    shapes = {"queries": (batch, T, D), "keys": (batch, S, D), "bias": (bias, T, S), "mask": (mask, T, S)}
    shapes = {name: (SIZE, *shape) if m else shape for (name, shape), m in zip(shapes.items(), mapped, strict=False)}
    lengths = rng.integers(1, S + 1, (SIZE, batch) if mapped[4] else (batch,))
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return arrays | {"mask": arrays["mask"] > -1, "lengths": lengths}


def apart(arrays):
    smooth = {name: arrays[name] for name in SMOOTH}
    return smooth, {name: array for name, array in arrays.items() if name not in SMOOTH}


def contexts_and_gradients(function, arrays, axes):
    """By vmap: the contexts, what each example has of gradients; and of all examples together."""

    def one(smooth, fixed):
        context, pull_back = jax.vjp(lambda smooth: function(**smooth, **fixed), smooth)
        return context, *pull_back(jnp.sin(jnp.arange(float(context.size))).reshape(context.shape))

    def total(smooth, fixed):
        return jnp.sum(jnp.sin(jax.vmap(lambda a, b: function(**a, **b), in_axes=apart(axes))(smooth, fixed)))

    smooth, fixed = apart(arrays)
    return jax.vmap(one, in_axes=apart(axes))(smooth, fixed), jax.grad(total)(smooth, fixed)


@pytest.fixture
def precise():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize(("batch", "shared_bias", "shared_mask"), [(1, True, True), (2, True, False), (2, False, True)])
def test_whatever_is_mapped_it_is_the_function_itself(batch, shared_bias, shared_mask):
    for names in MAPPED:
        mapped = [name in names for name in NAMES]
        arrays = drawn(batch, shared_bias, shared_mask, mapped)
        axes = {name: 0 if m else None for name, m in zip(NAMES, mapped, strict=True)}
        run = quick(lambda arrays, axes=axes: [contexts_and_gradients(each, arrays, axes) for each in (folded, attend)])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), *run(arrays))


@pytest.mark.usefixtures("precise")
def test_vmap_in_vmap_in_a_checkpoint_in_a_scan_and_a_jacobian():
    arrays = drawn(2, True, True, (False,) * 5)
    others = {name: array for name, array in arrays.items() if name not in ("queries", "bias")}
    queries = np.random.default_rng(0).normal(size=(SIZE, 2, 2, T, D))
    biases = np.random.default_rng(1).normal(size=(2, 1, T, S))

    def deep(function, queries, biases):
        def thrice(queries, bias):
            step = jax.checkpoint(lambda queries, _: (function(queries=queries, bias=bias, **others), None))
            return jax.lax.scan(step, queries, None, length=3)[0]

        return jnp.sum(jnp.sin(jax.vmap(jax.vmap(thrice), (0, None))(queries, biases)))

    found, expected = (
        quick(jax.grad(deep, argnums=(1, 2)), static_argnums=0)(function, queries, biases)
        for function in (folded, attend)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), found, expected)
    found, expected = (
        quick(jax.jacrev(lambda queries, f=function: f(queries=queries, bias=biases[0], **others)))(queries[0, 0])
        for function in (folded, attend)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_the_larger_batch_is_one_call_forward_and_backward():
    @jax.custom_vjp
    def double(queries):
        return 2 * queries

    double.defvjp(lambda queries: (jnp.exp(queries), None), lambda _, cotangent: (jnp.tanh(cotangent),))
    once = fold(lambda queries: double(queries), shared=())

    def both(queries):
        context, pull_back = jax.vjp(jax.vmap(lambda queries: once(queries=queries)), queries)
        return pull_back(context)

    text = str(jax.jit(both).lower(jnp.ones((SIZE, 2, T, D))).as_text())
    for name in ("stablehlo.exponential ", "stablehlo.tanh "):
        (line,) = [line for line in text.splitlines() if name in line]
        assert f"tensor<{SIZE * 2}x{T}x{D}x" in line


def test_what_is_shared_is_not_saved_again():
    """A loop over layers would keep a copy of it for each of them."""
    product_with = fold(lambda queries, bias: jnp.sin(queries * bias), shared=("bias",))
    bias = jnp.ones((1, T, D))

    def deep(queries):
        step = lambda queries, _: (product_with(queries=queries, bias=bias), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, queries, None, length=7)[0])

    text = str(jax.make_jaxpr(jax.grad(deep))(jnp.ones((3, T, D))))
    assert "[7,3,2,4]" in text and "[7,1,2,4]" not in text

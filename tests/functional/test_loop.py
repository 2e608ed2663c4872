"""The scan with deferred weight gradients equals `lax.scan`, in value and in every gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional.attend import read
from attention_zoo.functional.loop import scan
from attention_zoo.functional.products import product, project
from attention_zoo.functional.scores import dot

T, B, S, D, V = 5, 2, 7, 3, 11


def step(constants, carry, x):
    """An attending step: kernel and values are used through `product`, keys in both ways, energy plainly."""
    state, count = carry
    query = project(state, constants["kernel"], constants["bias"])[:, None]
    scores = dot(query, constants["keys"]) + jnp.tanh(constants["keys"] @ constants["energy"])[:, None, :]
    context = read(jnp.where(constants["mask"][:, None], jax.nn.softmax(scores), 0), constants["values"])[:, 0]
    state = jnp.tanh(project(context, constants["enter"]) + x + state)
    return (state, count + 1), (state, context)


def arguments():
    generator = np.random.default_rng(0)
    shapes = {"kernel": (D, D), "bias": (D,), "keys": (B, S, D), "energy": (D,), "values": (B, S, V), "enter": (V, D)}
    constants = {name: jnp.asarray(generator.normal(size=shape)) for name, shape in shapes.items()}
    constants["mask"] = np.arange(S)[None] < np.array([[S], [4]])
    carry = (jnp.asarray(generator.normal(size=(B, D))), jnp.int32(0))
    return constants, carry, jnp.asarray(generator.normal(size=(T, B, D)))


def loss(loop, constants, carry, xs, **options):
    (state, count), (states, contexts) = loop(constants, carry, xs, **options)
    return jnp.sum(state**3) + jnp.sum(jnp.sin(states) * count) + jnp.sum(contexts[1:] ** 2)


def plain(constants, carry, xs, **options):
    return jax.lax.scan(lambda carry, x: step(constants, carry, x), carry, xs, **options)


def deferred(constants, carry, xs, **options):
    return scan(step, constants, carry, xs, **options)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reverse", [False, True])
def test_equals_lax_scan_in_value_and_every_gradient(reverse):
    (constants, (state, count), xs), options = arguments(), {"reverse": reverse}
    mask = constants.pop("mask")

    def of(loop):
        def total(constants, state, xs):
            return loss(loop, {**constants, "mask": mask}, (state, count), xs, **options)

        return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(constants, state, xs)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), of(deferred), of(plain))


@pytest.mark.parametrize(("kernel", "x"), [("float32", "bfloat16"), ("bfloat16", "float16"), ("bfloat16", "float32")])
def test_gradients_have_the_dtypes_of_what_they_are_of(kernel, x):
    def one(kernel, carry, x):
        carry = jnp.tanh(carry + project(x, kernel).astype(carry.dtype))
        return carry, carry

    arrays = jnp.ones((D, D), kernel), jnp.zeros((B, D)), jnp.ones((T, B, D), x)
    found = jax.grad(lambda *a: scan(one, *a)[1].sum(), (0, 1, 2))(*arrays)
    assert [leaf.dtype for leaf in found] == [leaf.dtype for leaf in arrays]


@pytest.mark.usefixtures("float64")
def test_gradients_by_finite_differences():
    constants, carry, xs = arguments()
    mask = constants.pop("mask")
    check_grads(
        jax.jit(lambda constants, xs: loss(deferred, {**constants, "mask": mask}, carry, xs)),
        (constants, xs),
        1,
        ["rev"],
    )


def test_a_constant_used_twice_gets_both_shares():
    def twice(constants, carry, x):
        return project(project(carry, constants) + x, constants), None

    kernel, start, xs = np.float32(np.eye(D) * 0.5), np.ones((B, D), np.float32), np.ones((T, B, D), np.float32)
    by_scan = jax.grad(lambda kernel: scan(twice, kernel, start, xs)[0].sum())
    by_hand = jax.grad(lambda kernel: jax.lax.scan(lambda c, x: twice(kernel, c, x), start, xs)[0].sum())
    by_scan, by_hand = jax.jit(lambda kernel: (by_scan(kernel), by_hand(kernel)))(kernel)
    np.testing.assert_allclose(by_scan, by_hand, rtol=1e-6)


def test_works_under_vmap_checkpoint_and_a_second_scan():
    constants, carry, xs = arguments()
    mask, count = constants.pop("mask"), carry[1]

    def total(xs):
        return loss(deferred, {**constants, "mask": mask}, (carry[0], count), xs)

    def again(xs):
        return jax.lax.scan(lambda c, xs: (c, jax.grad(jax.checkpoint(total))(xs)), 0, xs)[1]

    expected = jax.jit(jax.grad(total))(xs)
    mapped, again = jax.device_get([jax.jit(jax.vmap(jax.grad(total)))(np.stack([xs, xs])), jax.jit(again)(xs[None])])
    for result in (*mapped, *again):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_outside_a_scan_product_is_the_operation():
    x, w = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(product(jnp.matmul, x, w, join=lambda steps: steps), x @ w)


def test_weight_gradients_leave_the_loop():
    """The point of the scan: no sum of the kernel's shape is carried through the backward loop."""
    kernel, start, xs = jnp.ones((13, 13)), jnp.ones((B, 13)), jnp.ones((T, B, 13))

    def backward_carries(loop):
        jaxpr = jax.make_jaxpr(jax.grad(lambda kernel: loop(kernel).sum()))(kernel)
        loops = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
        return [variable.aval.shape for variable in loops[-1].outvars]  # carried; what is collected begins with T

    def one(kernel, carry, x):
        return jnp.tanh(project(carry, kernel) + x), None

    assert (13, 13) in backward_carries(lambda k: jax.lax.scan(lambda c, x: one(k, c, x), start, xs)[0])
    assert (13, 13) not in backward_carries(lambda k: scan(one, k, start, xs)[0])


def loops_of(function, *arguments):
    """The loops of a program, in order."""
    return [one for one in jax.make_jaxpr(function)(*arguments).eqns if one.primitive.name == "scan"]


def test_the_gradient_computes_no_product_again():
    kernel, start, xs = jnp.ones((13, 13)), jnp.ones((B, 13)), jnp.ones((T, B, 13))

    def one(kernel, carry, x):
        return jnp.tanh(project(jnp.tanh(project(carry, kernel)) + x, kernel)), None

    forward, backward = loops_of(jax.grad(lambda k: scan(one, k, start, xs)[0].sum()), kernel)
    products = [str(loop.params["jaxpr"]).count("dot_general") for loop in (forward, backward)]
    assert products == [2, 2]  # backward those by the inputs


def test_keys_masks_and_none_pass_through():
    keys, alive = jax.random.split(jax.random.key(0), T), jnp.arange(T) < 4
    constants = {"kernel": jnp.eye(D) * 0.5, "none": None, "shift": jnp.ones(D), "table": jnp.arange(D)}

    def step(constants, carry, x):
        key, alive, x = x
        noise = jax.random.normal(key, x.shape) + (constants["shift"] * constants["table"])[None]
        new = jnp.tanh(project(carry["h"], constants["kernel"]) + x * noise)
        carry = {"h": jnp.where(alive, new, carry["h"]), "none": None, "key": key}
        return carry, (new, alive, None)

    def total(loop, kernel, shift, h, x):
        given = {**constants, "kernel": kernel, "shift": shift}
        carry, (new, _, _) = loop(given, {"h": h, "none": None, "key": keys[0]}, (keys, alive, x))
        return carry["h"].sum() + (new**2).sum()

    plain = lambda constants, carry, xs: jax.lax.scan(partial(step, constants), carry, xs)  # noqa: E731
    given = constants["kernel"], constants["shift"], jnp.ones((B, D)), jnp.ones((T, B, D)) / 3
    gradients = [jax.jit(jax.grad(partial(total, loop), (0, 1, 2, 3)))(*given) for loop in (partial(scan, step), plain)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *gradients)


@pytest.mark.parametrize("length", [0, 1])
def test_short_loops(length):
    kernel, start, xs = np.float32(np.eye(D) * 0.5), np.ones((B, D), np.float32), np.ones((length, B, D), np.float32)
    step = lambda kernel, carry, x: (project(carry, kernel) + x, x)  # noqa: E731
    gradient = jax.jit(jax.grad(lambda kernel, start: scan(step, kernel, start, xs)[0].sum(), (0, 1)))(kernel, start)
    np.testing.assert_allclose(gradient[0], length * B * np.ones((D, D)))
    np.testing.assert_allclose(gradient[1], 0.5**length * np.ones((B, D)))


def test_what_arrays_are_made_of_reaches_nothing():
    """Before they are written, results hold some number of the inputs, which may be NaN where a step ignores it."""
    kernel, start = np.float32(np.eye(D) * 0.5), np.ones((B, D), np.float32)
    xs = np.full((T, B, D), np.nan, np.float32)
    xs[:, 1] = 1

    def step(kernel, carry, x):
        carry = jnp.tanh(project(carry, kernel) + jnp.where(jnp.arange(B)[:, None] > 0, x, 0))
        return carry, carry

    def total(kernel, xs):
        return scan(step, kernel, start, xs)[1].sum()

    gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(kernel, xs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.usefixtures("float64")
def test_second_derivatives():
    constants, carry, xs = arguments()
    direction = np.cos(xs)

    def slope(loop, xs):
        return jnp.vdot(jax.grad(lambda xs: loss(loop, constants, carry, xs))(xs), direction)

    found, expected = (jax.jit(jax.grad(partial(slope, loop)))(xs) for loop in (deferred, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def equal_gradients(step, kernel, carry, xs, jit=True):
    def total(loop, kernel):
        (carry_out, ys) = loop(kernel, carry, xs)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves((carry_out, ys)))

    plain = lambda kernel, carry, xs: jax.lax.scan(partial(step, kernel), carry, xs)  # noqa: E731
    compiled = jax.jit if jit else lambda function: function
    found, expected = (compiled(jax.grad(partial(total, loop)))(kernel) for loop in (partial(scan, step), plain))
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=1e-5, atol=1e-6)


KERNEL, ONES = jnp.eye(D) * 0.5 + 0.1, jnp.ones((T, B, D))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_products_of_integers(dtype):
    xs = (jnp.arange(T * B * D).reshape(T, B, D) % 3).astype(dtype)
    equal_gradients(lambda k, c, x: (jnp.tanh(c + project(x, k)), c), KERNEL, jnp.ones((B, D)), xs)


def test_a_step_may_give_numbers_of_python():
    def step(kernel, carry, x):
        return (jnp.tanh(project(carry[0], kernel) + x), 1), 0.0

    equal_gradients(step, KERNEL, (jnp.ones((B, D)), jnp.int32(0)), ONES)


def test_a_number_that_is_carried_takes_the_dtype_of_the_step():
    kernel, xs = KERNEL.astype(jnp.bfloat16), ONES.astype(jnp.bfloat16)
    equal_gradients(lambda k, c, x: (c + (x * k[:1]).sum(), c), kernel, 0.0, xs)


def test_an_empty_loop_within_a_loop():
    def step(kernel, carry, x):
        inner = scan(lambda k, c, x: (project(c, k) + x, None), kernel, carry, jnp.ones((0, B, D)))[0]
        return jnp.tanh(project(inner, kernel) + x), None

    equal_gradients(step, KERNEL, jnp.ones((B, D)), ONES)


def test_a_constant_that_the_step_also_closes_over():
    step = lambda k, c, x: (jnp.tanh(project(c, k) + project(x, KERNEL)), None)  # noqa: E731
    equal_gradients(step, KERNEL, jnp.ones((B, D)), ONES, jit=False)


def test_the_precision_of_the_forward_pass_holds_backward():
    def total(kernel):
        with jax.default_matmul_precision("highest"):
            return scan(lambda k, c, x: (jnp.tanh(project(c, k) + x), None), kernel, jnp.ones((B, D)), ONES)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(total))(KERNEL))
    assert program.count("dot_general[") == program.count("precision=(Precision.HIGHEST") > 2

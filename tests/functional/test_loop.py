"""The scan with deferred weight gradients equals `lax.scan`, in value and in every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional.attend import read
from attention_zoo.functional.loop import product, project, scan
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
    constants["mask"] = jnp.arange(S)[None] < jnp.array([[S], [4]])
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

    kernel, start, xs = jnp.eye(D) * 0.5, jnp.ones((B, D)), jnp.ones((T, B, D))
    by_scan = jax.grad(lambda kernel: scan(twice, kernel, start, xs)[0].sum())(kernel)
    by_hand = jax.grad(lambda kernel: jax.lax.scan(lambda c, x: twice(kernel, c, x), start, xs)[0].sum())(kernel)
    np.testing.assert_allclose(by_scan, by_hand, rtol=1e-6)


def test_works_under_vmap_checkpoint_and_a_second_scan():
    constants, carry, xs = arguments()
    mask, count = constants.pop("mask"), carry[1]

    def total(xs):
        return loss(deferred, {**constants, "mask": mask}, (carry[0], count), xs)

    expected = jax.grad(total)(xs)
    mapped = jax.vmap(jax.grad(total))(jnp.stack([xs, xs]))
    again = jax.lax.scan(lambda c, xs: (c, jax.grad(jax.checkpoint(total))(xs)), 0, xs[None])[1]
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

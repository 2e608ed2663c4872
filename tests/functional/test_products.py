"""Products of layers: one that makes rows narrow or wide is the plain one, and its gradient is computed turned."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional import rows
from attention_zoo.functional.loop import scan
from attention_zoo.functional.products import Activation, project
from tests.quick import quick

N, I, O = 7, 11, 5  # noqa: E741 - rows, and the widths of the input and the output
DRAW = np.random.default_rng(0)
X, W, BY = (jnp.float32(DRAW.normal(size=shape)) for shape in ((N, I), (I, O), (N, O)))


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    monkeypatch.setattr(rows, "LEAST", 0)
    monkeypatch.setattr(rows, "MANY", 0)


def turned(function, *arguments):
    """How many products of a program are turned, so that XLA does not turn what they read instead."""
    return str(jax.make_jaxpr(lambda *a: function(*a))(*arguments)).count("optimization_barrier")


BOTH = pytest.mark.parametrize(("x", "kernel", "by"), [(X, W, BY), (BY, W.T, X)], ids=["narrow", "wide"])


def gradient(x, kernel, by):
    return jax.vjp(lambda kernel: project(x, kernel), kernel)[1](by)[0]


@BOTH
def test_value_and_gradients_forward_and_reverse(x, kernel, by):
    works = lambda x, kernel: jnp.sin(project(x, kernel))  # noqa: E731
    np.testing.assert_allclose(works(x, kernel), jnp.sin(x @ kernel), rtol=1e-5, atol=1e-6)
    with jax.enable_x64():
        check_grads(works, (np.float64(x), np.float64(kernel)), order=2, modes=["fwd", "rev"])


@BOTH
def test_the_gradient_of_the_kernel_alone_is_computed_turned(x, kernel, by):
    assert turned(gradient, x, kernel, by) == 1
    assert turned(project, x, kernel) == 0


def test_no_product_of_a_widening_layer_sums_over_rows_of_its_left_side():
    """Those are XLA:CPU's slower ones."""
    texts = [jax.jit(lambda *a, f=f: f(*a)).lower(BY, W.T, X).compile().as_text() for f in (gradient, plain_gradient)]
    assert ["lhs_contracting_dims={0}" in text for text in texts] == [False, True]


def plain_gradient(x, kernel, by):
    return jax.vjp(partial(jnp.matmul, x), kernel)[1](by)[0]


@pytest.mark.parametrize(
    ("kernel", "least", "many"),
    [
        (W, N * I * O + 1, 0),
        (W[: 2 * O - 1], 0, 0),
        (W.T[:, : 2 * O - 1], 0, 0),
        (W.T, N * I * O + 1, 0),
        (W.T, 0, N + 1),
    ],
    ids=["few multiplications", "hardly narrower", "hardly wider", "wide, few multiplications", "wide, few rows"],
)
def test_those_of_other_kernels_are_not(monkeypatch, kernel, least, many):
    monkeypatch.setattr(rows, "LEAST", least)
    monkeypatch.setattr(rows, "MANY", many)
    assert turned(gradient, X[:, : kernel.shape[0]], kernel, jnp.ones((N, kernel.shape[1]))) == 0


@pytest.mark.parametrize(("name", "value"), [("device_count", 2), ("default_backend", "gpu")])
def test_nor_on_several_devices_and_off_the_cpu(monkeypatch, name, value):
    monkeypatch.setattr(jax, name, lambda: value)
    assert turned(gradient, X, W, BY) == turned(gradient, BY, W.T, X) == 0


@BOTH
def test_under_vmap_of_rows_or_kernels(x, kernel, by):
    for axes, one in (((0, None, 0), kernel), ((0, 0, 0), jnp.stack([kernel, 2 * kernel]))):
        found = quick(jax.vmap(gradient, axes))(jnp.stack([x, x[::-1]]), one, jnp.stack([by, -by]))
        np.testing.assert_allclose(found, [x.T @ by, -x[::-1].T @ by], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")])
@BOTH
def test_dtypes_are_those_of_the_plain_product(x, kernel, by, dtypes):
    x, kernel = x.astype(dtypes[0]), kernel.astype(dtypes[1])
    found, expected = project(x, kernel), x @ kernel
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=2e-2, atol=2e-2)
    assert gradient(x, kernel, by.astype(found.dtype)).dtype == kernel.dtype


@BOTH
def test_in_a_scan_it_is_that_of_all_steps_and_turned_once(x, kernel, by):
    xs, bys = jnp.stack([x, 2 * x, 3 * x]), jnp.stack([by, by, -by])

    def pulled(kernel):
        step = lambda kernel, carry, x: (carry, project(x, kernel))  # noqa: E731
        return jax.vjp(lambda kernel: scan(step, kernel, (), xs)[1], kernel)[1](bys)[0]

    shares = [x.T @ by for x, by in zip(xs, bys, strict=True)]
    np.testing.assert_allclose(quick(pulled)(kernel), sum(shares), rtol=1e-4, atol=1e-4)
    # The gradient of a kernel that narrows, or the rows of all steps of one that widens.
    behind = f"f32[{O},{I}]" if kernel is W else f"f32[{3 * x.size}]"
    assert f"{behind} = optimization_barrier" in str(jax.make_jaxpr(pulled)(kernel))


HYPOTENUSE = Activation(lambda y: jnp.sqrt(y * y + 1), lambda z: jnp.sqrt(z * z - 1) / z)  # of positive y


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("summed", [True, False])
def test_what_is_taken_of_a_product_is_all_that_a_scan_keeps_of_it(summed):
    xs, plus, kernel = (jnp.asarray(DRAW.uniform(0.5, 1, shape)) for shape in ((3, N, I), (3, N, O), (I, O)))

    def total(loop, kernel, xs, plus):
        def step(kernel, carry, now):
            taken = project(now[0], kernel, plus=now[1] if summed else None, then=HYPOTENUSE)
            return carry + jnp.sum(taken), taken

        carry, taken = loop(step, kernel, jnp.zeros(()), (xs, plus))
        return carry + jnp.sum(jnp.sin(taken))

    def plain(step, kernel, carry, xs):
        return jax.lax.scan(partial(step, kernel), carry, xs)

    found, expected = (quick(jax.grad(partial(total, loop), (0, 1, 2))) for loop in (scan, plain))
    some, others = found(kernel, xs, plus), expected(kernel, xs, plus)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), some, others)
    _, pull_back = jax.eval_shape(partial(jax.vjp, partial(total, scan)), kernel, xs, plus)
    assert [leaf.shape for leaf in jax.tree.leaves(pull_back)].count((3, N, O)) == 2  # that, and what sin keeps of it


def test_a_bias_beside_what_is_taken_is_refused():
    with pytest.raises(ValueError, match="without a bias"):
        project(X, W, jnp.ones(O), then=HYPOTENUSE)

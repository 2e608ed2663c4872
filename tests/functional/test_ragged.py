"""A function of single rows gives for the real ones what it gives for all, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional import ragged
from attention_zoo.functional.norms import layer_norm, relu
from attention_zoo.functional.ragged import of_real_rows
from tests.quick import quick

N, D, O = 19, 5, 3  # noqa: E741 - rows, and the widths of the input and the output
SIZES = (7, 2)
DRAW = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ragged, "SIZES", SIZES)


def feed(constants, rows):
    """A norm, layers with a rectifier between, whole numbers among rows and constants, and a constant nobody reads."""
    x = layer_norm(rows["x"], constants["scale"], constants["bias"])
    hidden = relu(x @ constants["enter"].astype(x.dtype) + rows["numbers"][:, None])
    return hidden @ (constants["leave"] * constants["times"]).astype(x.dtype) + jnp.sin(rows["x"] @ constants["around"])


def problem(dtype="float64"):
    shapes = {"scale": (D,), "bias": (D,), "enter": (D, 11), "leave": (11, O), "around": (D, O), "unread": (2,)}
    constants = {name: jnp.asarray(DRAW.normal(size=shape), dtype) for name, shape in shapes.items()}
    rows = {"x": jnp.asarray(DRAW.normal(size=(N, D)), dtype), "numbers": jnp.arange(N) % 3}
    return constants | {"times": jnp.int32(2)}, rows, jnp.asarray(DRAW.normal(size=(N, O)), dtype)


def of_all(function, constants, rows, real):
    return jnp.where(real[:, None], function(constants, rows), 0)


def pulled(work, constants, rows, real, by):
    """Results, and gradients by the constants and by x."""
    smooth = {name: leaf for name, leaf in constants.items() if name != "times"}
    told = lambda smooth, x: work(feed, constants | smooth, rows | {"x": x}, real)  # noqa: E731
    results, pull_back = jax.vjp(told, smooth, rows["x"])
    return results, pull_back(by), work(feed, constants, rows, real)


def close(found, expected, tolerance=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


@pytest.mark.usefixtures("float64")
def test_equals_the_function_of_all_rows_for_every_number_of_real_ones():
    constants, rows, by = problem()
    found, expected = (quick(partial(pulled, work)) for work in (of_real_rows, of_all))
    for count in range(N + 1):
        real = jnp.asarray(DRAW.permutation(N) < count)
        close(*(work(constants, rows, real, by) for work in (found, expected)))


@pytest.mark.usefixtures("float64")
def test_gradients_by_finite_differences():
    constants, rows, _ = problem()
    real = jnp.asarray(DRAW.permutation(N) < 11)
    smooth = lambda constants, x: jnp.tanh(x @ constants["enter"]) @ constants["leave"]  # noqa: E731
    read = jax.jit(lambda constants, x: jnp.sin(of_real_rows(smooth, constants, x, real)))
    parts = {name: constants[name] for name in ("enter", "leave")}
    check_grads(read, (parts, rows["x"]), order=1, modes=["rev"])


@pytest.mark.usefixtures("float64")
def test_garbage_in_other_rows_changes_nothing():
    constants, rows, by = problem()
    real = jnp.asarray(DRAW.permutation(N) < 11)
    fill = lambda value: {**rows, "x": jnp.where(real[:, None], rows["x"], value)}  # noqa: E731
    work = quick(lambda x: pulled(of_real_rows, constants, x, real, by))
    for value in (1e300, jnp.nan):
        jax.tree.map(np.testing.assert_array_equal, work(fill(value)), work(fill(0.0)))


@pytest.mark.usefixtures("float64")
def test_vmap_over_rows_constants_or_both():
    (constants, rows, by), real = problem(), jnp.asarray([DRAW.permutation(N) < count for count in (0, 7, 13)])
    rows = {"x": jnp.stack([rows["x"] * n for n in (1, 2, 3)]), "numbers": rows["numbers"]}
    several = constants | {"enter": jnp.stack([constants["enter"] * n for n in (1, 2, 3)])}
    each = dict.fromkeys(constants) | {"enter": 0}
    for given, axes in ((constants, None), (several, each)):
        found, expected = (
            quick(jax.vmap(partial(pulled, work), (axes, {"x": 0, "numbers": None}, 0, None)))(given, rows, real, by)
            for work in (of_real_rows, of_all)
        )
        close(found, expected)


@pytest.mark.usefixtures("float64")
def test_what_goes_back_of_one_example_of_several_is_its_own():
    """Its parts are those that going forth took, as many as the fullest needed, and not as many as it needs itself."""
    constants, rows, by = problem()
    real = jnp.arange(N)[None] < jnp.array([[14], [3]])
    go = lambda work, real: jax.vjp(lambda x: work(feed, constants, rows | {"x": x}, real), rows["x"])[1]  # noqa: E731
    pulls = jax.vmap(partial(go, of_real_rows))(real)
    for n in range(2):
        close(jax.tree.map(lambda leaf, n=n: leaf[n], pulls)(by), go(of_all, real[n])(by))


@pytest.mark.usefixtures("float64")
def test_forward_over_reverse_works():
    x, real = jnp.asarray(DRAW.normal(size=(N, 2))), jnp.arange(N) < 11
    bent = lambda work: jax.hessian(lambda c: work(lambda c, x: jnp.sin(x * c), c, x, real).sum())(jnp.ones((1, 2)))  # noqa: E731
    close(bent(of_real_rows), bent(of_all))


def test_shares_of_parts_are_summed_in_float32():
    """256 of the first part and 1 of each other: in bfloat16 256 + 1 is 256."""
    x = jnp.zeros((N, 1)).at[jnp.array([0, 7, 14, 16, 18]), 0].set(jnp.array([256.0, 1, 1, 1, 1])).astype(jnp.bfloat16)
    work = lambda c: of_real_rows(lambda c, x: x * c[None], c, x, jnp.ones(N, bool))  # noqa: E731
    (gradient,) = jax.vjp(work, jnp.ones(1, jnp.bfloat16))[1](jnp.ones((N, 1), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16 and float(gradient[0]) == 260


def parts(function):
    """For how many rows a function of rows is called when the program runs, part after part."""
    sizes = []

    def seen(constants, rows):
        jax.debug.callback(lambda x: sizes.append(len(x)), rows)
        return jnp.sin(rows)

    jax.block_until_ready(function(seen))
    jax.effects_barrier()
    return sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [2]), (7, [7]), (17, [7, 7, 2, 2]), (19, [7, 7, 2, 2, 2])]
)
def test_as_many_parts_as_hold_the_real_rows(count, expected):
    x, real = jnp.ones((N, D)), jnp.asarray(DRAW.permutation(N) < count)
    assert parts(lambda function: of_real_rows(function, None, x, real)) == expected
    assert parts(lambda function: jax.vjp(lambda x: of_real_rows(function, None, x, real), x)[0]) == expected


def test_under_vmap_as_many_parts_as_the_fullest_needs():
    real = jnp.arange(N)[None] < jnp.array([[3], [8]])
    mapped = lambda function: jax.vmap(lambda real: of_real_rows(function, None, jnp.ones((N, D)), real))(real)  # noqa: E731
    assert parts(mapped) == [7, 7, 2, 2]  # of two examples each


def test_what_constants_alone_give_is_kept_once_and_what_repeats_too():
    """Going back reads the rows, the rectifier's outputs in one array, and bfloat16 kernels that were made once."""

    def function(constants, rows):
        enter, leave = (kernel.astype(jnp.bfloat16) for kernel in constants)
        return relu(rows @ enter) @ leave

    x, kernels = jnp.ones((N, D), jnp.bfloat16), [jnp.ones((D, 11)), jnp.ones((11, O))]
    _, pull_back = jax.vjp(lambda *a: of_real_rows(function, *a, jnp.ones(N, bool)), kernels, x)
    kept = jax.tree.leaves(pull_back)
    outputs = [leaf for leaf in kept if leaf.shape == (N + 1, 11)]  # as many rows as parts of two take
    assert len(outputs) == 1
    assert not [leaf.shape for leaf in kept if leaf.ndim == 3]
    assert [leaf.dtype for leaf in jax.tree.leaves(pull_back(jnp.ones((N, O), jnp.bfloat16)))] == [
        jnp.float32,
        jnp.float32,
        jnp.bfloat16,
    ]


@pytest.mark.usefixtures("float64")
def test_a_function_may_go_another_way_where_there_are_fewer_rows():
    constants, rows, by = problem()
    real = jnp.asarray(DRAW.permutation(N) < 12)

    def function(constants, rows):
        x = rows["x"] * jnp.sin(rows["x"]) if len(rows["x"]) < 7 else rows["x"] - jnp.cos(rows["x"]) * rows["x"] ** 2
        return x @ constants["around"]

    def by_hand(x, around):
        few = jnp.cumsum(real) > 7
        y = jnp.where(few[:, None], x * jnp.sin(x), x - jnp.cos(x) * x**2)
        return jnp.where(real[:, None], y @ around, 0)

    ours = lambda x, around: of_real_rows(function, {"around": around}, {"x": x}, real)  # noqa: E731
    given = rows["x"], constants["around"]
    (found, pull), (expected, pull_by_hand) = jax.vjp(ours, *given), jax.vjp(by_hand, *given)
    close((found, pull(by)), (expected, pull_by_hand(by)))


def test_no_rows():
    assert of_real_rows(lambda _, x: x, None, jnp.ones((0, D)), jnp.ones(0, bool)).shape == (0, D)


@pytest.mark.parametrize("transform", [jax.checkpoint, jax.jit])
def test_inside_other_transformations(transform):
    constants, rows, by = problem("float32")
    real = jnp.arange(N) < 11
    work = lambda *a: transform(partial(of_real_rows, feed))(*a)  # noqa: E731
    found = quick(partial(pulled, lambda function, *a: work(*a)))(constants, rows, real, by)
    close(found, quick(partial(pulled, of_all))(constants, rows, real, by), 1e-5)


def reshaped_rows(constants, rows):
    y = jnp.exp(rows["x"] * 0.1)
    return (jnp.sin(y.reshape(-1, D, 1)) * y[:, :, None]).reshape(y.shape) @ constants["around"]


def reshaped_constants(constants, rows):
    """Going back reads the weights, and what they are as another shape."""
    around = constants["around"]
    turned = jnp.sin(jnp.einsum("ijk,nk->nij", around.reshape(O, 1, D), rows["x"]))
    return turned.sum(2) * (rows["x"] @ around)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("function", [reshaped_rows, reshaped_constants])
def test_what_goes_back_may_be_read_in_two_shapes(function):
    constants, rows, by = problem()
    real = jnp.asarray(DRAW.permutation(N) < 12)

    def both(around, x):
        answers = []
        for work in (of_real_rows, of_all):
            told = lambda around, x, work=work: work(function, {"around": around}, {"x": x}, real)  # noqa: E731
            results, pull_back = jax.vjp(told, around, x)
            answers.append((results, pull_back(by)))
        return answers

    close(*quick(both)(constants["around"], rows["x"]))


def test_what_the_last_parts_alone_keep_is_kept_for_them_alone():
    def function(_, rows):
        if len(rows) == SIZES[0]:
            return jnp.tanh(rows)
        return jnp.tanh(rows[:, :, None] * jnp.arange(11.0)[None, None]).sum(2)

    _, pull_back = jax.vjp(lambda x: of_real_rows(function, None, x, jnp.ones(N, bool)), jnp.ones((N, D)))
    assert {leaf.shape for leaf in jax.tree.leaves(pull_back) if leaf.ndim > 3} == {(3, SIZES[1], D, 11)}

"""Products of the real rows equal those of all rows, in value and gradient, and are smaller."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional import rows
from attention_zoo.functional.recurrent import RecurrentWeights, gru, lstm
from attention_zoo.functional.rows import real_rows_matmul
from attention_zoo.modules import RecurrentEncoder
from tests.quick import quick

N, I, O = 19, 5, 3  # noqa: E741 - rows, and the widths of the input and the output
DRAW = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """Small products too are of real rows alone, and of nearly as few as there are."""
    monkeypatch.setattr(rows, "LEAST", 0)
    monkeypatch.setattr(rows, "MULTIPLE", 1)


def problem(dtype="float64"):
    return (jnp.asarray(DRAW.normal(size=shape), dtype) for shape in ((N, I), (I, O), (N, O)))


def pulled(product, x, kernel, real, by):
    """The results that are read, zeros elsewhere, and the gradients by x and the kernel."""
    results, pull_back = jax.vjp(lambda x, kernel: jnp.where(real[:, None], product(x, kernel, real), 0), x, kernel)
    return results, pull_back(by)


def of_all(x, kernel, real):
    return x @ kernel


def dots(function, *arguments):
    """The rows of every product in a program, those in its branches among them, and whether it branches."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append(equation.invars[0].aval.shape)
            branches.append(equation.primitive.name == "cond")
            for inner in jax.tree.leaves(list(equation.params.values())):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    walk(getattr(inner, "jaxpr", inner))

    found, branches = [], []
    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found, any(branches)


@pytest.mark.usefixtures("float64")
def test_equals_the_product_of_all_rows_for_every_number_of_real_ones():
    x, kernel, by = problem()
    found, expected = (quick(lambda *a, product=product: pulled(product, *a)) for product in (real_rows_matmul, of_all))
    for count in range(N + 1):
        real = jnp.asarray(DRAW.permutation(N) < count)
        some, whole = (work(x, kernel, real, by) for work in (found, expected))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), some, whole)


@pytest.mark.usefixtures("float64")
def test_gradients_by_finite_differences():
    x, kernel, _ = problem()
    real = jnp.asarray(DRAW.permutation(N) < 11)

    @jax.jit
    def read(x, kernel):
        return jnp.where(real[:, None], jnp.sin(real_rows_matmul(x, kernel, real)), 0)

    check_grads(read, (x, kernel), order=1, modes=["rev"])


def test_value_and_both_gradients_leave_rows_out():
    (x, kernel, by), real = problem("float32"), jnp.arange(N) < 7
    taken = dots(lambda x, kernel: pulled(real_rows_matmul, x, kernel, real, by), x, kernel)[0]
    assert {(5, I), (5, O), (I, 5)} < set(taken)


@pytest.mark.parametrize(("many", "width"), [(0, 2 * I), (N + 1, 2 * I + 1)])  # each is traced once
def test_the_gradient_of_a_widening_kernel_sums_over_no_rows_of_its_left_side(monkeypatch, many, width):
    """Those products are XLA:CPU's slower ones; of few rows they stay."""
    x, real = jnp.sin(jnp.arange(N * I, dtype=jnp.float32)).reshape(N, I), jnp.arange(N) < 7
    kernel, by = jnp.ones((I, width)), jnp.where(real[:, None], jnp.ones((N, width)), 0)
    monkeypatch.setattr(rows, "MANY", many)
    work = jax.jit(lambda x, kernel: pulled(real_rows_matmul, x, kernel, real, by)[1][1])
    assert ("lhs_contracting_dims={0}" in work.lower(x, kernel).compile().as_text()) == (many > N)
    np.testing.assert_allclose(work(x, kernel), x.T @ by, rtol=1e-5, atol=1e-6)


def test_going_back_in_a_loop_leaves_rows_out():
    (_, kernel, by), real = problem("float32"), jnp.arange(N) < 7
    by = jnp.where(real[:, None], by, 0)
    np.testing.assert_allclose(rows.transposed_matmul(by, kernel, real), by @ kernel.T, rtol=1e-6)
    assert (5, O) in dots(rows.transposed_matmul, by, kernel, real)[0]
    assert dots(rows.transposed_matmul, by, kernel) == ([(N, O)], False)


def test_a_large_kernel_is_read_as_it_lies_going_back(monkeypatch):
    (_, kernel, by), real = problem("float32"), jnp.arange(N) < 7
    by = jnp.where(real[:, None], by, 0)
    monkeypatch.setattr(rows, "WIDE", kernel.size)
    for others in ((), (real,)):
        np.testing.assert_allclose(rows.transposed_matmul(by, kernel, *others), by @ kernel.T, rtol=1e-6)
        assert set(dots(lambda *a: rows.transposed_matmul(*a), by, kernel, *others)[0]) == {(I, O)}
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert dots(lambda *a: rows.transposed_matmul(*a), by, kernel, real) == ([(N, O)], False)


@pytest.mark.usefixtures("float64")
def test_garbage_in_other_rows_changes_nothing():
    x, kernel, by = problem()
    real = jnp.asarray(DRAW.permutation(N) < 11)
    work = quick(lambda x: pulled(real_rows_matmul, x, kernel, real, by))
    clean, garbled = (work(jnp.where(real[:, None], x, fill)) for fill in (0.0, 1e300))
    jax.tree.map(np.testing.assert_array_equal, garbled, clean)


@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")])
def test_gradients_have_the_dtype_of_what_they_are_of(dtypes):
    (x, kernel, by), real = problem("float32"), jnp.arange(N) < 7
    x, kernel = x.astype(dtypes[0]), kernel.astype(dtypes[1])
    by = by.astype(jnp.result_type(x, kernel))
    some, whole = (pulled(product, x, kernel, real, by) for product in (real_rows_matmul, of_all))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2), some, whole)
    assert [leaf.dtype for leaf in jax.tree.leaves(some)] == [leaf.dtype for leaf in jax.tree.leaves(whole)]


def test_a_product_takes_as_many_rows_as_are_needed_and_few_more():
    sizes = rows._sizes(1600)
    assert sizes == [400, 800, 1000, 1100, 1200, 1300, 1400, 1500, 1600]
    for count, size in ((0, 400), (399, 400), (400, 800), (1201, 1300), (1599, 1600), (1600, 1600)):
        assert sizes[int(rows._pack(jnp.arange(1600) >= 1600 - count).choice)] == size


def test_small_products_are_in_multiples_of_eight(monkeypatch):
    monkeypatch.setattr(rows, "MULTIPLE", 8)
    assert [rows._sizes(n) for n in (3, 8, 17, 64)] == [[3], [8], [8, 16, 17], [16, 32, 40, 48, 56, 64]]


@pytest.mark.usefixtures("float64")
def test_vmap_over_the_rows_takes_one_branch_for_all_examples():
    x, kernel, by = problem()
    real = jnp.asarray([DRAW.permutation(N) < count for count in (0, 7, 13)])
    many = jax.vmap(lambda *arguments: pulled(real_rows_matmul, *arguments), (None, None, 0, None))
    expected = jax.vmap(lambda *arguments: pulled(of_all, *arguments), (None, None, 0, None))
    arguments = x, kernel, real, by
    found = quick(many)(*arguments), quick(expected)(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), *found)
    # A switch whose choice was mapped would be a choice among the results of all its branches.
    _, branches = dots(many, *arguments)
    assert branches


@pytest.mark.parametrize(("setting", "value"), [("LEAST", N * I * O + 1), ("MULTIPLE", N)])
def test_a_small_product_takes_all_rows(monkeypatch, setting, value):
    x, kernel, _ = problem("float32")
    real = jnp.arange(N) < 7
    few, branches = dots(lambda *a: real_rows_matmul(*a, real), x, kernel)
    assert branches and {(5, I), (N, I)} < set(few)
    monkeypatch.setattr(rows, setting, value)
    jax.clear_caches()
    assert dots(lambda *a: real_rows_matmul(*a, real), x, kernel) == ([(N, I)], False)


def test_no_examples_and_rows_of_a_number_that_only_a_name_stands_for():
    x, kernel, by = problem("float32")
    none = jax.vmap(lambda real: pulled(real_rows_matmul, x, kernel, real, by), 0)(jnp.zeros((0, N), bool))
    assert none[0].shape == (0, N, O)
    (n,) = jax.export.symbolic_shape("n")
    shapes = jax.ShapeDtypeStruct((n, I), x.dtype), kernel, jax.ShapeDtypeStruct((n,), bool)
    exported = jax.export.export(jax.jit(real_rows_matmul))(*shapes)
    np.testing.assert_allclose(exported.call(x, kernel, jnp.ones(N, bool)), x @ kernel, rtol=1e-6)


def test_an_encoder_and_its_gradient_are_exported_for_any_batch():
    encoder, inputs, lengths = RecurrentEncoder(2), np.float32(DRAW.normal(size=(7, 5, 3))), jnp.arange(7) % 6
    variables = jax.jit(encoder.init)(jax.random.key(0), inputs, lengths)
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.ShapeDtypeStruct((batch, 5, 3), "float32"), jax.ShapeDtypeStruct((batch,), "int32")

    @jax.jit
    def read(inputs, lengths):
        run = lambda variables, inputs: encoder.apply(variables, inputs, lengths)[0]  # noqa: E731
        annotations, pull_back = jax.vjp(run, variables, inputs)
        return annotations, pull_back(annotations)

    found = jax.export.export(read)(*shapes).call(inputs, lengths)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, read(inputs, lengths))


def test_all_rows_are_taken_on_several_devices_and_off_the_cpu(monkeypatch):
    x, kernel, _ = problem("float32")
    for name, value in (("device_count", 2), ("default_backend", "gpu")):
        with monkeypatch.context() as patch:
            patch.setattr(jax, name, lambda value=value: value)
            assert dots(lambda *a: real_rows_matmul(*a, jnp.arange(N) < 7), x, kernel) == ([(N, I)], False)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru", "gru_reset_before"])
def test_a_recurrent_layer_is_the_same(monkeypatch, kind, reverse):
    batch, steps, width, units = 7, 5, 3, 2
    layer = {"lstm": lstm, "gru": gru, "gru_reset_before": lambda *a, **k: gru(*a, reset_after=False, **k)}[kind]
    gates = units * (4 if kind == "lstm" else 3)
    shapes = (width, gates), (units, gates), (gates,), (gates,)
    inputs, weights = (
        DRAW.normal(size=(batch, steps, width)),
        RecurrentWeights(*map(DRAW.normal, map(np.zeros, shapes))),
    )
    lengths = jnp.array([0, 5, 3, 1, 2, 5, 1])
    by = DRAW.normal(size=(batch, steps, units))

    def loss(inputs, weights):
        outputs, state = layer(inputs, weights, lengths=lengths, reverse=reverse)
        return jnp.sum(outputs * by) + jnp.sum(state.hidden**2)

    def bent(inputs, weights, along):
        """The Hessian times a vector, forward over reverse."""
        return jax.jvp(lambda weights: jax.grad(loss, 1)(inputs, weights), (weights,), (along,))[1]

    if reverse:
        monkeypatch.setattr(rows, "WIDE", 0)
    # A step forth reads h [B, D], and one back the gradient of what that gave: two products where one resets before.
    given = {gates} if kind != "gru_reset_before" else {2 * units, units}
    back = [(units, width) if reverse else (2, width) for width in given]  # a kernel, or the rows
    assert {(2, units), *back} < set(dots(jax.grad(loss), inputs, weights)[0])
    along = jax.tree.map(jnp.ones_like, weights)
    some = quick(jax.value_and_grad(loss, (0, 1)))(inputs, weights), quick(bent)(inputs, weights, along)
    with monkeypatch.context() as patch:
        patch.setattr(rows, "LEAST", 10**9)
        patch.setattr(rows, "WIDE", 10**9)
        whole = (
            quick(jax.value_and_grad(lambda *a: loss(*a), (0, 1)))(inputs, weights),
            quick(lambda *a: bent(*a))(inputs, weights, along),
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), some, whole)

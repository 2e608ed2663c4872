"""What a traced function is known to read, to depend on and to give twice."""

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.functional.programs import trace

ROWS = jax.ShapeDtypeStruct((2, 3), jnp.float32)


def test_it_runs_like_the_function_on_trees():
    program = trace(lambda one, other: {"sum": one["a"] + other, "first": one["a"]}, {"a": ROWS}, ROWS)
    one, other = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    results = program.run({"a": one}, other)
    np.testing.assert_array_equal(results["sum"], one + other)
    np.testing.assert_array_equal(results["first"], one)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (program.arguments, program.results)) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), (({"a": ROWS}, ROWS), {"sum": ROWS, "first": ROWS})
    )


def test_what_no_result_depends_on_is_not_read():
    def function(used, computed_with, given_back, unused):
        jnp.sin(computed_with)  # in the program, and for nothing
        return jnp.tanh(used), given_back

    assert trace(function, ROWS, ROWS, ROWS, ROWS).reads == (True, False, True, False)


def test_what_is_printed_is_read():
    def function(used, printed):
        jax.debug.print("{}", jnp.sin(printed))
        return used

    assert trace(function, ROWS, ROWS).reads == (True, True)


def test_results_of_one_name_are_the_same_numbers():
    def function(x, y):
        total = x + y
        return (
            x.reshape(3, 2),
            x[:, None],
            total,
            total.reshape(6),
            total.T,
            jnp.ravel(total, order="F"),
            x + y,
            jnp.reshape(2.0, 1),
            jnp.broadcast_to(x, (2, *x.shape)),
        )

    program = trace(function, ROWS, ROWS)
    (x, _), (reshaped, widened, total, flat, *others) = program.given, program.got
    assert reshaped == widened == x and flat == total
    assert len({x, total, *others}) == 7  # in another order; computed twice; a number; more numbers


def test_results_need_what_they_are_computed_from():
    def function(x, y, z):
        hidden = jnp.where(x > 0, y, 0)
        return hidden, jnp.cos(z), x, jnp.zeros(2)

    program = trace(function, ROWS, ROWS, ROWS)
    x, y, z = program.given
    assert program.needs == (frozenset({x, y}), frozenset({z}), frozenset({x}), frozenset())

"""Functions as the programs that they are traced to: what depends on what, and which arrays are the same."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal, jaxpr_as_fun

SAME = ("reshape", "squeeze")  # their result has the numbers of their argument, in the same order


class Program(NamedTuple):
    """A traced function.

    run: the function. arguments, results: what they look like. given, got: a name for each array of the arguments, and
    of the results; those of one name hold the same numbers in the same order. needs: of each array of the results, the
    names of the arguments that it depends on. reads: of each array of the arguments, whether a result depends on it.
    """

    run: Callable[..., Any]
    arguments: Any
    results: Any
    given: Any
    got: Any
    needs: Any
    reads: Any


def trace(function: Callable[..., Any], *arguments: Any) -> Program:
    """The program of a function for arguments like these: arrays, or their shapes."""
    closed, results = jax.make_jaxpr(function, return_shape=True)(*arguments)
    flat = jaxpr_as_fun(closed)
    told, gives = (partial(jax.tree.unflatten, jax.tree.structure(tree)) for tree in (arguments, results))

    def run(*arguments: Any) -> Any:
        return gives(flat(*jax.tree.leaves(arguments)))

    given = list(map(id, closed.jaxpr.invars))
    names, needs = {name: name for name in given}, {name: frozenset([name]) for name in given}
    for equation in closed.eqns:
        read = [id(variable) for variable in equation.invars if not isinstance(variable, Literal)]
        needed = frozenset().union(*(needs.get(variable, ()) for variable in read))
        for variable in map(id, equation.outvars):
            needs[variable] = needed
            names[variable] = names.get(read[0], read[0]) if equation.primitive.name in SAME else variable
    got = list(map(id, closed.jaxpr.outvars))
    needed_by = [needs.get(variable, frozenset()) for variable in got]
    return Program(
        run,
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments),
        results,
        told(given),
        gives([names.get(variable, variable) for variable in got]),
        gives(needed_by),
        told([name in frozenset().union(*needed_by) for name in given]),
    )

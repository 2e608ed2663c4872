"""Functions as the programs that they are traced to: what depends on what, and which arrays are the same."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxpr_as_fun

from attention_zoo.functional.arrays import like


class Program(NamedTuple):
    """A traced function, and trees like its arguments or its results.

    run: the function.
    arguments, results: what they look like.
    given, got: a name for each array; those of one name hold the same numbers in the same order. Names are good for as
        long as `run` is kept.
    needs: the names of the arguments that each result depends on.
    reads: whether any result depends on an argument, or anything that is done beside (a print).
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
    names, needs, read = {name: name for name in given}, {name: frozenset([name]) for name in given}, set[int]()
    for equation in closed.eqns:
        needed = frozenset().union(*(needs.get(id(variable), ()) for variable in equation.invars))
        needs |= {id(variable): needed for variable in equation.outvars}
        if equation.effects:
            read |= needed
        if _keeps_order(equation):
            source, result = equation.invars[0], equation.outvars[0]
            names[id(result)] = names.get(id(source), id(source))
    got = list(map(id, closed.jaxpr.outvars))
    needed_by = [needs.get(variable, frozenset()) for variable in got]
    read |= frozenset().union(*needed_by)
    return Program(
        run,
        jax.tree.map(lambda leaf: like(leaf, leaf.shape), arguments),
        results,
        told(given),
        gives([names.get(variable, variable) for variable in got]),
        gives(needed_by),
        told([name in read for name in given]),
    )


def _keeps_order(equation: Any) -> bool:
    """Whether its result is its argument in another shape, the numbers in the same order."""
    name = equation.primitive.name
    if name == "broadcast_in_dim":  # of an array of the same size it has axes of 1 more
        return bool(equation.invars[0].aval.size == equation.outvars[0].aval.size)
    return name == "squeeze" or (name == "reshape" and equation.params["dimensions"] is None)

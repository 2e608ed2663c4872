"""A `lax.scan` that forms the gradients of its weights after the loop, in one product each.

The gradient of a scan adds to the gradient of every weight in every step: for a recurrent layer that is a thin
product and a read and write of the whole matrix, T times. But a step's share of `y_t = op(x_t, W)` needs only x_t
and dy_t, so those are collected, and one `op` over all steps gives the sum.

For its gradient the scan keeps what each step began with and what its products gave, as far as going back reads it,
and computes the rest of a step once more. Gradients are written where that was read. JAX's own scan collects results
in arrays of zeros, which XLA shares among loops and copies for each, long before it needs them (docs/DESIGN.md, what
prototypes measured).
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from attention_zoo.functional.arrays import (
    as_array,
    collect,
    combine,
    differentiable,
    later,
    partition,
    stacked,
    stays_apart,
    thinned,
    unstacked,
    varying,
    weak,
    zeros_after,
)
from attention_zoo.functional.products import Tape, Use, taping
from attention_zoo.functional.programs import Program, trace

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def scan(step: Step, constants: Any, carry: Any, xs: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """`lax.scan` of `step(constants, carry, x) -> (carry, y)`, equal in value and gradient.

    Gradients of constants used through `product` are formed after the loop; other uses are differentiated as
    always. Its gradient computes each step once more, but for the products, and with zeros in place of what no result
    of that depends on. Reverse mode only (`jax.grad`, `jax.vjp`), as with any `jax.custom_vjp`.

    Args:
        step: a pure function that closes over no traced array.
        constants: what every step reads: a pytree of weights and of the sequence's own arrays.
        carry, xs, reverse: as in `jax.lax.scan`.
    """
    constants, carry, xs = varying(*jax.tree.map(as_array, (constants, carry, xs)))
    if any(map(weak, jax.tree.leaves(carry))):  # numbers of Python take the dtype that a step gives them
        after, _ = jax.eval_shape(_one(step), constants, carry, jax.tree.map(unstacked, xs))
        carry = jax.tree.map(lambda leaf, new: leaf.astype(new.dtype) if weak(leaf) else leaf, carry, after)
    run = jax.custom_vjp(partial(_plain, step, reverse))
    run.defvjp(partial(_forward, step, reverse), lambda pull_back, gradients: pull_back(gradients))
    return run(constants, carry, xs)


def _plain(step: Step, reverse: bool, constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    return jax.lax.scan(partial(_one(step), constants), carry, xs, reverse=reverse)


def _one(step: Step) -> Step:
    """The step outside of a tape, which may be that of a loop around this one."""

    def run(constants: Any, carry: Any, x: Any) -> tuple[Any, Any]:
        with taping(None):
            return step(constants, carry, x)

    return run


def _forward(step: Step, reverse: bool, constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    length = len(jax.tree.leaves(xs)[0])
    if not length:
        return jax.vjp(partial(_plain, step, reverse), constants, carry, xs)
    uses: list[Use] = []
    x = jax.tree.map(unstacked, xs)
    forth = trace(partial(_taped, step, uses), constants, constants, carry, x)
    after, y, outputs = forth.results
    back = trace(partial(_back, step), constants, carry, x, outputs, partition(after)[0], partition(y)[0])
    # Random keys and integers are small, and no zeros can stand for a key.
    known = jax.tree.map(lambda leaf, read: read or not differentiable(leaf), back.arguments, back.reads)
    _, known_before, known_x, known_outputs, *_ = known
    read, structure = jax.tree.flatten(xs)

    def collected(before: Any, y: Any, outputs: Any) -> tuple[Any, Any]:
        return partition((thinned(before, known_before), y, thinned(outputs, known_outputs)))

    given, _ = collected(carry, y, outputs)
    (*_, before_names, x_names), (_, *names), (*_, needs) = forth.given, forth.got, forth.needs
    once = _once(given, (before_names, *names))

    def body(before: Any, now: list[jax.Array]) -> Any:
        after, y, outputs = forth.run(constants, constants, before, jax.tree.unflatten(structure, now))
        arrays, rest = collected(before, y, outputs)
        return after, (once.of(jax.tree.leaves(arrays)), rest)

    # Products may be written over what going back does not need; what the step also gives has an array of its own.
    places = enumerate(zip(jax.tree.leaves(x_names), jax.tree.leaves(known_x), strict=True))
    done = [(place, name) for place, (name, kept) in places if not kept and stays_apart()]
    over: list[list[int]] = [[] for _ in jax.tree.leaves(given[:2])]
    for needed in jax.tree.leaves(thinned(needs, known_outputs)):
        over.append([place for place, name in done if name in needed])
    likes = stacked(length, once.of(jax.tree.leaves(given)))
    final, arrays, rest = collect(body, carry, length, read, likes, once.of(over), reverse=reverse)
    befores, ys, products = combine(once.all(arrays, length), rest)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    pull_back = partial(_backward, length, reverse, tuple(uses), forth.reads[0], back, precision)
    return (final, ys), Partial(pull_back, constants, (befores, thinned(xs, known_x), products))


class _Once(NamedTuple):
    """A tree in which some leaves hold the numbers of others: likes, what its leaves look like, and for each the place
    of the first one of its numbers."""

    structure: Any
    likes: list[Any]
    firsts: list[int]

    def of(self, leaves: Sequence[Any]) -> list[Any]:
        """Of leaves of the same numbers, the first."""
        return [leaf for place, leaf in enumerate(leaves) if self.firsts[place] == place]

    def all(self, arrays: Sequence[jax.Array], length: int) -> Any:
        """The tree, of these leaves, stacked."""
        held = dict(zip(dict.fromkeys(self.firsts), arrays, strict=True))
        pairs = zip(self.firsts, self.likes, strict=True)
        return jax.tree.unflatten(self.structure, [held[first].reshape(length, *like.shape) for first, like in pairs])


def _once(tree: Any, names: Any) -> _Once:
    """Of a tree and the names (of a `Program`) of its leaves, and of what stands where it has None."""
    likes, structure = jax.tree.flatten(tree)
    absent = lambda leaf: leaf is None  # noqa: E731
    told = jax.tree.leaves(jax.tree.map(lambda leaf, name: None if absent(leaf) else name, tree, names, is_leaf=absent))
    return _Once(structure, likes, [told.index(name) for name in told])


def _taped(step: Step, uses: list[Use], direct: Any, constants: Any, carry: Any, x: Any) -> Any:
    carry, y, tape = _run(step, direct, constants, carry, x)
    uses.extend(tape.uses)
    return carry, y, tape.outputs


def _run(
    step: Step, direct: Any, constants: Any, carry: Any, x: Any, recalled: Sequence[jax.Array] | None = None
) -> tuple[Any, Any, Tape]:
    """One step with a tape on: its products read `constants`, and all else of it reads `direct`, which is the same."""
    leaves = {id(leaf): n for n, leaf in enumerate(jax.tree.leaves(direct)) if differentiable(leaf)}
    tape = Tape(leaves, jax.tree.leaves(constants), [], [], [], recalled)
    with taping(tape):
        carry, y = jax.tree.map(as_array, step(direct, carry, x))
    return carry, y, tape


def _recall(step: Step, direct: Any, constants: Any, carry: Any, x: Any, outputs: list[jax.Array]) -> Any:
    """One step again, its products known: its results, and what the products read."""
    carry, y, tape = _run(step, direct, constants, carry, x, outputs)
    assert len(tape.outputs) == len(outputs)  # a step is pure
    return carry, y, tape.inputs


def _back(step: Step, constants: Any, carry: Any, x: Any, outputs: list[jax.Array], d_carry: Any, d_y: Any) -> Any:
    """The gradient of a step by its constants, by its carry, and by its x and products, with what the products read."""
    (some, others), (carry, carry_rest), (x, x_rest) = map(partition, (constants, carry, x))

    def recalled(some: Any, carry: Any, x: Any, outputs: list[jax.Array]) -> Any:
        told = combine(some, others), constants, combine(carry, carry_rest), combine(x, x_rest), outputs
        after, y, inputs = _recall(step, *told)
        return (partition(after)[0], partition(y)[0]), inputs

    _, pull_back, inputs = jax.vjp(recalled, some, carry, x, outputs, has_aux=True)
    d_some, d_carry, d_x, d_outputs = pull_back((d_carry, d_y))
    return d_some, d_carry, (d_x, d_outputs, inputs)


def _backward(
    length: int, reverse: bool, uses: tuple[Use, ...], read: Any, back: Program, precision: Any, *kept: Any
) -> tuple[Any, Any, Any]:
    with jax.default_matmul_precision(precision):  # as going forward
        return _gradients(length, reverse, uses, read, back, *kept)


def _gradients(
    length: int, reverse: bool, uses: tuple[Use, ...], read: Any, back: Program, constants: Any, kept: Any, by: Any
) -> tuple[Any, Any, Any]:
    leaves, structure = jax.tree.flatten(constants)
    summed = [used and differentiable(leaf) for used, leaf in zip(jax.tree.leaves(read), leaves, strict=True)]
    summed_only = [keep for keep, leaf in zip(summed, leaves, strict=True) if differentiable(leaf)]
    (d_after, _), (d_ys, _) = map(partition, by)
    _, *likes, _, _ = back.arguments
    _, *told_names, _, d_y_names = back.given
    (*_, results), (*_, names), (*_, needs) = back.results, back.got, back.needs
    (likes, tell), (results, gives), (steps, d_y_tree) = map(jax.tree.flatten, (likes, results, d_ys))
    names, needs = map(jax.tree.leaves, (names, needs))
    told = _up_to(tell, list(kept))  # None for what going back does not read
    # What is known before the loop, by name. Whatever else going back gives is collected, each array once.
    named = zip(jax.tree.leaves((told_names, d_y_names)), (*told, *steps), strict=True)
    known = {name: array for name, array in named if array is not None}
    new = {name: place for place, name in enumerate(names) if name not in known}

    # What the loop makes of weights before its first step, such as transposes, waits for the gradients.
    weights = later({use.leaf: leaves[use.leaf] for use in uses}, by)
    waiting = jax.tree.unflatten(structure, [weights.get(number, leaf) for number, leaf in enumerate(leaves)])

    def body(loop: Any, now: list[jax.Array]) -> Any:
        (d_carry, sums), rest = loop, iter(now)
        # Zeros that no result depends on.
        before = [
            jnp.zeros_like(like) if array is None else next(rest) for like, array in zip(likes, told, strict=True)
        ]
        d_y = jax.tree.unflatten(d_y_tree, rest)
        d_some, d_before, gradients = back.run(waiting, *jax.tree.unflatten(tell, before), d_carry, d_y)
        shares = itertools.compress(jax.tree.leaves(d_some), summed_only)
        found = jax.tree.leaves(gradients)
        return (d_before, list(map(jnp.add, sums, shares))), ([found[place] for place in new.values()], None)

    start = d_after, [zeros_after(leaf.shape, leaf.dtype, by) for leaf in itertools.compress(leaves, summed)]
    given = stacked(length, [results[place] for place in new.values()])
    done = [(place, name) for place, name in enumerate(known) if name not in names]
    over = [[place for place, name in done if name in needs[result]] for result in new.values()]
    (d_carry, sums), found, _ = collect(body, start, length, list(known.values()), given, over, reverse=not reverse)
    known |= dict(zip(new, found, strict=True))
    d_xs, d_outputs, inputs = jax.tree.unflatten(
        gives, [known[name].reshape(length, *like.shape) for name, like in zip(names, results, strict=True)]
    )
    rest = iter(sums)
    d_leaves: list[Any] = [next(rest) if keep else None for keep in summed]
    for use, x, d_y in zip(uses, inputs, d_outputs, strict=True):
        share = _share(use, leaves[use.leaf], x, d_y)
        d_leaves[use.leaf] = share if d_leaves[use.leaf] is None else d_leaves[use.leaf] + share
    return jax.tree.unflatten(structure, d_leaves), d_carry, d_xs


def _share(use: Use, constant: jax.Array, read: tuple[jax.Array, ...], d_y: jax.Array) -> jax.Array:
    """The gradient of a constant by one product in all steps, from what that read and the gradient of what it gave."""
    x, *others = map(use.join, read)
    _, pull_back = jax.vjp(lambda constant: use.operation(x, constant, *others), constant)
    (share,) = pull_back(use.join(d_y))
    return share


def _up_to(structure: Any, tree: Any) -> list[Any]:
    """The parts of a tree where another has its leaves: of JAX's type of structures, this method is not declared."""
    return list(structure.flatten_up_to(tree))

"""Additive scores by Pallas kernels for NVIDIA's GPUs: of the [T, S, D] tensor there is a block in registers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

# Up to here the product of two 1 + e^2(q + k) is a normal float32 number.
MODERATE = 10.8
FEWEST = 8  # rows of a block: with less, a thread reads more than it computes


class Arithmetic(NamedTuple):
    """1 / x, and x y + z: for each the GPU has an instruction that XLA does not make of JAX's operations."""

    inverse: Callable[[jax.Array], jax.Array]
    fused: Callable[[Any, Any, Any], jax.Array]


class Block(NamedTuple):
    """What one program works on: rows, columns, terms of the sum in one step of its loop; and its warps."""

    rows: int
    columns: int
    terms: int
    warps: int


class Layout(NamedTuple):
    """How an array [B, rows, columns] of sums of so many terms is computed.

    grid: of blocks: examples, rows, columns; and the parts in which each sum is cut.
    terms: in one part, a multiple of those in one step.
    """

    block: Block
    grid: tuple[int, int, int, int]
    terms: int


class Plan(NamedTuple):
    """The blocks of the scores [T, S], and of the gradients of queries and keys, [T, D] and [S, D].

    programs: how many there should be at least, so that a GPU has others to run while one waits for its inputs. Where
        there are fewer blocks they get less rows, and then several programs share the sums of one.
    interpret: by operations of JAX that every backend has, slowly: for tests.
    """

    scores: Block = Block(16, 64, 8, 2)
    slopes: Block = Block(16, 64, 8, 4)  # fewer columns than threads, or Triton exchanges each row of the sum
    programs: int = 1024
    interpret: bool = False

    def layout(self, block: Block, shape: tuple[int, ...], terms: int) -> Layout:
        """Of an array [B, rows, columns], with blocks that may be smaller."""
        batch, *sizes = shape
        high, wide = (pl.next_power_of_2(max(size, 1)) for size in sizes)
        block = block._replace(rows=min(block.rows, high), columns=min(block.columns, wide))
        blocks = lambda rows: batch * -(-sizes[0] // rows) * -(-sizes[1] // block.columns)  # noqa: E731
        while block.rows > FEWEST and blocks(block.rows) < self.programs:
            block = block._replace(rows=block.rows // 2)
        steps = -(-terms // block.terms)
        each = -(-steps // max(1, self.programs // blocks(block.rows)))
        grid = batch, -(-sizes[0] // block.rows), -(-sizes[1] // block.columns), -(-steps // each)
        return Layout(block, grid, each * block.terms)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def additive_scores(
    plan: Plan, queries: jax.Array, keys: jax.Array, energy: jax.Array, moderate: jax.Array
) -> jax.Array:
    """`v^T tanh(q_t + k_s)` (Bahdanau 2014, A.1.2) in float32.

    Where an example is moderate, with the exponentials of q and k computed before: two terms are
    `v / (1 + e^2q e^2k) + w / (1 + e^2p e^2l)` over one denominator, so a hyperbolic tangent costs half a division.

    Args:
        plan: the blocks.
        queries, keys, energy: [B, T, D], [B, S, D] and [D], float32.
        moderate: [B]; all that matters of the example is below `MODERATE`, and some of it is not tiny.

    Returns:
        scores [B, T, S].
    """
    (batch, steps, width), source = queries.shape, keys.shape[1]
    block, grid, depth = plan.layout(plan.scores, (batch, steps, source), width)
    parts = grid[-1]
    rows, columns = (jnp.swapaxes(_exponentials(array, moderate), 1, 2) for array in (queries, keys))
    rows, columns = _filled(rows, parts * depth, block.rows), _filled(columns, parts * depth, block.columns)
    scores = _call(
        _scores_kernel,
        block,
        plan.interpret,
        grid,
        [
            pl.BlockSpec((1,), lambda b, i, j, n: (b,)),
            pl.BlockSpec((None, depth, block.rows), lambda b, i, j, n: (b, n, i)),
            pl.BlockSpec((None, depth, block.columns), lambda b, i, j, n: (b, n, j)),
            pl.BlockSpec((depth,), lambda b, i, j, n: (n,)),
        ],
        pl.BlockSpec((None, None, block.rows, block.columns), lambda b, i, j, n: (b, n, i, j)),
        jax.ShapeDtypeStruct((batch, parts, rows.shape[2], columns.shape[2]), jnp.float32),
    )(moderate, rows, columns, jnp.pad(energy, (0, parts * depth - width)))
    return scores.sum(1)[:, :steps, :source]


def _forward(plan: Plan, *arguments: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return additive_scores(plan, *arguments), arguments


def _backward(plan: Plan, arguments: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[Any, ...]:
    queries, keys, energy, moderate = arguments
    q, k = (_exponentials(array, moderate) for array in (queries, keys))
    (by_queries,) = _slopes(plan, moderate, q, k, jnp.swapaxes(gradient, 1, 2))
    by_keys, parts = _slopes(plan, moderate, k, q, gradient, hidden=True)
    # Where moderate, tanh is 1 - 2 r: here the first part, which is zero but for rounding where softmax follows.
    by_energy = parts.sum((0, 1, 2)) + jnp.where(moderate, gradient.sum((1, 2)), 0).sum()
    return by_queries * energy[None, None], by_keys * energy[None, None], by_energy, None


additive_scores.defvjp(_forward, _backward)


def _slopes(
    plan: Plan, moderate: jax.Array, own: jax.Array, other: jax.Array, weights: jax.Array, *, hidden: bool = False
) -> list[jax.Array]:
    """`sum_j w_ji (1 - h_ijd^2)`, [B, I, D], where `h = tanh(x_i + y_j)`; `hidden` adds parts of `sum_ij w_ji h_ijd`.

    Args:
        own, other: what `_exponentials` makes of x [B, I, D] and y [B, J, D].
        weights: [B, J, I].

    Returns:
        The first sum and, if asked for, the second in parts [B, parts, blocks, D].
    """
    batch, size, width = own.shape
    block, grid, depth = plan.layout(plan.slopes, own.shape, other.shape[1])
    parts = grid[-1]
    own, other = _filled(own, block.rows, block.columns), _filled(other, parts * depth, block.columns)
    weights = _filled(weights, parts * depth, block.rows)
    in_specs = [
        pl.BlockSpec((1,), lambda b, i, d, n: (b,)),
        pl.BlockSpec((None, block.rows, block.columns), lambda b, i, d, n: (b, i, d)),
        pl.BlockSpec((None, depth, block.columns), lambda b, i, d, n: (b, n, d)),
        pl.BlockSpec((None, depth, block.rows), lambda b, i, d, n: (b, n, i)),
    ]
    out_specs = [
        pl.BlockSpec((None, None, block.rows, block.columns), lambda b, i, d, n: (b, n, i, d)),
        pl.BlockSpec((None, None, None, block.columns), lambda b, i, d, n: (b, n, i, d)),
    ]
    shapes = (batch, parts, *own.shape[1:]), (batch, parts, grid[1], own.shape[2])
    out_shape = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    outputs = 1 + hidden
    call = _call(_slopes_kernel, block, plan.interpret, grid, in_specs, out_specs[:outputs], out_shape[:outputs])
    slopes, *rest = call(moderate, own, other, weights)
    return [slopes.sum(1)[:, :size, :width], *(part[..., :width] for part in rest)]


def _call(
    kernel: Callable[..., None], block: Block, interpret: bool, grid: tuple[int, ...], *specs: Any
) -> Callable[..., Any]:
    in_specs, out_specs, out_shape = specs
    return pl.pallas_call(
        partial(kernel, terms=block.terms, by=PLAIN if interpret else NATIVE),
        out_shape,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        compiler_params=triton.CompilerParams(num_warps=block.warps, num_stages=1),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )


def _scores_kernel(
    moderate: Any, queries: Any, keys: Any, energy: Any, scores: Any, *, terms: int, by: Arithmetic
) -> None:
    """One block [t, s], from queries [D, t], keys [D, s] and energy [D]."""
    depth, zeros = len(energy), jnp.zeros(scores.shape, jnp.float32)

    def at(d: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        return queries[d, :][:, None], keys[d, :][None, :], energy[d]

    def by_powers() -> jax.Array:
        def step(n: Any, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            total, whole = sums
            for (q, k, v), (p, m, w) in _pairs(at, n, terms):
                one, other = by.fused(q, k, 1.0), by.fused(p, m, 1.0)
                total = by.fused(by.fused(w, one, v * other), by.inverse(one * other), total)
                whole = whole + (v + w)
            return total, whole

        total, whole = jax.lax.fori_loop(0, depth // terms, step, (zeros, jnp.float32(0)))
        return whole - 2 * total

    def by_tanh() -> jax.Array:
        def step(d: Any, total: jax.Array) -> jax.Array:
            q, k, v = at(d)
            return by.fused(v, jnp.tanh(q + k), total)

        return jax.lax.fori_loop(0, depth, step, zeros)

    scores[...] = jax.lax.cond(moderate[0], by_powers, by_tanh)


def _slopes_kernel(
    moderate: Any, own: Any, other: Any, weights: Any, slopes: Any, hidden: Any = None, *, terms: int, by: Arithmetic
) -> None:
    """One block [i, d] of the slopes and one row [d] of the parts, from own [i, d], other [J, d], weights [J, i]."""
    x, zeros = own[...], jnp.zeros(own.shape, jnp.float32)
    minus = -x
    rest = [] if hidden is None else [zeros]

    def at(j: Any) -> tuple[jax.Array, jax.Array]:
        return other[j, :][None, :], weights[j, :][:, None]

    def added(sums: list[jax.Array], weight: jax.Array, factors: list[jax.Array]) -> list[jax.Array]:
        return [by.fused(weight, factor, total) for factor, total in zip(factors, sums, strict=False)]

    def by_powers() -> list[jax.Array]:
        def step(n: Any, sums: list[jax.Array]) -> list[jax.Array]:
            for (y, v), (z, w) in _pairs(at, n, terms):
                one, two = by.fused(minus, y, -1.0), by.fused(minus, z, -1.0)
                both = by.inverse(one * two)
                for r, weight in ((two * both, v), (one * both, w)):  # -1 / (1 + xy): a fused r r + r needs no sign
                    sums = added(sums, weight, [by.fused(r, r, r), r])
            return sums

        total, *seen = jax.lax.fori_loop(0, other.shape[0] // terms, step, [zeros, *rest])
        return [-4 * total, *(2 * part for part in seen)]

    def by_tanh() -> list[jax.Array]:
        def step(j: Any, sums: list[jax.Array]) -> list[jax.Array]:
            y, weight = at(j)
            h = jnp.tanh(x + y)
            return added(sums, weight, [1 - h * h, h])

        return jax.lax.fori_loop(0, other.shape[0], step, [zeros, *rest])

    slopes[...], *seen = jax.lax.cond(moderate[0], by_powers, by_tanh)
    if seen:
        hidden[...] = seen[0].sum(0)


def _pairs(at: Callable[[Any], Any], step: Any, terms: int) -> list[tuple[Any, Any]]:
    """What a step of a loop works on, two by two: all is read before the first is used."""
    read = [at(step * terms + m) for m in range(terms)]
    return list(zip(read[::2], read[1::2], strict=True))


def _instruction(name: str, *arguments: Any) -> jax.Array:
    """One instruction of the GPU, on arguments that are broadcast against one another."""
    shape = jnp.broadcast_shapes(*(jnp.shape(argument) for argument in arguments))
    wide = [jnp.broadcast_to(jnp.asarray(argument, jnp.float32), shape) for argument in arguments]
    registers = ", ".join(f"${number}" for number in range(1 + len(wide)))
    (result,) = triton.elementwise_inline_asm(
        f"{name} {registers};",
        args=wide,
        constraints=",".join(["=f", *"f" * len(wide)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return result


# The inverse is exact to the last place but one; the division that JAX gives to Triton is several instructions.
NATIVE = Arithmetic(partial(_instruction, "rcp.approx.ftz.f32"), partial(_instruction, "fma.rn.f32"))
PLAIN = Arithmetic(lambda x: 1 / x, lambda x, y, z: x * y + z)


def _exponentials(inputs: jax.Array, moderate: jax.Array) -> jax.Array:
    """`e^2x` of the moderate examples, x of the others. What is clipped here is hidden by the mask."""
    return jnp.where(moderate[:, None, None], jnp.exp(2 * jnp.clip(inputs, -MODERATE, MODERATE)), inputs)


def _filled(array: jax.Array, rows: int, columns: int) -> jax.Array:
    """[B, ...] with zeros up to whole blocks."""
    ends = [(0, -size % block) for size, block in zip(array.shape[1:], (rows, columns), strict=True)]
    return jnp.pad(array, ((0, 0), *ends))

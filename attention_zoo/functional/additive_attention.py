"""Additive attention over whole sequences: the [..., T, S, D] tensor of the score never exists."""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.arrays import varying
from attention_zoo.functional.attend import read
from attention_zoo.functional.kernels import modern_gpu
from attention_zoo.functional.products import project
from attention_zoo.functional.scores import sum_of_slopes
from attention_zoo.notation import Array, Bool, Float, checked

IMPLEMENTATIONS = ("chunked", "pallas")
WHOLE = 2**28  # the most scores, or elements of queries or keys, that are worth being kept whole
INTERPRET = False  # the kernels on any backend, slowly: for tests
# Elements of the [chunk, S, D] block that one step works on: on a CPU, about what the cache of its cores holds.
BLOCK, CPU_BLOCK = 2**25, 2**18
# Up to LARGEST, e^2q and e^2k are normal float32 numbers. Their product is rounded as if q + k were near one, so where
# all are below SMALLEST the gradient of the energy would lose digits.
SMALLEST, LARGEST = 2.0**-4, 43.0


class _Plan(NamedTuple):
    """How many chunks an example's queries make; how many examples go at a time, None for one by one; the dropout."""

    chunks: int
    group: int | None
    dropout: float


class _Inputs(NamedTuple):
    """Of one example, or of all with an axis in front: [T, D], [S, D], [S, V], [1 or T, S] and dropout's key."""

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    mask: jax.Array | None
    random: jax.Array | None


@checked
def additive_attention(
    queries: Float[Array, "*b T D"],
    keys: Float[Array, "*b S D"],
    values: Float[Array, "*b S V"],
    energy: Float[Array, " D"],
    mask: Bool[Array, "*#b #T S"] | None = None,
    *,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    implementation: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*b T V"]:
    """Additive attention, `c_t = sum_s softmax_s(v^T tanh(W q_t + U k_s)) v_s` (Bahdanau 2014, eq. 5, 6 and A.1.2).

    Equal to `attend` with the additive score up to rounding, in value and gradient, without the [..., T, S, D] tensor.
    It returns no weights. Computed in float32 at least. Reverse mode only (`jax.grad`, `jax.vjp`).

    Args:
        queries: `W q_t`, [..., T, D].
        keys: `U k_s`, computed once per sequence, [..., S, D]; a bias is added to either of both.
        values: [..., S, V].
        energy: `v`, [D].
        mask: True = may attend; broadcasts against [..., T, S]. A row of nothing has a context of zeros.
        dropout: the share of the weights that are dropped, each on its own; the others grow by 1 / (1 - dropout).
        key: for dropout, one for all; what is dropped also depends on the implementation and the chunk.
        implementation: "chunked" takes a chunk of queries at a time, which the backward pass computes once more:
            memory grows with T and S, not with T S. "pallas" keeps the scores [..., T, S], in float32, which kernels
            for NVIDIA's GPUs compute (`additive_kernel.py`): first derivatives alone, not for `jax.export`, and under
            `jit` for several devices each computes all, unless `jax.shard_map(..., check_vma=False)` gives each its
            own examples. By default "pallas" where it can and JAX has one device. Products with float32 values are
            as exact as float32 there; those of "chunked" follow JAX's `default_matmul_precision`.
        chunk: queries at a time, for "chunked"; by default as many as suit the backend.

    Returns:
        context [..., T, V], in the dtype of `values`.

    Raises:
        ValueError: dropout lies outside [0, 1) or has no key; the chunk is below 1; or the implementation is none of
            these, or cannot honour the dtype, the size, the chunk or the device.
    """
    _check(dropout, key, chunk)
    *lead, steps, width = queries.shape
    source, examples = keys.shape[-2], math.prod(lead)
    size = examples * max(steps * source, steps * width, source * width)
    chosen = _choose(implementation, _refusal(chunk, jnp.result_type(queries, keys, values, energy), size))
    if 0 in (*lead, steps, source):
        return jnp.zeros((*lead, steps, values.shape[-1]), values.dtype)
    queries, keys, values = (jnp.asarray(a).reshape(examples, *a.shape[-2:]) for a in (queries, keys, values))
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*lead, *mask.shape[-2:])).reshape(examples, *mask.shape[-2:])
    if chosen == "pallas":
        context = _whole(_Inputs(queries, keys, values, mask, key if dropout else None), jnp.asarray(energy), dropout)
        return context.reshape(*lead, steps, -1).astype(values.dtype)
    on_cpu = jax.default_backend() == "cpu"
    room = max(1, (CPU_BLOCK if on_cpu else BLOCK) // max(1, source * width))  # pairs of an example and a query
    chunk = min(chunk or room, steps)
    moderate = _moderate(queries, keys, mask) if on_cpu else None
    random = jax.random.split(key, examples) if dropout and key is not None else None
    # Example by example where one fills the room: a batch_size of one would make XLA copy all arguments.
    group = min(room // chunk, examples) if room >= 2 * chunk else None
    plan = _Plan(-(-steps // chunk), group, dropout)
    inputs = varying(_Inputs(queries, keys, values, mask, random), jnp.asarray(energy), moderate)
    context = _attend(plan, *inputs)
    return context.reshape(*lead, steps, -1).astype(values.dtype)


def _check(dropout: float, key: jax.Array | None, chunk: int | None) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"additive_attention: dropout lies in [0, 1); got {dropout}")
    if dropout and key is None:
        raise ValueError(f"additive_attention: dropout draws from a key; got dropout {dropout} and no key")
    if chunk is not None and chunk < 1:
        raise ValueError(f"additive_attention: a chunk is at least 1 query; got {chunk}")


def _choose(implementation: str | None, refused: str | None) -> str:
    """The implementation that was asked for, or the default."""
    if implementation is None:
        return "chunked" if refused or jax.device_count() > 1 else "pallas"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"additive_attention: implementation is chunked or pallas; got {implementation!r}")
    if implementation == "pallas" and refused:
        raise ValueError(f"additive_attention: implementation 'pallas' wants {refused}")
    return implementation


def _refusal(chunk: int | None, dtype: Any, size: int) -> str | None:
    """What the kernels lack, as `wants ...; got ...`."""
    rules = (
        (chunk is None, f"no chunk; got {chunk}"),
        (jnp.finfo(dtype).bits <= 32, f"float32 or less; got {dtype}"),
        (size <= WHOLE, f"at most {WHOLE} scores, or elements of queries or keys; got {size}"),
        (INTERPRET or modern_gpu(), f"a GPU of NVIDIA's, Ampere or later; got {jax.devices()[0].device_kind}"),
    )
    return next((sentence for holds, sentence in rules if not holds), None)


def _whole(inputs: _Inputs, energy: jax.Array, dropout: float) -> jax.Array:
    """The contexts of all examples, [B, T, V], from their scores by the kernels."""
    from attention_zoo.functional import additive_kernel  # Pallas takes long to import, and CPUs have no use for it

    # On a GPU the default precision would round float32 weights and values to ten bits. Six products of their three
    # parts of eight bits each, on its matrix units, are as exact as float32's own.
    full = inputs.values.dtype == jnp.float32
    inputs, energy = _widened(inputs, energy)
    suits = partial(_moderate, largest=additive_kernel.MODERATE)
    moderate = jax.vmap(suits)(inputs.queries, inputs.keys, inputs.mask)
    plan = additive_kernel.Plan(interpret=INTERPRET)
    scores = additive_kernel.additive_scores(plan, inputs.queries, inputs.keys, energy, moderate)
    weights = _dropped(softmax(scores, inputs.mask), dropout, inputs.random)
    with jax.default_matmul_precision("BF16_BF16_F32_X6") if full else nullcontext():
        return read(weights, inputs.values)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, inputs: _Inputs, energy: jax.Array, moderate: jax.Array | None) -> jax.Array:
    """The contexts of all examples, [B, T, V], in float32 at least."""
    return jax.lax.map(partial(_example, plan, energy, moderate), inputs, batch_size=plan.group)


def _forward(plan: _Plan, *arguments: Any) -> tuple[jax.Array, Any]:
    return _attend(plan, *arguments), arguments


def _backward(plan: _Plan, arguments: Any, gradient: jax.Array) -> tuple[Any, ...]:
    inputs, energy, moderate = arguments
    one = partial(_example_backward, plan, energy, moderate)
    found = jax.lax.map(lambda example: one(*example), (inputs, gradient), batch_size=plan.group)
    q, k, v = (one.astype(array.dtype) for one, array in zip(found[:3], inputs[:3], strict=True))
    return _Inputs(q, k, v, None, None), found[3].sum(0).astype(energy.dtype), None


_attend.defvjp(_forward, _backward)


def _example(plan: _Plan, energy: jax.Array, moderate: jax.Array | None, inputs: _Inputs) -> jax.Array:
    """The context of one example, [T, V], a chunk of its queries after the other."""
    inputs, energy = _widened(inputs, energy)
    powers = _powers(inputs.keys)

    def step(chunk: tuple[Any, ...]) -> jax.Array:
        queries, rows, n = chunk
        scores = project(_tanh_of_sum(queries, inputs.keys, powers, moderate), energy[:, None])[..., 0]
        return _read(plan, inputs, rows, n, scores, inputs.values)

    context = jax.lax.map(step, _chunked(plan, inputs))
    return _joined(context, inputs)


def _example_backward(
    plan: _Plan, energy: jax.Array, moderate: jax.Array | None, inputs: _Inputs, gradient: jax.Array
) -> tuple[jax.Array, ...]:
    """The gradients of one example by queries, keys, values and energy: every chunk is computed once more."""
    inputs, energy = _widened(inputs, energy)
    powers = _powers(inputs.keys)

    def step(sums: Any, chunk: Any) -> Any:
        (queries, rows, n), gradient = chunk
        hidden = _tanh_of_sum(queries, inputs.keys, powers, moderate)
        scores = project(hidden, energy[:, None])[..., 0]
        _, pull_back = jax.vjp(partial(_read, plan, inputs, rows, n), scores, inputs.values)
        by_scores, by_values = pull_back(gradient)
        by_queries, by_keys = (sum_of_slopes(by_scores, hidden, axis) for axis in (1, 0))
        by_energy = by_scores.reshape(1, -1) @ hidden.reshape(-1, len(energy))
        return jax.tree.map(jnp.add, sums, (by_keys, by_values, by_energy[0])), by_queries

    zeros = jax.tree.map(jnp.zeros_like, (inputs.keys, inputs.values, energy))
    chunks = _chunked(plan, inputs), _cut(plan, gradient)
    (by_keys, by_values, by_energy), by_queries = jax.lax.scan(step, zeros, chunks)
    return energy[None] * _joined(by_queries, inputs), energy[None] * by_keys, by_values, by_energy


def _widened(inputs: _Inputs, energy: jax.Array) -> tuple[_Inputs, jax.Array]:
    wide = jnp.promote_types(inputs.queries.dtype, jnp.float32)
    q, k, v = (array.astype(wide) for array in inputs[:3])
    return _Inputs(q, k, v, inputs.mask, inputs.random), energy.astype(wide)


def _chunked(plan: _Plan, inputs: _Inputs) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Of every chunk: its queries, its rows of the mask (None where all queries have the same), and its number."""
    own_rows = inputs.mask is not None and len(inputs.mask) > 1
    rows = _cut(plan, inputs.mask) if inputs.mask is not None and own_rows else None
    return _cut(plan, inputs.queries), rows, jnp.arange(plan.chunks)


def _cut(plan: _Plan, rows: jax.Array) -> jax.Array:
    """[T, ...] in chunks of equal size, the last one filled up with zeros."""
    size = -(-len(rows) // plan.chunks)
    return jnp.pad(rows, ((0, plan.chunks * size - len(rows)), (0, 0))).reshape(plan.chunks, size, -1)


def _joined(chunks: jax.Array, inputs: _Inputs) -> jax.Array:
    return chunks.reshape(-1, chunks.shape[-1])[: len(inputs.queries)]


def _read(
    plan: _Plan, inputs: _Inputs, rows: jax.Array | None, n: jax.Array, scores: jax.Array, values: jax.Array
) -> jax.Array:
    """The context of one chunk, from its scores."""
    weights = softmax(scores, inputs.mask if rows is None else rows)
    random = None if inputs.random is None else jax.random.fold_in(inputs.random, n)
    return read(_dropped(weights, plan.dropout, random), values)


def _dropped(weights: jax.Array, dropout: float, random: jax.Array | None) -> jax.Array:
    if random is None:
        return weights
    return jnp.where(jax.random.bernoulli(random, 1 - dropout, weights.shape), weights / (1 - dropout), 0)


def _powers(inputs: jax.Array) -> jax.Array:
    """`e^2x`. What is clipped here is hidden by the mask, or read by nobody."""
    return jnp.exp(2 * jnp.clip(inputs, -LARGEST, LARGEST))


def _moderate(queries: jax.Array, keys: jax.Array, mask: jax.Array | None, largest: float = LARGEST) -> jax.Array:
    """Whether all that may be attended to, or from, has a size for which e^2q e^2k may stand for e^2(q + k)."""
    sizes = [jnp.abs(jax.lax.stop_gradient(array)) for array in (queries, keys)]
    if mask is not None:
        sizes = [jnp.where(jnp.any(mask, axis)[..., None], size, 0) for size, axis in zip(sizes, (-1, -2), strict=True)]
    size = jnp.maximum(jnp.max(sizes[0]), jnp.max(sizes[1]))
    return (size > SMALLEST) & (size < largest)


def _tanh_of_sum(queries: jax.Array, keys: jax.Array, powers: jax.Array, moderate: jax.Array | None) -> jax.Array:
    """`tanh(q_t + k_s)`, [T, S, D]; where moderate, as `1 - 2 / (1 + e^2q e^2k)`: one division instead of a tanh."""

    def by_tanh() -> jax.Array:
        return jnp.tanh(queries[:, None] + keys[None])

    def by_powers() -> jax.Array:
        return 1 - 2 / (1 + _powers(queries)[:, None] * powers[None])

    return by_tanh() if moderate is None else jax.lax.cond(moderate, by_powers, by_tanh)

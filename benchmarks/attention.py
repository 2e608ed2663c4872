"""How fast is scaled dot-product attention, forward and with its gradient, against JAX's libraries and PyTorch?

Eight heads of width 64: batch 8 at 64 and 512 positions ("paper"), batch 1 at 4,096 and, on an accelerator, 16,384
("long"), in float32 or bfloat16. The cases are no mask, a causal mask, padding, a causal window of T / 8, and two key
heads for eight query heads; who cannot do a case takes no part in it. Contexts and gradients are compared before
anything is timed (`TOLERANCES`, relative to the largest value: in bfloat16 four steps of its grid, as peers round
between the two products). Each peer gets the layout that it asks for from the start; PyTorch's is
`scaled_dot_product_attention`, Keras's the layer Attention, whose batch holds the heads. On a GPU jax.nn enters twice
in bfloat16, by XLA and by cuDNN; and float32 means full float32 on all sides, in products too.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.flags import FLAGS
from flax import linen as nn

from attention_zoo.functional import masks
from attention_zoo.functional.dot_product import dot_product_attention
from benchmarks import pytorch
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, check_guest, keras_layers, known
from benchmarks.rows import Row

PAPER, LONG = [(8, 8, 64, 64), (8, 8, 512, 64)], [(1, 8, 4096, 64)]
SIZES = {"small": [(2, 4, 37, 8)], "paper": PAPER, "long": LONG}  # B, H, T, D
ON_ACCELERATORS = {"long": [(1, 8, 16384, 64)]}
OWN = ("plain", "causal", "masked")
CASES = (*OWN, "windowed", "grouped")
BY_LENGTHS = "by lengths"  # the masked case for kernels that are told the sources' lengths
GROUPED = 4  # query heads of a key head
TOLERANCES = {"float32": 1e-4, "bfloat16": 4 * 2.0**-7}
LAYOUTS = {"BHTD": 1, "BTHD": 2}  # and the axis of the heads
Attention = Callable[..., Any]


@dataclass(frozen=True)
class Entrant:
    """An implementation: its function, the axis of its heads, the cases it can do, and whether it is PyTorch's."""

    attention: Attention
    axis: int = LAYOUTS["BTHD"]
    cases: Sequence[str] = CASES
    torch: bool = False

    def contestant(self, name: str, direction: str, arrays: tuple[jax.Array, ...], options: Any) -> Contestant:
        """It, at one case's work, on arrays of [B, H, T, D]."""
        placed = tuple(jnp.swapaxes(array, 1, self.axis) for array in arrays)
        if self.torch:
            if "window" in options:  # as a mask, made beforehand
                steps = arrays[0].shape[2]
                options = {"mask": masks.window(steps, steps, *options["window"])}
            attention = partial(self.attention, **pytorch.tensors(options))
            return pytorch.contestant(name, partial(TORCH_WORK[direction], attention), placed)
        # A mask is an argument, as it is in training: of a constant the compiler might make too much.
        told = {key: option for key, option in options.items() if isinstance(option, jax.Array)}
        fixed = {key: option for key, option in options.items() if key not in told}

        def work(told: dict[str, jax.Array], *arrays: jax.Array) -> Any:
            return WORK[direction](partial(self.attention, **fixed, **told), *arrays)

        return Contestant(name, work, (told, *placed), partial(_leading, self.axis))


def benchmark(
    size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None, dtype: str = "float32"
) -> Iterator[Row]:
    """Rows for every case, forward and with the gradient of queries, keys and values; `peers`: all by default."""
    return _measure(_entrants(peers, dtype), size, repetitions, CASES, dtype)


def contest(
    name: str,
    attention: Attention,
    size: str = "paper",
    repetitions: int = 15,
    *,
    layout: str = "BHTD",
    cases: Sequence[str] = OWN,
    peers: Collection[str] | None = None,
    dtype: str = "float32",
) -> list[Row]:
    """The benchmark with one contestant more, a function of your own.

    Args:
        name: what its rows are called.
        attention: `(queries, keys, values) -> context`, in JAX; in the case "causal" it is also given `causal=True`,
            in "masked" `mask=`, True = may attend, [B, 1, 1, S], and in "windowed" `causal=True` and `window=` (left,
            right), positions beside a query's own; in "grouped" keys and values have a quarter of the heads.
        layout: of its arrays, "BHTD" or "BTHD".
        cases: those that it can do.
        peers: who else takes part beside attention_zoo; by default all that can be imported.

    Raises:
        UserError: its context or gradients differ from attention_zoo's; or there is no such layout, size, case or
            dtype, or the name is taken.
    """
    check_guest(name, PEERS)
    axis = LAYOUTS[known(layout, LAYOUTS, "layout")]
    return [*_measure({**_entrants(peers, dtype), name: Entrant(attention, axis)}, size, repetitions, cases, dtype)]


def _entrants(peers: Collection[str] | None, dtype: str) -> dict[str, Entrant]:
    entrants = {OURS: Entrant(dot_product_attention, LAYOUTS["BHTD"]), **bring(PEERS, peers)}
    if "jax.nn" in entrants and dtype == "bfloat16" and jax.default_backend() == "gpu":
        entrants["jax.nn cudnn"] = Entrant(partial(jax_nn, implementation="cudnn"))
    return entrants


def _measure(
    entrants: dict[str, Entrant], size: str, repetitions: int, cases: Sequence[str], dtype: str
) -> Iterator[Row]:
    shapes = list(SIZES[known(size, SIZES, "size")])
    tolerance = TOLERANCES[known(dtype, TOLERANCES, "dtype")]
    if jax.default_backend() != "cpu":
        shapes += ON_ACCELERATORS.get(size, [])
    timed = partial(compare, "attention", tolerance=tolerance, repetitions=repetitions, dtype=dtype)
    for batch, heads, steps, width in shapes:
        for case in cases:
            options, pairs = case_options(known(case, CASES, "case"), batch, steps)
            arrays = inputs(batch, heads, heads // GROUPED if case == "grouped" else heads, steps, width, dtype)
            for direction, products in PRODUCTS.items():
                contestants = [
                    one.contestant(name, direction, arrays, options)
                    for name, one in entrants.items()
                    if case in one.cases
                ]
                needs = {"matmul_gflops": 2 * batch * heads * pairs * width * products}
                yield from timed(f"B{batch} H{heads} T{steps} D{width} {case}", direction, contestants, needs=needs)


def inputs(batch: int, heads: int, key_heads: int, steps: int, width: int, dtype: str) -> tuple[jax.Array, ...]:
    """Queries, keys, values and a cotangent of the context."""
    normal = np.random.default_rng(0).normal
    numbers = heads, key_heads, key_heads, heads
    return tuple(jnp.asarray(normal(size=(batch, number, steps, width)), dtype) for number in numbers)


def case_options(case: str, batch: int, steps: int) -> tuple[dict[str, Any], float]:
    """What a case adds to the arguments, and how many pairs of a query and a key it leaves to a head."""
    everything, width = float(steps**2), max(1, steps // 8)
    if case == "causal":
        return {"causal": True}, everything / 2
    if case == "windowed":
        return {"causal": True, "window": (width - 1, 0)}, steps * width - width * (width - 1) / 2
    if case in ("masked", BY_LENGTHS):
        lengths = np.random.default_rng(1).integers(steps // 2, steps + 1, batch)
        mask = masks.padding(jnp.asarray(lengths), steps)[:, None] if case == "masked" else None
        options = {"lengths": jnp.int32(lengths)} if mask is None else {"mask": mask}
        return options, float(steps * lengths.mean())
    return {}, everything


def _whole_mask(queries: Any, mask: Any, causal: bool, window: Any) -> Any:
    """One mask for who has no other argument, [..., T, S]."""
    steps = queries.shape[1]
    if window is not None:
        return masks.window(steps, steps, *window)[None, None]
    return nn.make_causal_mask(jnp.zeros((1, steps)), dtype=bool) if causal else mask


def _flax_linen(
    queries: Any, keys: Any, values: Any, mask: Any = None, causal: bool = False, window: Any = None
) -> jax.Array:
    return nn.dot_product_attention(queries, keys, values, mask=_whole_mask(queries, mask, causal, window))


def jax_nn(
    *arrays: Any, mask: Any = None, lengths: Any = None, causal: bool = False, window: Any = None,
    implementation: Any = "xla",
) -> jax.Array:  # fmt: skip
    """jax.nn's, with a mask for every pair where it is cuDNN's, which has no other."""
    if implementation == "cudnn" and mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], arrays[0].shape[1], arrays[1].shape[1]))
    options = {"mask": mask, "key_value_seq_lengths": lengths, "is_causal": causal, "local_window_size": window}
    return jax.nn.dot_product_attention(*arrays, implementation=implementation, **options)


def tokamax() -> Attention:
    """tokamax's, by what it chooses itself; raises ImportError where there is none."""
    if not FLAGS.is_parsed():  # tokamax reads the command line, which is not its own
        FLAGS(sys.argv[:1])
    attention = import_module("tokamax").dot_product_attention

    def entered(
        *arrays: Any, mask: Any = None, lengths: Any = None, causal: bool = False, window: Any = None
    ) -> jax.Array:
        options = {"mask": mask, "key_value_seq_lengths": lengths, "is_causal": causal, "local_window_size": window}
        return attention(*arrays, **options)

    return entered


def _keras() -> Entrant:
    """Keras's Attention, which has no heads: they are rows of its batch."""
    layers = keras_layers()

    def entered(queries: Any, keys: Any, values: Any, mask: Any = None, causal: bool = False) -> jax.Array:
        heads, width = queries.shape[1], queries.shape[-1]
        rows = [array.reshape(-1, *array.shape[2:]) for array in (queries * width**-0.5, values, keys)]
        seen = None if mask is None else [None, jnp.repeat(mask[:, 0, 0], heads, axis=0)]
        layer = layers.Attention(dtype=str(queries.dtype))
        return layer(rows, mask=seen, use_causal_mask=causal).reshape(queries.shape)

    return Entrant(entered, LAYOUTS["BHTD"], cases=OWN)


def _pytorch() -> Entrant:
    torch = pytorch.load()

    def entered(queries: Any, keys: Any, values: Any, mask: Any = None, causal: bool = False) -> Any:
        grouped = queries.shape[1] != keys.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )

    return Entrant(entered, LAYOUTS["BHTD"], torch=True)


PEERS: Peers = {
    "flax.linen": lambda: Entrant(_flax_linen, cases=CASES[:-1]),
    "jax.nn": lambda: Entrant(jax_nn),
    "tokamax": lambda: Entrant(tokamax()),
    "keras": _keras,
    "PyTorch": _pytorch,
}


def _forward(attention: Attention, queries: Any, keys: Any, values: Any, cotangent: Any) -> Any:
    return (attention(queries, keys, values),)


def _gradient(attention: Attention, queries: Any, keys: Any, values: Any, cotangent: Any) -> Any:
    context, pull_back = jax.vjp(attention, queries, keys, values)
    return context, *pull_back(cotangent)


def _torch_forward(attention: Attention, queries: Any, keys: Any, values: Any, cotangent: Any) -> Any:
    with pytorch.load().no_grad():
        return (attention(queries, keys, values),)


def _torch_gradient(attention: Attention, queries: Any, keys: Any, values: Any, cotangent: Any) -> Any:
    given = [tensor.detach().requires_grad_() for tensor in (queries, keys, values)]
    context = attention(*given)
    return context.detach(), *pytorch.load().autograd.grad(context, given, cotangent)


PRODUCTS = {"forward": 2, "forward+gradient": 6}  # of [T, D] by [D, S], or as large ones, that a head cannot do without
WORK: dict[str, Callable[..., Any]] = {"forward": _forward, "forward+gradient": _gradient}
TORCH_WORK: dict[str, Callable[..., Any]] = {"forward": _torch_forward, "forward+gradient": _torch_gradient}


def _leading(axis: int, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The results with the heads, which stand at `axis`, in one place: [B, H, T, D]."""
    return tuple(jnp.moveaxis(result, axis, 1) for result in results)

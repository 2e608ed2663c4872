"""How fast is a layer of multi-head self-attention, against those of Flax, Keras, PyTorch and x-transformers?

Forward and gradient by the weights and the inputs, projections without biases included: 8 heads, width 512, batch 32 at
64 positions and batch 8 at 512. The cases are no mask, a causal mask and padding, whose positions are compared nowhere
and get no cotangent. All layers have the same weights and must give the same outputs and gradients before anything is
timed (`TOLERANCES`, relative to the largest value). Keras runs on its JAX backend, x-transformers with flash attention.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from attention_zoo.functional.masks import within
from attention_zoo.modules import MultiHeadAttention, Sight
from benchmarks import pytorch
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, keras_layers, known
from benchmarks.rows import Row

SIZES = {"small": [(3, 5, 14, 2)], "paper": [(32, 64, 512, 8), (8, 512, 512, 8)]}  # B, T, E, H
CASES = ("plain", "causal", "masked")
TOLERANCES = {"float32": 1e-4}
PARTS = ("query", "key", "value", "output")
_PRODUCTS = 3  # as large ones: forward, and by each of the two factors


class Work(NamedTuple):
    """What a layer is given: its kernels [E, E] by the names of `PARTS`, inputs and a cotangent [B, T, E], which of the
    positions are real [B, T], heads, and the case."""

    kernels: dict[str, jax.Array]
    inputs: jax.Array
    cotangent: jax.Array
    real: jax.Array
    heads: int
    case: str


Enter = Callable[[str, Work], Contestant]


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> Iterator[Row]:
    """Rows of every case, one for attention_zoo and for each peer, by default all."""
    entrants = {OURS: _ours, **bring(PEERS, peers)}
    for batch, steps, width, heads in SIZES[known(size, SIZES, "size")]:
        for case in CASES:
            work = _work(batch, steps, width, heads, case)
            contestants = [enter(name, work) for name, enter in entrants.items()]
            needs = {"matmul_gflops": 2 * _PRODUCTS * _multiplications(work)}
            measured = partial(compare, tolerance=TOLERANCES["float32"], repetitions=repetitions, needs=needs)
            label = f"B{batch} T{steps} E{width} H{heads} {case}"
            yield from measured("multihead", label, "forward+gradient", contestants)


def _work(batch: int, steps: int, width: int, heads: int, case: str) -> Work:
    normal = np.random.default_rng(0).normal
    kernels = {name: jnp.float32(normal(0, width**-0.5, (width, width))) for name in PARTS}
    inputs, cotangent = (jnp.float32(normal(size=(batch, steps, width))) for _ in range(2))
    lengths = np.random.default_rng(1).integers(steps // 2, steps + 1, batch) if case == "masked" else [steps] * batch
    real = within(jnp.asarray(lengths), steps)
    return Work(kernels, inputs, jnp.where(real[..., None], cotangent, 0), real, heads, case)


def _multiplications(work: Work) -> float:
    """Of the projections, and of the two products of the pairs that the case leaves."""
    batch, steps, width = work.inputs.shape
    pairs = float(jnp.sum(work.real)) * steps * (0.5 if work.case == "causal" else 1.0)
    return len(PARTS) * batch * steps * width**2 + 2 * pairs * width


def _in_jax(layer: Callable[[Any, jax.Array, jax.Array | None, bool], jax.Array], name: str, work: Work) -> Contestant:
    """`layer(kernels, inputs, real or None, causal)` as a contestant."""
    real, causal = work.real if work.case == "masked" else None, work.case == "causal"

    def step(kernels: Any, inputs: jax.Array, cotangent: jax.Array, real: jax.Array | None) -> Any:
        outputs, pull_back = jax.vjp(lambda kernels, inputs: layer(kernels, inputs, real, causal), kernels, inputs)
        return outputs, *pull_back(cotangent)

    return Contestant(name, step, (work.kernels, work.inputs, work.cotangent, real), partial(_compared, work))


def _compared(work: Work, given: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Outputs where positions are real, and the gradients."""
    outputs, kernels, inputs = given
    return np.where(np.asarray(work.real)[..., None], outputs, 0), kernels, inputs


def _ours(name: str, work: Work) -> Contestant:
    layer = MultiHeadAttention(work.heads, work.inputs.shape[-1], use_bias=False)

    def attend(module: Any, inputs: jax.Array, sight: Sight, causal: bool) -> jax.Array:
        return module(inputs, module.remember(inputs), sight, causal=causal)[0]

    def apply(kernels: Any, inputs: jax.Array, real: jax.Array | None, causal: bool) -> jax.Array:
        params = {part: {"kernel": kernel} for part, kernel in kernels.items()}
        sight = Sight(lengths=None if real is None else jnp.sum(real, -1))
        return layer.apply({"params": params}, inputs, sight, causal, method=attend)

    return _in_jax(apply, name, work)


def _flax(name: str, work: Work) -> Contestant:
    layer = nn.MultiHeadDotProductAttention(work.heads, use_bias=False, deterministic=True)

    def apply(kernels: Any, inputs: jax.Array, real: jax.Array | None, causal: bool) -> jax.Array:
        names = dict(zip(PARTS, ("query", "key", "value", "out"), strict=True))
        params = {names[part]: {"kernel": kernel} for part, kernel in _by_head(kernels, work.heads).items()}
        mask = nn.make_causal_mask(inputs[..., 0]) if causal else None
        mask = mask if real is None else real[:, None, None]
        return layer.apply({"params": params}, inputs, mask=mask)

    return _in_jax(apply, name, work)


def _by_head(kernels: Any, heads: int) -> dict[str, jax.Array]:
    """Kernels [E, H, D], and of the output [H, D, E]."""
    width = kernels["output"].shape[0]
    return {
        part: kernel.reshape((heads, -1, width) if part == "output" else (width, heads, -1))
        for part, kernel in kernels.items()
    }


def _keras() -> Enter:
    layers = keras_layers()

    def enter(name: str, work: Work) -> Contestant:
        shape = work.inputs.shape
        layer = layers.MultiHeadAttention(work.heads, shape[-1] // work.heads, use_bias=False)
        layer.build(shape, shape)

        def apply(kernels: Any, inputs: jax.Array, real: jax.Array | None, causal: bool) -> jax.Array:
            by_head = _by_head(kernels, work.heads)
            weights = [by_head[part] for part in PARTS]
            mask = None if real is None else real[:, None]
            options = {"attention_mask": mask, "use_causal_mask": causal}
            return layer.stateless_call(weights, [], inputs, inputs, **options)[0]

        return _in_jax(apply, name, work)

    return enter


def _pytorch() -> Enter:
    torch = pytorch.load()

    def enter(name: str, work: Work) -> Contestant:
        width, steps = work.inputs.shape[-1], work.inputs.shape[1]
        layer = torch.nn.MultiheadAttention(width, work.heads, bias=False, batch_first=True).to(pytorch.device())
        rows = pytorch.tensors({part: kernel.T for part, kernel in work.kernels.items()})
        with torch.no_grad():
            layer.in_proj_weight.copy_(torch.cat([rows[part] for part in PARTS[:3]]))
            layer.out_proj.weight.copy_(rows["output"])
        options: dict[str, Any] = {"need_weights": False}
        if work.case == "causal":
            mask = torch.nn.Transformer.generate_square_subsequent_mask(steps, pytorch.device())
            options |= {"attn_mask": mask, "is_causal": True}
        if work.case == "masked":
            options["key_padding_mask"] = pytorch.tensors(~work.real)

        def apply(inputs: Any) -> Any:
            return layer(inputs, inputs, inputs, **options)[0]

        def kernels(gradients: Any) -> list[Any]:
            return [*gradients[0].chunk(3), gradients[1]]

        return _in_torch(name, work, apply, [layer.in_proj_weight, layer.out_proj.weight], kernels)

    return enter


def _x_transformers() -> Enter:
    torch, library = pytorch.load(), import_module("x_transformers.x_transformers")

    def enter(name: str, work: Work) -> Contestant:
        width, causal = work.inputs.shape[-1], work.case == "causal"
        layer = library.Attention(width, dim_head=width // work.heads, heads=work.heads, causal=causal, flash=True)
        layer = layer.to(pytorch.device())
        weights = [part.weight for part in (layer.to_q, layer.to_k, layer.to_v, layer.to_out)]
        with torch.no_grad():
            for weight, part in zip(weights, PARTS, strict=True):
                weight.copy_(pytorch.tensors(work.kernels[part].T))
        mask = pytorch.tensors(work.real) if work.case == "masked" else None
        return _in_torch(name, work, lambda inputs: layer(inputs, mask=mask), weights, list)

    return enter


def _in_torch(name: str, work: Work, layer: Any, weights: list[Any], kernels: Callable[[Any], list[Any]]) -> Contestant:
    """A layer that holds its weights; `kernels` makes their gradients those of `PARTS`, transposed."""
    grad = pytorch.load().autograd.grad

    def step(inputs: Any, cotangent: Any) -> Any:
        inputs = inputs.detach().requires_grad_()
        outputs = layer(inputs)
        *by_weights, by_inputs = grad(outputs, [*weights, inputs], cotangent)
        return outputs.detach(), by_weights, by_inputs

    def compared(given: Any) -> Any:
        outputs, by_weights, by_inputs = given
        turned = {part: pytorch.arrays(grad).T for part, grad in zip(PARTS, kernels(by_weights), strict=True)}
        return _compared(work, (pytorch.arrays(outputs), turned, pytorch.arrays(by_inputs)))

    return pytorch.contestant(name, step, (work.inputs, work.cotangent), compared)


PEERS: Peers = {
    "flax.linen": lambda: _flax,
    "keras": _keras,
    "PyTorch": _pytorch,
    "x-transformers": _x_transformers,
}

"""How fast, and in how much memory, is cross-entropy over a large vocabulary, straight from what the output layer sees?

Masked means over B x T tokens of features [B, T, D] and an output layer [D, N], with the gradients of features, kernel
and bias; float32. attention_zoo's `projected_cross_entropy` never holds all logits; the peers are optax's
`softmax_cross_entropy_with_integer_labels` on whole logits, compiled together with the product, and PyTorch's eager
`linear` and `cross_entropy` (`ignore_index` where nothing counts). All must give the same loss and gradients before
anything is timed (`TOLERANCES`, relative to the largest value).
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention_zoo.functional.losses import projected_cross_entropy
from attention_zoo.functional.masks import within
from benchmarks import pytorch
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row

# B, T, D, and the vocabularies N
SIZES = {"small": (3, 5, 7, (11, 13)), "paper": (64, 30, 512, (8_000,)), "long": (64, 30, 512, (32_000,))}
TOLERANCES = {"float32": 1e-4}

Problem = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
Loss = Callable[..., jax.Array]


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> Iterator[Row]:
    """One row each for attention_zoo and the peers, by default all, at every vocabulary of the size."""
    batch, steps, width, vocabularies = SIZES[known(size, SIZES, "size")]
    entrants = {OURS: _contestant(OURS, _ours), **bring(PEERS, peers)}
    for vocabulary in vocabularies:
        problem = _problem(batch, steps, width, vocabulary)
        contestants = [enter(problem) for enter in entrants.values()]
        yield from compare(
            "loss",
            f"B{batch} T{steps} D{width} N{vocabulary}",
            "forward+gradient",
            contestants,
            tolerance=TOLERANCES["float32"],
            repetitions=repetitions,
            needs={"matmul_gflops": 3 * 2 * batch * steps * width * vocabulary},
        )


def _problem(batch: int, steps: int, width: int, vocabulary: int) -> Problem:
    """Features [B, T, D], kernel [D, N], bias [N], targets [B, T], and a mask of lengths from half to all steps."""
    generator = np.random.default_rng(0)
    shapes = (batch, steps, width), (width, vocabulary), (vocabulary,)
    features, kernel, bias = (jnp.asarray(generator.normal(size=shape), "float32") for shape in shapes)
    targets = jnp.asarray(generator.integers(vocabulary, size=(batch, steps)))
    lengths = jnp.asarray(generator.integers(steps // 2, steps + 1, batch))
    return features, kernel / width**0.5, bias, targets, within(lengths, steps)


def _contestant(name: str, loss: Loss) -> Callable[[Problem], Contestant]:
    """Of a loss in JAX: its value and gradients of features, kernel and bias."""
    return lambda problem: Contestant(name, jax.value_and_grad(loss, (0, 1, 2)), problem)


def _ours(features: Any, kernel: Any, bias: Any, targets: Any, mask: Any) -> jax.Array:
    return projected_cross_entropy(features, kernel, bias, targets, mask)[0]


def _optax(features: Any, kernel: Any, bias: Any, targets: Any, mask: Any) -> jax.Array:
    logits = features.reshape(-1, features.shape[-1]) @ kernel + bias[None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets.reshape(-1))
    return jnp.sum(losses, where=mask.reshape(-1)) / mask.sum()


def _pytorch(problem: Problem) -> Contestant:
    torch = pytorch.load()
    *arrays, targets, mask = problem

    def work(features: Any, kernel: Any, bias: Any, targets: Any) -> Any:
        leaves = [leaf.detach().requires_grad_() for leaf in (features, kernel, bias)]
        logits = torch.nn.functional.linear(leaves[0].flatten(0, 1), leaves[1], leaves[2])
        loss = torch.nn.functional.cross_entropy(logits, targets.flatten())
        return loss, torch.autograd.grad(loss, leaves)

    def compared(results: Any) -> Any:
        loss, (features, kernel, bias) = pytorch.arrays(results)
        return loss, (features, kernel.T, bias)

    arrays[1] = arrays[1].T  # as torch keeps it
    ignored = np.where(mask, targets, -100).astype(np.int64)
    return pytorch.contestant("PyTorch", work, (*arrays, ignored), compared)


PEERS: Peers = {
    "optax": lambda: _contestant("optax", _optax),
    "PyTorch": lambda: pytorch.load() and _pytorch,
}

"""A training step as a contestant: the loss, its gradient and Adam's update, in the memory of the step before."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import jax
import optax

from benchmarks.harness import Contestant

LEARNING_RATE = 1e-3
Loss = Callable[..., Any]


def training_step(name: str, loss: Loss, params: Any, batch: tuple[jax.Array, ...]) -> Contestant:
    """One in JAX of `loss(params, *batch)`; compared by the loss and the gradient's norm."""
    optimizer = optax.adam(LEARNING_RATE)

    def step(params: Any, state: Any, *batch: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(gradient, state)
        compared = {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
        return compared, optax.apply_updates(params, updates), state

    return Contestant(name, step, (params, optimizer.init(params), *batch), itemgetter(0), carried=2)

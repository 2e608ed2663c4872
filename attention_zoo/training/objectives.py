"""Objectives: `(params, batch, key) -> (loss, metrics)`, pure and differentiable in the parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.masks import within
from attention_zoo.functional.metrics import token_accuracy
from attention_zoo.notation import Array, ArrayLike, Int, checked

Objective = Callable[[Any, Mapping[str, Any], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@checked
def shifted(target: Int[ArrayLike, "B T"], start: int = 1) -> Int[Array, "B T"]:
    """The decoder's inputs: `target` one step to the right, `start` in front, the last token gone.

    >>> shifted(jnp.array([[7, 5, 2, 0]])).tolist()
    [[1, 7, 5, 2]]
    """
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=start)


def teacher_forcing(model: nn.Module, label_smoothing: float = 0.0, *, start: int = 1) -> Objective:
    """The mean cross-entropy of every target token, given the true tokens before it.

    Args:
        model: `(source [B, S], source_lengths [B], inputs [B, T], deterministic=False) -> (logits [B, T, N], _)`;
            its dropout draws from the rng stream "dropout". Where it has a method `loss`, such as `Seq2Seq.loss`,
            that takes the targets, their mask and the smoothing too and gives loss and accuracy, that is used.
        label_smoothing: what the loss gives to the whole vocabulary, in [0, 1).
        start: the id of START, the first input.

    Returns:
        an objective whose metrics are `loss` (nats a token) and `token_accuracy` (a fraction), over real tokens.
    """

    def objective(
        params: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        target = jnp.asarray(batch["target"])  # [B, T]
        real = within(jnp.asarray(batch["target_lengths"]), target.shape[1])  # [B, T]
        inputs = batch["source"], batch["source_lengths"], shifted(target, start)
        options: Any = {"deterministic": False, "rngs": {"dropout": key}}
        if hasattr(model, "loss"):
            loss, right = model.apply(
                {"params": params}, *inputs, target, real, label_smoothing, method="loss", **options
            )
        else:
            logits, _ = model.apply({"params": params}, *inputs, **options)
            loss = cross_entropy(logits, target, real, label_smoothing)
            right = token_accuracy(logits.argmax(-1), target, real)
        return loss, {"loss": loss, "token_accuracy": right}

    return objective

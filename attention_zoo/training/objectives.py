"""Objectives: `(params, batch, key) -> (loss, metrics)`, pure and differentiable in the parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from attention_zoo.functional.alignment_losses import coverage_penalty, guided_alignment
from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.masks import within
from attention_zoo.functional.metrics import token_accuracy
from attention_zoo.models.transformer import Packed
from attention_zoo.notation import Array, ArrayLike, Int, checked

SIDES, PLACES = ("source", "target"), ("segments", "positions")
Objective = Callable[[Any, Mapping[str, Any], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@checked
def shifted(target: Int[ArrayLike, "B T"], start: int = 1) -> Int[Array, "B T"]:
    """The decoder's inputs: `target` one step to the right, `start` in front, the last token gone.

    >>> shifted(jnp.array([[7, 5, 2, 0]])).tolist()
    [[1, 7, 5, 2]]
    """
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=start)


def teacher_forcing(
    model: nn.Module,
    label_smoothing: float = 0.0,
    *,
    guided: float = 0.0,
    coverage: float = 0.0,
    start: int = 1,
) -> Objective:
    """The mean cross-entropy of every target token, given the true tokens before it.

    Args:
        model: `(source [B, S], source_lengths [B], inputs [B, T], deterministic=False) -> (logits [B, T, N],
            alignment)`; it draws from the rng streams "dropout" and "alignment". Where it has a method `loss`, such as
            `Seq2Seq.loss`, that takes the targets, their mask and the smoothing too and gives loss, accuracy and
            alignment, that is used.
        label_smoothing: what the loss gives to the whole vocabulary, in [0, 1).
        guided: the weight of `functional.alignment_losses.guided_alignment`, for batches with gold spans.
        coverage: the weight of `functional.alignment_losses.coverage_penalty`.
        start: the id of START, the first input.

    Returns:
        an objective whose metrics are `loss` (nats a token), `token_accuracy` (a fraction), over real tokens, and
        `guided_alignment` and `coverage_penalty` where they have a weight.

    Raises (when the objective is called):
        ValueError: a weight of an alignment's loss, and no alignment or no gold spans.
    """

    def objective(
        params: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        target = jnp.asarray(batch["target"])  # [B, T]
        real = within(jnp.asarray(batch["target_lengths"]), target.shape[1])  # [B, T]
        inputs = batch["source"], batch["source_lengths"], shifted(target, start)
        rngs = {"dropout": key, "alignment": jax.random.fold_in(key, 1)}
        options: Any = {"deterministic": False, "rngs": rngs}
        if hasattr(model, "loss"):
            found: Any = model.apply(
                {"params": params}, *inputs, target, real, label_smoothing, method="loss", **options
            )
            loss, right, alignment = found
        else:
            logits, alignment = model.apply({"params": params}, *inputs, **options)
            loss = cross_entropy(logits, target, real, label_smoothing)
            right = token_accuracy(logits.argmax(-1), target, real)
        metrics = {"loss": loss, "token_accuracy": right, **_looked(alignment, batch, real, guided, coverage)}
        weighted = guided * metrics.get("guided_alignment", 0) + coverage * metrics.get("coverage_penalty", 0)
        return loss + weighted, metrics

    return objective


def packed_teacher_forcing(model: nn.Module, label_smoothing: float = 0.0, *, start: int = 1) -> Objective:
    """`teacher_forcing` for rows that hold several pairs, see `data.packing`; each pair as if it were alone.

    Args:
        model: with `loss(..., packed)` as `models.Transformer` has it.
        label_smoothing, start: as in `teacher_forcing`.
    """

    def objective(
        params: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        places = {f"{side}_{what}": jnp.asarray(batch[f"{side}_{what}"]) for side in SIDES for what in PLACES}
        source, target = jnp.asarray(batch["source"]), jnp.asarray(batch["target"])
        inputs = jnp.where(places["target_positions"] == 0, start, shifted(target, start))
        whole = jnp.full(source.shape[:1], source.shape[1])
        found: Any = model.apply(
            {"params": params},
            *(source, whole, inputs, target, places["target_segments"] > 0, label_smoothing),
            deterministic=False,
            packed=Packed(**places),
            method="loss",
            rngs={"dropout": key},
        )
        return found[0], {"loss": found[0], "token_accuracy": found[1]}

    return objective


def next_token(model: nn.Module) -> Objective:
    """The mean cross-entropy of every token given those before it in its text, for `data.LanguageData`.

    Args:
        model: with `loss(tokens, targets, mask, deterministic, segments, positions)` as `models.CausalLM` has it.
    """

    def objective(
        params: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        read = (batch[name] for name in ("tokens", "targets", "mask"))
        places = (batch["segments"], batch["positions"])
        found: Any = model.apply({"params": params}, *read, False, *places, method="loss", rngs={"dropout": key})
        return found[0], {"loss": found[0], "token_accuracy": found[1]}

    return objective


def _looked(
    alignment: Any, batch: Mapping[str, jax.Array], real: jax.Array, guided: float, coverage: float
) -> dict[str, jax.Array]:
    """The losses of the alignment that have a weight."""
    if not guided and not coverage:
        return {}
    if alignment is None:
        raise ValueError("a loss of the alignment needs a model with attention")
    if guided and "spans" not in batch:
        raise ValueError("guided alignment needs data with gold spans")
    found = {}
    if guided:
        found["guided_alignment"] = guided_alignment(alignment.weights, jnp.asarray(batch["spans"]), real)
    if coverage:
        found["coverage_penalty"] = coverage_penalty(alignment.weights, real)
    return found

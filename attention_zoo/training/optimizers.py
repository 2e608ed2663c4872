"""Optimisers by name: chains of optax parts, with the papers' settings as defaults."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adadelta": partial(optax.adadelta, rho=0.95, eps=1e-6),  # Bahdanau 2014, with learning rate 1
    "adam": optax.adam,
    "adamw": partial(optax.adamw, mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
    "sgd": optax.sgd,
}


def optimizer(
    name: str,
    learning_rate: float,
    *,
    schedule: str = "constant",
    warmup: int = 0,
    steps: int | None = None,
    steps_per_epoch: int | None = None,
    full_epochs: int = 5,
    clip: float | None = None,
    accumulate: int = 1,
    weight_decay: float | None = None,
    ema: float | None = None,
    skip_nonfinite: int | None = None,
    **settings: Any,
) -> optax.GradientTransformation:
    """Clip by the global norm, apply the named rule at the scheduled rate, average the parameters.

    Every number of steps counts batches; with accumulation the schedule is stretched to match.

    Args:
        name: "adadelta", "adam", "adamw" or "sgd".
        learning_rate: the largest rate of the schedule.
        schedule, warmup, steps, steps_per_epoch, full_epochs: see `learning_rate_schedule`.
        clip: the largest global norm of a gradient.
        accumulate: batches whose gradients are averaged into one update.
        weight_decay: of matrices only (no biases, no scales); for "adamw".
        ema: decay of the parameters' exponential moving average, which is then what is evaluated.
        skip_nonfinite: leave out updates that are not finite, up to this many in a row.
        settings: further arguments of the optax optimiser, such as b1, b2, eps or momentum.

    Raises:
        ValueError: an unknown name or schedule, or settings that do not go together.
    """
    rule = choose("optimizer", name, RULES)
    if accumulate < 1:
        raise ValueError(f"optimizer: accumulate is at least 1; got {accumulate}")
    if weight_decay is not None:
        if name != "adamw":
            raise ValueError(f"optimizer: weight_decay goes with adamw, not with {name}")
        settings["weight_decay"] = weight_decay
    stretch = partial(_updates, accumulate=accumulate)
    rate = learning_rate_schedule(
        schedule,
        learning_rate,
        warmup=stretch(warmup) or 0,
        steps=stretch(steps),
        steps_per_epoch=stretch(steps_per_epoch),
        full_epochs=full_epochs,
    )
    parts = [] if clip is None else [optax.clip_by_global_norm(clip)]
    parts.append(rule(rate, **settings))
    if ema is not None:
        parts.append(parameter_average(ema))
    chain = optax.chain(*parts)
    if accumulate > 1:
        chain = optax.MultiSteps(chain, accumulate).gradient_transformation()
    return chain if skip_nonfinite is None else optax.apply_if_finite(chain, skip_nonfinite)


def _updates(batches: int | None, accumulate: int) -> int | None:
    return None if batches is None else -(-batches // accumulate)


def choose(what: str, name: str, choices: dict[str, Any]) -> Any:
    """The entry called `name`, or a ValueError that lists the choices."""
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(sorted(choices))}")
    return choices[name]


def learning_rate_schedule(
    name: str,
    peak: float,
    *,
    warmup: int = 0,
    steps: int | None = None,
    steps_per_epoch: int | None = None,
    full_epochs: int = 5,
) -> optax.Schedule:
    """The learning rate as a function of the number of updates already made.

    - "constant": `peak` after a linear warm-up of `warmup` steps;
    - "cosine": the same, then half a cosine down to zero at `steps`;
    - "rsqrt": `peak min(n / warmup, sqrt(warmup / n))` at the n-th step, which is Vaswani 2017, equation 3,
      with `peak = (width warmup)^-0.5`;
    - "halving": `peak` for `full_epochs` epochs, then halved at the start of each (Luong 2015, section 4.1).

    Raises:
        ValueError: an unknown name, or a number that the schedule needs is missing.
    """
    schedule = choose("schedule", name, SCHEDULES)
    numbers = {"warmup": warmup, "steps": steps, "steps_per_epoch": steps_per_epoch, "full_epochs": full_epochs}
    missing = [number for number in NEEDED[name] if not numbers[number]]
    if missing:
        raise ValueError(f"schedule {name!r} needs {' and '.join(missing)}, at least 1")
    if warmup and name == "halving":
        raise ValueError("schedule 'halving' has no warm-up; leave warmup out")
    return schedule(peak, **numbers)


def _constant(peak: float, *, warmup: int, **_: Any) -> optax.Schedule:
    # Optax counts the updates made before: starting one step in, the n-th update gets peak n / warmup, never zero.
    return optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))


def _cosine(peak: float, *, warmup: int, steps: int, **_: Any) -> optax.Schedule:
    if warmup >= steps:
        raise ValueError(f"schedule 'cosine': a warm-up of {warmup} leaves nothing of {steps} steps")
    return optax.join_schedules(
        [_constant(peak, warmup=warmup), optax.cosine_decay_schedule(peak, steps - warmup)], [warmup]
    )


def _rsqrt(peak: float, *, warmup: int, **_: Any) -> optax.Schedule:
    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        n = jnp.asarray(count, jnp.float32) + 1
        return peak * jnp.minimum(n / warmup, jnp.sqrt(warmup / n))

    return schedule


def _halving(peak: float, *, steps_per_epoch: int, full_epochs: int, **_: Any) -> optax.Schedule:
    # The staircase goes down one epoch after it begins.
    begin = (full_epochs - 1) * steps_per_epoch
    return optax.exponential_decay(peak, steps_per_epoch, 0.5, transition_begin=begin, staircase=True)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "halving": _halving,
    "rsqrt": _rsqrt,
}
NEEDED = {"constant": (), "cosine": ("steps",), "halving": ("steps_per_epoch", "full_epochs"), "rsqrt": ("warmup",)}


class ParameterAverage(NamedTuple):
    """How many updates there were, and the parameters' average over them."""

    updates: jax.Array
    averaged_parameters: optax.Params


def parameter_average(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters beside the updates, which pass unchanged.

    `a_n = a_{n-1} + w_n (p_n - a_{n-1})` with `w_n = (1 - decay) / (1 - decay^n)`: the average without a bias
    towards the initial parameters (as Adam corrects its moments), in one tree. Must be the last part of a chain.
    """
    if not 0 < decay < 1:
        raise ValueError(f"optimizer: ema lies between 0 and 1; got {decay}")

    def init(params: optax.Params) -> ParameterAverage:
        return ParameterAverage(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(
        updates: optax.Updates, state: ParameterAverage, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ParameterAverage]:
        count = optax.safe_increment(state.updates)
        weight = (1 - decay) / -jnp.expm1(count * jnp.log(decay))
        new = optax.apply_updates(params, updates)
        return updates, ParameterAverage(count, optax.incremental_update(new, state.averaged_parameters, weight))

    return optax.GradientTransformation(init, update)


def averaged_parameters(state: optax.OptState) -> optax.Params | None:
    """The moving average of the parameters in an optimiser's state; None where none is kept."""
    return optax.tree.get(state, "averaged_parameters")

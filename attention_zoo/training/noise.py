"""How noisy a gradient estimator is: its variance and signal-to-noise ratio, at any moment of any run."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from attention_zoo.training.experiment import AnyObjective, Experiment
from attention_zoo.training.step import TrainState, carrying

ALL = "all"


class GradientNoise(NamedTuple):
    """Of a group of parameters, scalars: see `gradient_noise`."""

    mean_square: jax.Array
    variance: jax.Array
    snr: jax.Array


def gradient_noise(
    objective: AnyObjective,
    params: Any,
    batch: Mapping[str, Any],
    key: jax.Array,
    samples: int = 8,
    carry: Any = None,
) -> dict[str, GradientNoise]:
    """The noise that an objective's key brings into its gradient, for one batch and the parameters as they are.

    Of gradients g_1 ... g_M with M keys, of a group's n entries:

    - `variance = sum_i sum_m (g_mi - mean_i)^2 / (M - 1)`, the unbiased sample variance summed over the entries;
    - `mean_square = max(|mean|^2 - variance / M, 0)`: |E g|^2, of which |mean|^2 exceeds by variance / M on average;
    - `snr = mean_square / variance`; infinite where there is a gradient and no variance, 0 where there is no gradient.

    All that depends on the key counts: sampled locations, and dropout too. What differs between batches does not.
    One gradient is computed after the other, so that memory is that of one and their mean.

    Args:
        objective, carry: as in `Experiment`; every gradient starts from the same carry.
        samples: M, keys split from `key`; at least 2.

    Returns:
        a `GradientNoise` for each of the parameters' top-level names, and "all" for the whole, in float32 at least.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if samples < 2:
        raise ValueError(f"a variance needs at least 2 gradients; got {samples}")

    def add(sums: _Sums, turn: tuple[jax.Array, jax.Array]) -> tuple[_Sums, None]:
        return _add(objective, sums, params, batch, *turn, carry), None

    turns = jnp.arange(samples), jax.random.split(key, samples)
    return _noise(jax.lax.scan(add, _nothing(params), turns)[0], samples)


class NoiseMeter:
    """Measures the gradient noise of a run every `noise_every` steps, from keys that training does not use."""

    def __init__(self, experiment: Experiment, mesh: Mesh) -> None:
        self._every, self._samples = experiment.noise_every, experiment.noise_samples
        everywhere: Any = {"out_shardings": NamedSharding(mesh, PartitionSpec())}
        self._add = jax.jit(partial(_add, experiment.objective), donate_argnums=0, **everywhere)
        self._nothing = jax.jit(_nothing, **everywhere)
        self._noise = jax.jit(partial(_noise, samples=self._samples))

    def due(self, step: int) -> bool:
        """Whether the gradient of this step is to be measured; steps count from 1."""
        return self._every is not None and step % self._every == 0

    def __call__(self, state: TrainState, batch: Mapping[str, Any]) -> dict[str, GradientNoise]:
        """The noise, on the host, of the gradient that a step from this state on this batch would use."""
        sums = self._nothing(state.params)
        # One call a gradient, not one loop inside a call, where XLA:CPU runs convolutions by a slow path.
        for number, key in enumerate(jax.random.split(jax.random.fold_in(state.key, self._samples), self._samples)):
            sums = self._add(sums, state.params, batch, jnp.int32(number), key, state.carry)
        return jax.device_get(self._noise(sums))


class _Sums(NamedTuple):
    """The mean gradient so far, and of each group the sum of squares around it."""

    mean: Any
    spread: dict[str, jax.Array]


def _nothing(params: Any) -> _Sums:
    zeros = jax.tree.map(jnp.zeros_like, _wide(params))
    return _Sums(zeros, _squares(zeros))


def _add(
    objective: AnyObjective,
    sums: _Sums,
    params: Any,
    batch: Mapping[str, Any],
    number: jax.Array,
    key: jax.Array,
    carry: Any,
) -> _Sums:
    """Welford's update, which loses no digits where the variance is far below the square of the mean."""
    gradient, _ = jax.grad(carrying(objective), has_aux=True)(params, batch, key, carry)
    away = jax.tree.map(jnp.subtract, _wide(gradient), sums.mean)
    mean = jax.tree.map(lambda old, step: old + step / (number + 1), sums.mean, away)
    more = {name: square * (number / (number + 1)) for name, square in _squares(away).items()}
    return _Sums(mean, jax.tree.map(jnp.add, sums.spread, more))


def _noise(sums: _Sums, samples: int) -> dict[str, GradientNoise]:
    found = {}
    for name, square in _squares(sums.mean).items():
        variance = sums.spread[name] / (samples - 1)
        signal = jnp.maximum(square - variance / samples, 0)
        found[name] = GradientNoise(signal, variance, jnp.where(signal > 0, signal / variance, 0))
    return found


def _squares(tree: Any) -> dict[str, jax.Array]:
    """The sum of squares of each group."""
    groups = dict(tree) if isinstance(tree, Mapping) else {}
    return {name: optax.tree.norm(group, squared=True) for name, group in {**groups, ALL: tree}.items()}


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)

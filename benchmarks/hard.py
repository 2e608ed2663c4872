"""How biased, noisy and slow is each estimator of a hard attention's gradient, with the exact gradient as the ruler?

One small captioner (see `benchmarks.estimators`), whose S^T paths are enumerated: of every estimator many gradients
are drawn. A row's `error_vs_reference` is |mean - exact| / |exact|; an unbiased estimator keeps below its `bias_bound`
with 99 % confidence. `variance` and `snr` are those of one gradient, as `attention_zoo.training.gradient_noise` defines
them. `ratio` is the time of a gradient over that of soft attention, for the batch repeated to more rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from rich.table import Table

from benchmarks.estimators import ESTIMATORS, EXACT, expected_rewards, model
from benchmarks.harness import Contestant, compare
from benchmarks.peers import Peers, known
from benchmarks.rows import Row, print_table

# Rows B, words T, locations S; the gradients drawn of each estimator; and the rows that a gradient is timed with.
SIZES = {"small": (2, 2, 3, 400, 2), "paper": (4, 3, 6, 20_000, 256)}
# What estimators give differs, as it should: it is judged, not compared. They are all this library's.
TOLERANCES = {"float32": 0.0}
PEERS: Peers = {}
_CHUNK = 400
_Z99, _ROUNDING = 2.575829, 1e-5


@dataclass(frozen=True, kw_only=True)
class EstimatorRow(Row):
    """A measured estimator.

    `bias_bound`: what |mean - exact| / |exact| is below, without bias, in 99 of 100 draws.
    `snr`: None without variance.
    """

    variance: float
    snr: float | None
    bias_bound: float
    samples: int


def benchmark(size: str = "paper", repetitions: int = 15) -> list[Row]:
    """One row for every estimator; soft attention, which all times are relative to, is the first."""
    rows, words, locations, samples, timed_rows = SIZES[known(size, SIZES, "size")]
    params, batch = model(rows, words, locations)
    batch["expected_rewards"] = jax.jit(expected_rewards)(params, batch)
    wide = {**batch, **{name: jnp.repeat(batch[name], timed_rows // rows, 0) for name in ("annotations", "target")}}
    exact = {name: ravel_pytree(jax.jit(jax.grad(loss))(params, batch))[0] for name, loss in EXACT.items()}
    contestants = [
        Contestant(name, jax.grad(one.objective, has_aux=True), (params, wide, jax.random.key(1)), lambda given: 0.0)
        for name, one in ESTIMATORS.items()
    ]
    case = f"B{rows} T{words} S{locations}"
    timed = compare(
        "hard", case, "forward+gradient", contestants, tolerance=TOLERANCES["float32"], repetitions=repetitions
    )
    found: list[Row] = []
    for row, one in zip(timed, ESTIMATORS.values(), strict=True):
        gradient = partial(jax.grad(one.objective, has_aux=True), params, batch)
        judged = judge(gradient, np.asarray(exact[one.exact], np.float64), samples)
        found.append(EstimatorRow(**{**asdict(row), "case": f"{one.exact}, {case}", **judged}))
    return found


def show(rows: Sequence[EstimatorRow]) -> None:
    """A table of the estimators; the bias is in per cent of the exact gradient's norm."""
    table = Table("gradient of", "estimator", "bias %", "99 %: below", "variance", "SNR", "ms", "ratio", "95 %")
    for row in rows:
        table.add_row(
            row.case,
            row.implementation,
            f"{100 * row.error_vs_reference:.2f}{'' if row.error_vs_reference <= row.bias_bound else ' biased'}",
            f"{100 * row.bias_bound:.2f}",
            f"{row.variance:.4g}",
            "" if row.snr is None else f"{row.snr:.3g}",
            f"{row.median_ms:.1f}",
            f"{row.ratio:.2f}",
            row.interval,
        )
    if rows:
        print_table(table)


def judge(gradient: Any, exact: np.ndarray, samples: int) -> dict[str, Any]:
    """The bias and noise of `gradient(key) -> (tree, metrics)`, from so many samples.

    Of a mean of M gradients, Gaussian as it is, |mean - E|^2 exceeds 2.58^2 variance / M with a probability of 1 % at
    most, whatever the correlations of the entries (Szekely and Bakirov 2003); 1e-5 |exact| is left to rounding.
    """
    draw = jax.jit(jax.vmap(lambda key: ravel_pytree(gradient(key)[0])[0]))
    first, total, squares = None, np.zeros(len(exact)), 0.0
    for keys in np.split(jax.random.split(jax.random.key(2), samples), samples // _CHUNK):
        drawn = np.asarray(draw(keys), np.float64)
        first = drawn[0] if first is None else first  # Taken from all, so that no variance is exactly none.
        total += (drawn - first).sum(0)
        squares += float(((drawn - first) ** 2).sum())
    variance = (squares - float(total @ total) / samples) / (samples - 1)
    mean = first + total / samples
    size, bias = float(np.linalg.norm(exact)), float(np.linalg.norm(mean - exact))
    signal = max(float(mean @ mean) - variance / samples, 0.0)
    return {
        "error_vs_reference": bias / size,
        "bias_bound": _Z99 * (variance / samples) ** 0.5 / size + _ROUNDING,
        "variance": variance,
        "snr": signal / variance if variance else None,
        "samples": samples,
    }

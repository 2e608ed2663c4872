"""What does every mechanism of the zoo cost over whole sequences, and how does that grow with T, S and D?

Every score with the softmax, and every alignment and past with a score that it is used with, from `models.mechanisms`;
and the two products that are fused. All widths are D, nothing is masked. "forward" is inference, where monotonic walks
decide; "forward+gradient" is training, with its noise and expectations, by parameters, queries and values. `ratio` is
the time over that of plain dot-product attention, which is measured beside every mechanism (and beside itself).

A `growth` is the exponent of a doubling, log2 of the quotient: 1 is linear. Times were measured in turn with those of
the base. Operations (`flops`, in which the compiler counts no tanh and no exp) and temporaries are exact, with one
reservation: of a loop (`loop`) the compiler counts the body once, so that operations miss what its turns repeat.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from rich.table import Table

from attention_zoo.functional.additive_attention import additive_attention
from attention_zoo.functional.attend import attend
from attention_zoo.models import Seq2Seq
from attention_zoo.models.mechanisms import mechanism
from attention_zoo.modules import Additive, Attention
from attention_zoo.modules.alignment import NOISE
from attention_zoo.training.step import KEYS
from benchmarks.harness import Contestant, compare, finite
from benchmarks.peers import Peers, known
from benchmarks.rows import Row, print_table

SIZES = {"small": (2, 7, 5, 4), "paper": (4, 128, 128, 128)}  # B, T, S, D
# What mechanisms give differs, as it should: it is only looked at. They are all this library's.
TOLERANCES = {"float32": 0.0}
PEERS: Peers = {}
LETTERS = "TSD"
FIRST = "dot"

_MONOTONIC, _LOCAL = {"score": "additive_normalised"}, {"score": "general"}
# Those of `models.mechanisms`, by the fields that name them.
MECHANISMS: dict[str, dict[str, Any]] = {
    FIRST: {"score": "dot"},
    "scaled dot": {"score": "scaled_dot"},
    "general": {"score": "general"},
    "cosine": {"score": "cosine"},
    "location": {"score": "location"},
    "additive": {"score": "additive"},
    "additive, weight-normalised": {"score": "additive_normalised"},
    "concat": {"score": "concat"},
    "dot, temperature": {"alignment": "tempered"},
    "dot, sparsemax": {"alignment": "sparsemax"},
    "dot, entmax-1.5": {"alignment": "entmax15"},
    "dot, top-k": {"alignment": "top_k"},
    "dot, Gumbel-softmax": {"alignment": "gumbel_softmax"},
    "dot, straight-through": {"alignment": "straight_through"},
    "general, local-m": {**_LOCAL, "alignment": "local_m"},
    "general, local-p": {**_LOCAL, "alignment": "local_p"},
    "general, local-p renormalised": {**_LOCAL, "alignment": "local_p_renormalised"},
    "additive, monotonic": {**_MONOTONIC, "alignment": "monotonic"},
    "additive, MoChA": {**_MONOTONIC, "alignment": "mocha"},
    "additive, location-sensitive": {"score": "additive", "past": "location"},
    "additive, coverage": {"score": "additive", "past": "coverage"},
    "additive, coverage over fertility": {"score": "additive", "past": "coverage", "fertility": 2.0},
}
_DEFAULTS = {"score": "dot", "temperature": 0.5}  # the others are those of `Seq2Seq`


@dataclass(frozen=True, kw_only=True)
class MechanismRow(Row):
    """A measured mechanism at T, S and D, and the exponents of its growth, by letter; None where there is no quotient.

    `loop`: whether there is one, whose body the compiler counts once.
    """

    t: int
    s: int
    d: int
    loop: bool
    time_growth: Mapping[str, float | None]
    temporaries_growth: Mapping[str, float | None]
    flops_growth: Mapping[str, float | None]


class WholeDot(nn.Module):
    """Scaled dot-product attention in chunks, which never has [T, S]."""

    def __call__(self, queries: jax.Array, values: jax.Array, deterministic: bool) -> jax.Array:
        """Context [B, T, V]."""
        return attend(queries, values, values, implementation="chunked")[0]


class WholeAdditive(nn.Module):
    """Additive attention by `functional.additive_attention`, which never has [T, S, D]."""

    score: Additive

    def __call__(self, queries: jax.Array, values: jax.Array, deterministic: bool) -> jax.Array:
        """Context [B, T, V]."""
        keys, queries = self.score.remember(values), self.score.query(queries)
        return additive_attention(queries, keys, values, self.score.energy)


class Whole(nn.Module):
    """A mechanism over whole sequences."""

    attention: Attention

    def __call__(self, queries: jax.Array, values: jax.Array, deterministic: bool) -> jax.Array:
        """Context [B, T, V]."""
        memory = self.attention.remember(values)
        return self.attention(queries, memory, self.attention.start(memory), deterministic)[0]


FUSED: dict[str, Callable[[int], nn.Module]] = {
    "scaled dot, no [T, S]": lambda width: WholeDot(),
    "additive, no [T, S, D]": lambda width: WholeAdditive(Additive(width)),
}


def benchmark(size: str = "paper", repetitions: int = 15) -> Iterator[Row]:
    """One row for every mechanism and direction; plain dot-product attention is the first of each."""
    batch, *base = SIZES[known(size, SIZES, "size")]
    for direction in ("forward+gradient", "forward"):  # whole: a record takes rows that belong together
        sizes = (base[0], base[1], base[2])
        yield from [_measure(name, direction, batch, sizes, repetitions) for name in (*MECHANISMS, *FUSED)]


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The heads, and one line for every mechanism, of rows as `--json` writes them."""
    by_direction = {
        direction: {row["implementation"]: row for row in rows if row["direction"] == direction}
        for direction in ("forward", "forward+gradient")
    }
    heads = ["mechanism", "inference, ms", "over dot", "training, ms", "over dot", "temporaries, MB"]
    heads += [f"{what} with T, S, D" for what in ("time", "temporaries", "operations")]
    lines = []
    for name, trained in by_direction["forward+gradient"].items():
        there = [row for row in (by_direction["forward"].get(name), trained) if row]
        times = [cell for row in there for cell in (f"{row['median_ms']:.2f}", f"{row['ratio']:.2f}")]
        grown = [_exponents(trained[f"{what}_growth"]) for what in ("time", "temporaries", "flops")]
        grown[2] += " *" if trained["loop"] else ""
        memory = "" if trained["temporary_bytes"] is None else f"{trained['temporary_bytes'] / 1e6:.1f}"
        lines.append([name, *([""] * (4 - len(times))), *times, memory, *grown])
    return [heads, *lines]


def show(rows: Sequence[Row]) -> None:
    """A table of the mechanisms; growth is of training."""
    heads, *lines = table([asdict(row) for row in rows])
    shown = Table(*heads)
    for line in lines:
        shown.add_row(*line)
    if lines:
        print_table(shown)


def _measure(name: str, direction: str, batch: int, base: tuple[int, int, int], repetitions: int) -> MechanismRow:
    """A mechanism at the base and with each letter doubled, in turn with dot-product attention at the base."""
    doubled = [tuple(2 * size if n == k else size for n, size in enumerate(base)) for k in range(len(base))]
    points = [_contestant(name, direction, batch, *point) for point in (base, *doubled)]
    contestants = [_contestant(FIRST, direction, batch, *base), *points]
    case = f"B{batch} T{base[0]} S{base[1]} D{base[2]}"
    tolerance = TOLERANCES["float32"]
    _, row, *larger = compare("scores", case, direction, contestants, tolerance=tolerance, repetitions=repetitions)
    growth = {
        f"{field}_growth": {
            letter: _exponent(getattr(row, of), getattr(one, of)) for letter, one in zip(LETTERS, larger, strict=True)
        }
        for field, of in (("time", "median_ms"), ("temporaries", "temporary_bytes"), ("flops", "flops"))
    }
    t, s, d = base
    return MechanismRow(**asdict(row), t=t, s=s, d=d, loop=_loops(points[0]), **growth)


def _contestant(name: str, direction: str, batch: int, t: int, s: int, d: int) -> Contestant:
    normal = np.random.default_rng(0).normal
    queries, values, cotangent = (jnp.float32(normal(size=(batch, size, d))) for size in (t, s, t))
    model = FUSED[name](d) if name in FUSED else Whole(mechanism(_model(name, s, d), d))
    shapes = jax.eval_shape(partial(model.init, deterministic=True), jax.random.key(0), queries, values)
    variables = jax.tree.map(lambda leaf: jnp.float32(normal(0, d**-0.5, leaf.shape)), shapes)
    work, key = (_infer, None) if direction == "forward" else (_train, jax.random.key(1, impl=KEYS))
    return Contestant(name, partial(work, model), (variables, queries, values, cotangent, key), finite)


def _model(name: str, s: int, d: int) -> Seq2Seq:
    """A model whose fields name the mechanism."""
    return Seq2Seq(1, 1, positions=s, decoder_units=d, **_DEFAULTS | MECHANISMS[name])


def _infer(model: nn.Module, variables: Any, queries: Any, values: Any, cotangent: Any, key: Any) -> Any:
    return model.apply(variables, queries, values, deterministic=True)


def _train(model: nn.Module, variables: Any, queries: Any, values: Any, cotangent: Any, key: Any) -> Any:
    apply = partial(model.apply, deterministic=False, rngs={NOISE: key})
    context, pull_back = jax.vjp(apply, variables, queries, values)
    return context, pull_back(cotangent)


def _loops(contestant: Contestant) -> bool:
    traced = str(jax.make_jaxpr(contestant.work)(*contestant.arguments))
    return " scan[" in traced or " while[" in traced


def _exponent(base: float | None, doubled: float | None) -> float | None:
    return round(math.log2(doubled / base), 2) if base and doubled else None


def _exponents(growth: Mapping[str, float | None]) -> str:
    return ", ".join("?" if growth[letter] is None else f"{growth[letter]:.2f}" for letter in LETTERS)

"""How many tokens a second does a trained translator write, against JoeyNMT's search and a loop in Python over JAX?

The model of experiment dates_bahdanau, with the weights of a run of it in runs/dates_bahdanau, or in the folder that
the environment variable DATES_BAHDANAU names. Dates in many languages, from ids to the best hypothesis: greedily and
with a beam of 5, one source and 64 of them, the encoder's time included. JoeyNMT has the same weights (in what its own
decoder differs, `benchmarks.joey` says); `plain JAX` is a loop in Python that calls one compiled step. All must write
the same tokens and give them the same scores before anything is timed. Size "small" has random weights, and never END.
"""

import datetime
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attention_zoo.data import END, PAD, START, TextData
from attention_zoo.data.dates import FIRST, LANGUAGES, LAST, forms, write
from attention_zoo.functional.search import gnmt
from attention_zoo.models import Seq2Seq
from attention_zoo.training import load_parameters
from attention_zoo.training.translation import Translator
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.pytorch import tensors
from benchmarks.rows import Row

RUN = Path(os.environ.get("DATES_BAHDANAU", "runs/dates_bahdanau"))
SIZES = {"small": ((3,), (1, 2)), "paper": ((1, 64), (1, 5))}  # sources a batch, and widths of the beam: 1 is greedy
TOLERANCES = {"float32": 1e-4}
NEVER = -1e9  # a logit of what is not to come
PENALTY = gnmt(0.6)  # what the library's beam search has by default


@dataclass(frozen=True, kw_only=True)
class DecodeRow(Row):
    """A measured search; `tokens_per_second`: of the best hypotheses, END included."""

    tokens_per_second: int


@dataclass(frozen=True)
class Task:
    """A model with its parameters, sources [B, S], longest first, and how many symbols may be written for each."""

    model: Seq2Seq
    params: Any
    source: jax.Array
    lengths: jax.Array
    max_length: int


class Hypotheses(NamedTuple):
    """K hypotheses an example, best first; a free place has the score -inf."""

    scores: jax.Array  # [B, K]
    tokens: jax.Array  # [B, K, L]


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> Iterator[Row]:
    """Rows of every batch and width; none, and a sentence on stderr, where "paper" finds no trained weights."""
    batches, widths = SIZES[known(size, SIZES, "size")]
    if size != "small" and not (RUN / "checkpoints").is_dir():
        print(
            f"decode needs trained weights, and {RUN} has none: left out; "
            "`python -m experiments train dates_bahdanau` makes them",
            file=sys.stderr,
        )
        return
    tasks = [random_task(batch) if size == "small" else trained_task(RUN, batch) for batch in batches]
    brought = bring(PEERS, peers)
    for task, width in product(tasks, widths):
        yield from measure(task, width, repetitions, brought)


def measure(task: Task, width: int, repetitions: int, peers: dict[str, Callable[[Task, int], Contestant]]) -> list[Row]:
    """One row each for attention_zoo and the peers, of one batch and one width."""
    counts: dict[str, int] = {}
    contestants = [_counting(make(task, width), task.max_length, counts) for make in (_ours, *peers.values())]
    case = f"{'greedy' if width == 1 else f'beam {width}'} B{len(task.source)} S{task.source.shape[1]}"
    tolerance = TOLERANCES["float32"]
    rows = compare("decode", case, "forward", contestants, tolerance=tolerance, repetitions=repetitions)
    rates = [round(1e3 * counts[row.implementation] / max(row.median_ms, 1e-2)) for row in rows]
    return [DecodeRow(**asdict(row), tokens_per_second=rate) for row, rate in zip(rows, rates, strict=True)]


def _counting(contestant: Contestant, max_length: int, counts: dict[str, int]) -> Contestant:
    """The contestant, compared by its scores and by its tokens up to END, which are counted on the way."""

    def compared(found: Any) -> dict[str, np.ndarray]:
        tokens, scores = map(np.asarray, contestant.compared(found))
        real = np.cumsum(tokens == END, axis=1) - (tokens == END) == 0
        counts[contestant.implementation] = int(real.sum())
        if scores.ndim == 2:  # of every token, also those after END; or of whole hypotheses, in one column
            scores = np.where(real[:, : scores.shape[1]], scores, 0).sum(1)
        padding = (0, 0), (0, max_length - tokens.shape[1])
        return {"tokens": np.pad(np.where(real, tokens, PAD), padding, constant_values=PAD), "scores": scores}

    return replace(contestant, compared=compared)


def _ours(task: Task, width: int) -> Contestant:
    search = Translator(task.model, SimpleNamespace(max_target=task.max_length)).search
    return Contestant(OURS, partial(search, width=width), _arguments(task), lambda found: (found.tokens, found.scores))


def _arguments(task: Task) -> tuple[Any, ...]:
    return task.params, task.source, task.lengths


def random_task(batch: int, end: float = NEVER) -> Task:
    """Random weights, with this bias of END, and random sources; PAD and START, which not all may write, never come."""
    model, generator = Seq2Seq(23, 17, 6, 10, decoder_units=14), np.random.default_rng(0)
    lengths = np.sort(generator.integers(2, 8, batch))[::-1]
    source = np.where(np.arange(lengths[0]) < lengths[:, None], generator.integers(4, 23, (batch, lengths[0])), PAD)
    source, lengths = jnp.int32(source), jnp.int32(lengths)
    params = jax.jit(model.init)(jax.random.key(0), source, lengths, source[:, :1])["params"]
    params = jax.tree.map(lambda leaf: 2 * leaf, params)  # as they are made, all hypotheses would be nearly as good
    bias = params["output"]["bias"].at[np.array([PAD, START, END])].set(np.float32([NEVER, NEVER, end]))
    return Task(model, {**params, "output": {**params["output"], "bias": bias}}, source, lengths, max_length=5)


def trained_task(run: Path, batch: int) -> Task:
    """The model of a run of dates_bahdanau, and dates to translate.

    Raises:
        UserError: the run has no checkpoint that is whole and of this model.
    """
    data, flags = TextData.load(run), json.loads((run / "config.json").read_text())["flags"]
    sizes = {name: flags[name] for name in ("embedding", "encoder_units", "decoder_units")}
    model = Seq2Seq(data.source.size, data.target.size, **sizes)
    rows = data.encode_batch(written_dates(batch))
    order = np.argsort(-rows["source_lengths"], kind="stable")
    lengths = jnp.asarray(rows["source_lengths"][order])
    source = jnp.asarray(rows["source"][order, : lengths[0]])
    shapes = jax.eval_shape(model.init, jax.random.key(0), source, lengths, source[:, :1])["params"]
    return Task(model, load_parameters(run, shapes), source, lengths, data.max_target)


def written_dates(number: int) -> list[str]:
    """Dates of any day and language, as people write them."""
    generator, every = np.random.default_rng(0), forms(LANGUAGES)
    days = generator.integers(FIRST.toordinal(), LAST.toordinal() + 1, number)
    chosen = [every[form] for form in generator.integers(len(every), size=number)]
    return [write(datetime.date.fromordinal(int(day)), *form).text for day, form in zip(days, chosen, strict=True)]


def plain_greedy(task: Task, params: Any, source: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, T] and the sums of their log-probabilities [B], as one would write it first."""
    cache = _start(task.model, params, source, lengths)
    state = cache, jnp.full(len(source), START), jnp.zeros(len(source), bool), jnp.zeros(len(source))
    written: list[jax.Array] = []
    while len(written) < task.max_length and not state[2].all():
        state = _greedy_step(task.model, params, *state)
        written.append(state[1])
    return jnp.stack(written, 1), state[3]


def plain_beam(
    task: Task, width: int, params: Any, source: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best of K hypotheses, tokens [B, T] and scores [B], with the semantics of `functional.beam.beam`."""
    cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, width, 0), _start(task.model, params, source, lengths))
    tokens = jnp.full((len(source), width, task.max_length + 1), START)
    ended = Hypotheses(jnp.full((len(source), width), -jnp.inf), tokens)
    live, step = Hypotheses(ended.scores.at[:, 0].set(0), tokens), 0
    while step < task.max_length and (live.scores[:, 0] / PENALTY(task.max_length) > ended.scores[:, -1]).any():
        cache, live, ended = _beam_step(task.model, params, cache, live, ended, step)
        step += 1
    best, _ = _best(_join(ended, Hypotheses(live.scores / PENALTY(step), live.tokens)), width)
    return best.tokens[:, 0, 1:], best.scores[:, 0]


@partial(jax.jit, static_argnums=0)
def _start(model: Seq2Seq, params: Any, source: jax.Array, lengths: jax.Array) -> Any:
    return model.apply({"params": params}, source, lengths, method="start")


@partial(jax.jit, static_argnums=0)
def _greedy_step(model: Seq2Seq, params: Any, cache: Any, last: Any, ended: Any, scores: Any) -> tuple[Any, ...]:
    logits, cache, _ = model.apply({"params": params}, cache, last, method="step")
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.where(ended, PAD, log_probs.argmax(-1))
    return cache, chosen, ended | (chosen == END), scores + jnp.where(ended, 0, log_probs.max(-1))


@partial(jax.jit, static_argnums=0)
def _beam_step(
    model: Seq2Seq, params: Any, cache: Any, live: Hypotheses, ended: Hypotheses, step: jax.Array
) -> tuple[Any, Hypotheses, Hypotheses]:
    batch, width = live.scores.shape
    last = lax.dynamic_index_in_dim(live.tokens, step, 2, keepdims=False)
    logits, cache, _ = model.apply({"params": params}, cache, last.reshape(-1), method="step")
    log_probs = jax.nn.log_softmax(logits).reshape(batch, width, -1)
    scores, places = lax.top_k((live.scores[:, :, None] + log_probs).reshape(batch, -1), 2 * width)
    parents, chosen = jnp.divmod(places, log_probs.shape[-1])
    tokens = jnp.take_along_axis(live.tokens, parents[:, :, None], 1).at[:, :, step + 1].set(chosen)
    ending = chosen == END
    ended, _ = _best(_join(ended, Hypotheses(jnp.where(ending, scores / PENALTY(step + 1), -jnp.inf), tokens)), width)
    live, kept = _best(Hypotheses(jnp.where(ending, -jnp.inf, scores), tokens), width)
    rows = (width * jnp.arange(batch)[:, None] + jnp.take_along_axis(parents, kept, 1)).reshape(-1)
    return jax.tree.map(lambda leaf: leaf[rows], cache), live, ended


def _best(found: Hypotheses, width: int) -> tuple[Hypotheses, jax.Array]:
    scores, places = lax.top_k(found.scores, width)
    return Hypotheses(scores, jnp.take_along_axis(found.tokens, places[:, :, None], 1)), places


def _join(one: Hypotheses, other: Hypotheses) -> Hypotheses:
    return jax.tree.map(lambda *both: jnp.concatenate(both, 1), one, other)


def _plain(task: Task, width: int) -> Contestant:
    search = partial(plain_greedy, task) if width == 1 else partial(plain_beam, task, width)
    return Contestant("plain JAX", search, _arguments(task), jitted=False)


def _joey() -> Callable[[Task, int], Contestant]:
    from benchmarks.joey import searching

    def contestant(task: Task, width: int) -> Contestant:
        work = searching(task.params, width, task.max_length)
        return Contestant("JoeyNMT", work, tensors((task.source, task.lengths)), jitted=False)

    return contestant


PEERS: Peers = {"plain JAX": lambda: _plain, "JoeyNMT": _joey}

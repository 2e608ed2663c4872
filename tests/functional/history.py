"""A model with a memory of all that was written, and what is asked of everything a search writes with it."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.functional.alignment import Alignment
from attention_zoo.functional.search import Decoded

PAD, START, END = 0, 1, 2
STATES, SOURCE = 1009, 13


class Model(NamedTuple):
    """A model of which every distribution and alignment depends on the whole history: its state is a running hash."""

    table: np.ndarray  # [STATES, N], logits of each state
    bias: np.ndarray  # [B, N], what an example adds to them; the memory, never changed
    state: np.ndarray  # [B], the hash before the first symbol
    tilt: float = 0.3  # how much the history in floats adds to the logit of symbol 0

    def cache(self) -> dict[str, jax.Array]:
        # The same history twice: in an integer and, spread over two axes, in floats.
        trail = jnp.zeros((len(self.state), 17, 19), jnp.float32)
        return {"state": jnp.asarray(self.state), "memory": jnp.asarray(self.bias), "trail": trail}

    def step(self, cache, tokens):
        state = (cache["state"] * 31 + tokens * 17 + 7) % STATES
        trail = cache["trail"].at[:, 1, 1].set((cache["trail"][:, 1, 1] * 3 + tokens) % 5)
        logits = jnp.asarray(self.table)[state] + cache["memory"]
        logits = logits.at[:, 0].add(trail[:, 1, 1] * self.tilt)
        alignment = Alignment(jax.nn.one_hot(state % SOURCE, SOURCE))
        return logits, {"state": state, "memory": cache["memory"], "trail": trail}, alignment

    def replay(self, example: int, history: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """In plain numpy, float64: log-probabilities and alignment after START and `history`."""
        state, trail = int(self.state[example]), 0
        for token in (START, *history):
            state, trail = (state * 31 + token * 17 + 7) % STATES, (trail * 3 + token) % 5
        logits = self.table[state].astype(float) + self.bias[example]
        logits[0] += trail * self.tilt
        return logits - np.log(np.sum(np.exp(logits))), np.eye(SOURCE)[state % SOURCE]

    def log_prob(self, example: int, tokens: tuple[int, ...]) -> float:
        return sum(self.replay(example, tokens[:t])[0][token] for t, token in enumerate(tokens))


def model(batch: int = 3, vocabulary: int = 5, seed: int = 0, ends: float = 0.0, spread: float = 2.0) -> Model:
    """`ends` is added to the logits of END."""
    random = np.random.default_rng(seed)
    table = spread * random.normal(size=(STATES, vocabulary)).astype(np.float32)
    table[:, END] += ends
    bias = random.normal(size=(batch, vocabulary)).astype(np.float32)
    return Model(table, bias, random.integers(0, STATES, batch).astype(np.int32))


def same_at_every_step(logits, batch: int = 1) -> Model:
    nothing = np.zeros((batch, len(logits)), np.float32)
    return Model(np.tile(np.asarray(logits, np.float32), (STATES, 1)), nothing, np.zeros(batch, np.int32), 0.0)


@functools.cache
def compiled(method: Callable[..., Decoded], **options) -> Callable[..., Decoded]:
    """The search as a function of the model (its arrays are arguments, so that one compilation serves many)."""
    options = {"end": END} | options

    def decode(of, *arguments):
        return method(of.step, of.cache(), jnp.full(of.state.shape, START, jnp.int32), *arguments, **options)

    return jax.jit(decode)


def run(method: Callable[..., Decoded], of: Model, *arguments, **options) -> Decoded:
    return jax.tree.map(np.asarray, compiled(method, **options)(of, *arguments))


def written(decoded: Decoded, *at: int) -> tuple[int, ...]:
    return tuple(decoded.tokens[at][: decoded.lengths[at]].tolist())


def check(decoded: Decoded, of: Model, pad: int = PAD) -> None:
    """Every returned hypothesis against a replay of its own tokens: padding, END, alignments along its path."""
    for at in np.ndindex(decoded.lengths.shape):
        tokens = written(decoded, *at)
        assert END not in tokens[:-1] and (len(tokens) == decoded.tokens.shape[-1] or tokens[-1] == END)
        assert np.all(decoded.tokens[at][len(tokens) :] == pad)
        for t in range(len(tokens)):
            np.testing.assert_array_equal(decoded.alignment.weights[at][t], of.replay(at[0], tokens[:t])[1])
        assert not np.any(decoded.alignment.weights[at][len(tokens) :])


def all_sequences(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    others = [token for token in range(vocabulary) if token != END]
    ended = [(*body, END) for n in range(length) for body in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=length))


def steps_taken(method, of: Model, **options) -> int:
    calls = []

    class Counting(Model):
        def step(self, cache, tokens):
            jax.debug.callback(lambda: calls.append(1))
            return super().step(cache, tokens)

    run(method, Counting(*of), **options)
    jax.effects_barrier()
    return len(calls)

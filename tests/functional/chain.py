"""A model so small that all it may look at can be enumerated: each location that it looks at moves the next query.

Every function returns float64 arrays, so that what uses it stands under the fixture `float64`.
"""

from collections.abc import Callable
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from attention_zoo.functional.alignment import Alignment, softmax
from attention_zoo.functional.hard import reward_to_go
from attention_zoo.functional.relaxed import log_prob_and_entropy

# Locations (one of them hidden, with a score that would win always), words, widths of values and states, letters.
S, T, V, D, N = 5, 3, 2, 7, 11
MASK = np.array([[True, True, False, True, True]])
WORDS = (2, 7, 5)
PATHS = np.eye(S)[list(product(np.flatnonzero(MASK), repeat=T))]  # [4^T, T, S], one-hot
Parameters = dict[str, jax.Array]
Choose = Callable[[int, jax.Array], Alignment]


def parameters() -> Parameters:
    """Chosen so that every path is taken often: a rare one makes a mean look more certain than it is."""
    shapes = {"start": (D,), "query": (D, V), "values": (S, V), "carry": (V, D), "out": (D, N), "read": (V, N)}
    random = np.random.default_rng(5)
    drawn = {name: random.normal(size=shape) for name, shape in shapes.items()} | {"value": random.normal(size=D)}
    return {name: drawn[name] if name == "values" else 0.8 * drawn[name] for name in drawn}


def run(p: Parameters, choose: Choose, rows: int = 1) -> dict[str, jax.Array]:
    """What chains of choices give, each [rows, T]: log-likelihoods, log-probabilities, entropies, predicted rewards."""
    state, steps = jnp.broadcast_to(p["start"], (rows, D)), []
    for t, word in enumerate(WORDS):
        value = jax.lax.stop_gradient(state) @ p["value"]
        scores = jnp.where(MASK, state @ p["query"] @ p["values"].T, 50.0)
        weights, log_prob, entropy = choose(t, scores[:, None])
        context = weights[:, 0] @ p["values"]
        state = jnp.tanh(state + context @ p["carry"])
        likelihood = jax.nn.log_softmax(state @ p["out"] + context @ p["read"])[:, word]
        steps.append({"likelihood": likelihood, "log_prob": log_prob, "entropy": entropy, "value": value})
    return jax.tree.map(lambda *leaves: jnp.stack([leaf.reshape(rows) for leaf in leaves], -1), *steps)


def expected(t: int, scores: jax.Array) -> Alignment:
    nothing = jnp.zeros(len(scores))
    return Alignment(softmax(scores, MASK), nothing, nothing)


@jax.jit
def exact(p: Parameters) -> dict[str, jax.Array]:
    """Gradients [P] by all parameters, flat, of means over the T words, by enumeration of all paths.

    bound: of `-E[log p(y | s)]`, the sum of `pathwise`, through the likelihoods, and `score`, through the choices.
    entropy: of the mean entropy of a choice; `own_entropy` through the entropies alone. soft: of soft attention's loss.
    fit: of the squared error of the predicted rewards.
    """

    def means(p: Parameters) -> dict[str, jax.Array]:
        paths = run(p, _along_paths, len(PATHS))
        chance = jnp.exp(paths["log_prob"].sum(-1))
        fixed = jax.tree.map(jax.lax.stop_gradient, paths | {"chance": chance})
        error = reward_to_go(fixed["likelihood"]) - paths["value"]
        return {
            "bound": -chance @ paths["likelihood"].mean(-1),
            "pathwise": -fixed["chance"] @ paths["likelihood"].mean(-1),
            "score": -chance @ fixed["likelihood"].mean(-1),
            "entropy": chance @ paths["entropy"].mean(-1),
            "own_entropy": fixed["chance"] @ paths["entropy"].mean(-1),
            "soft": -run(p, expected)["likelihood"].mean(),
            "fit": fixed["chance"] @ (error**2).mean(-1),
        }

    return {name: flat(tree) for name, tree in jax.jacrev(means)(p).items()}


def _along_paths(t: int, scores: jax.Array) -> Alignment:
    weights = PATHS[:, t, None]
    return Alignment(weights, *log_prob_and_entropy(scores, MASK, weights))


def flat(tree: Parameters) -> jax.Array:
    return ravel_pytree(tree)[0]


def by_name(vector: jax.Array) -> Parameters:
    """A flat gradient as the parameters it is of."""
    return ravel_pytree(parameters())[1](vector)


def deviation(estimates: np.ndarray, truth: np.ndarray) -> float:
    """How far the mean of estimates [M, P] is from the truth [P], in standard errors, at the worst parameter."""
    error = np.abs(estimates.mean(0) - truth)
    return float(np.max(error / np.maximum(standard_error(estimates), 1e-12)))


def standard_error(estimates: np.ndarray) -> np.ndarray:
    return estimates.std(0, ddof=1) / np.sqrt(len(estimates))


def variance(estimates: np.ndarray) -> float:
    """The summed variance of estimates [M, P]."""
    return float(np.sum(estimates.var(0, ddof=1)))

"""A small captioner of each kind of attention, and its equations written out a second time.

The equations take `np` or `jnp`, and a function that decides where a word looks, so that a sum over all paths of
locations has a gradient too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from attention_zoo.models import Captioner
from attention_zoo.models.captioner import ATTENTIONS

B, R, Q, V, T, N = 3, 2, 5, 4, 6, 17
S = R * Q
SIZES: dict[str, Any] = {"encoder": None, "embedding": 7, "units": 11, "attention_units": 13, "located": False}
# A picture that is seen whole, one in part, one not at all.
MASK = np.stack([np.ones(S, bool), np.arange(S) % 3 > 0, np.zeros(S, bool)])
EVERY = tuple(ATTENTIONS)
# Where one location has all the probability these look at it, so that what they write is the same.
ALIKE = tuple(name for name in ATTENTIONS if name != "gumbel_softmax")


def captioner(attention: str = "soft", **fields: Any) -> Captioner:
    return Captioner(fields.pop("vocabulary", N), **{**SIZES, "attention": attention, **fields})


def inputs(rows: int = B, words: int = T, vocabulary: int = N, grid: tuple[int, int, int] = (R, Q, V)) -> Any:
    """Annotations and words."""
    random = np.random.default_rng(0)
    annotations = random.normal(size=(rows, *grid)).astype(np.float32)
    return annotations, random.integers(4 % vocabulary, vocabulary, (rows, words)).astype(np.int32)


def parameters(model: nn.Module, *arguments: Any, sharpness: float = 1.0, seed: int = 1) -> dict[str, Any]:
    """Larger than the usual first values, so that attention is sharp and mistakes are visible; no biases of zero.

    sharpness: of the scores; a large one gives a location all the probability.
    """
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name, scale = jax.tree_util.keystr(path), 2 / leaf.shape[0] ** 0.5 if leaf.ndim == 2 else 0.5
        return np.float32(random.normal(0, scale, leaf.shape) * (sharpness if "['score']['energy']" in name else 1))

    drawn: dict[str, Any] = jax.tree_util.tree_map_with_path(draw, shapes)
    return drawn


class Written(NamedTuple):
    """Of each word: the scores and weights [B, T, S]; the logits, and those at each location, [B, T, (S,) N]."""

    scores: Any
    weights: Any
    logits: Any
    everywhere: Any
    before: Any


def by_hand(p: Any, images: Any, tokens: Any, choose: Callable[..., Any], seen: Any = None, xp: Any = np) -> Written:
    """Xu 2015, one word after another; `choose(t, scores)` gives the weights [B, S]."""
    values = xp.reshape(images, (len(images), -1, images.shape[-1]))
    seen = np.ones(values.shape[:2], bool) if seen is None else seen
    values = xp.where(seen[..., None], values, 0)
    mean = values.sum(1) / np.maximum(seen.sum(1, keepdims=True), 1)
    h, c = (xp.tanh(_dense(p[name], mean)) for name in ("first_hidden", "first_memory"))
    steps = []
    for t in range(tokens.shape[1]):
        embedded, before = p["embed"]["embedding"][tokens[:, t]], h
        hidden = _dense(p["score"]["query"], h)[:, None] + _dense(p["score"]["key"], values)
        scores = xp.tanh(hidden) @ p["score"]["energy"]
        weights = choose(t, scores)
        gate = _sigmoid(_dense(p["gate"], h), xp)
        gated = gate * (weights[..., None] * values).sum(1)
        gates = _dense(p["cell"]["input"], embedded) + h @ p["cell"]["recurrent"] + _dense(p["enter"], gated)
        i, f, g, o = xp.split(gates + p["cell"]["recurrent_bias"][None], 4, -1)
        c = _sigmoid(f, xp) * c + _sigmoid(i, xp) * xp.tanh(g)
        h = _sigmoid(o, xp) * xp.tanh(c)
        features = embedded + _dense(p["from_state"], h)
        logits = _dense(p["output"], xp.tanh(features + _dense(p["from_context"], gated)))
        at = _dense(p["from_context"], gate[:, None] * values)
        steps.append((scores, weights, logits, _dense(p["output"], xp.tanh(features[:, None] + at)), before))
    return Written(*(xp.stack(leaf, 1) for leaf in zip(*steps, strict=True)))


def soft(seen: np.ndarray, xp: Any = np) -> Callable[..., Any]:
    def choose(t: int, scores: Any) -> Any:
        raised = xp.where(seen, xp.exp(scores - scores.max(-1, keepdims=True)), 0)
        total = raised.sum(-1, keepdims=True)
        return raised / xp.where(total == 0, 1, total)

    return choose


def likeliest(seen: np.ndarray) -> Callable[..., Any]:
    return lambda t, scores: np.eye(seen.shape[1])[np.where(seen, scores, -np.inf).argmax(-1)] * seen


def log_softmax(logits: Any, xp: Any = np) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))


def _dense(layer: Any, values: Any) -> Any:
    product = values @ layer["kernel"]
    return product + layer["bias"].reshape((1,) * (product.ndim - 1) + (-1,)) if "bias" in layer else product


def _sigmoid(values: Any, xp: Any) -> Any:
    return 1 / (1 + xp.exp(-values))


def close(found: Any, expected: Any, rtol: float = 2e-5, atol: float = 2e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


def is_zero(values: Any) -> bool:
    return not jnp.any(jnp.asarray(values))

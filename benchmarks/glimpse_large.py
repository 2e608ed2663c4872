"""What does looking through glimpses cost, against the side of the canvas, beside looking at all of it by convolution?

The Recurrent Attention Model, with the glimpses of experiment glimpse_translated, beside a small convolutional network
and the encoder of the soft captioner, both with their mean annotation classified. Inference, and whole training steps
of Adam: the glimpse model's with four rollouts a canvas, which the others do not need. Counted operations (`flops`) and
temporaries are the compiler's; the canvases themselves are not among the temporaries. `ratio` is a model's time over
the glimpse model's on the same canvases.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure

from attention_zoo.figures import draw_cost
from attention_zoo.models import RecurrentAttention
from attention_zoo.modules.dense import Dense
from attention_zoo.modules.vision import ConvEncoder
from attention_zoo.training.classification import class_loss
from attention_zoo.training.glimpses import hybrid_loss
from attention_zoo.training.step import TrainState, train_step
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row
from benchmarks.training import LEARNING_RATE

# Canvases a batch, their sides, and the glimpses: how many, of which size at how many scales.
SIZES = {"small": (2, (16, 32), (2, 3, 2)), "paper": (4, (64, 128, 256, 512, 1024), (6, 12, 3))}
TOLERANCES = {"float32": 0.0}  # Three models, three answers: there is nothing to compare.
CLASSES = 10
DRAWN = {OURS: "glimpses"}
NAMES = {"forward": "inference", "forward+gradient": "training step"}


@dataclass(frozen=True, kw_only=True)
class GlimpseRow(Row):
    """A measured model; `side`: of the canvas, in pixels."""

    side: int


class Pooled(nn.Module):
    """A convolutional classifier: the mean annotation of an encoder, and a linear layer."""

    encoder: nn.Module
    classes: int = CLASSES

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> tuple[jax.Array]:
        """Logits [B, N] of images [B, height, width, channels], alone in a tuple."""
        return (Dense(self.classes)(self.encoder(images).mean((1, 2))),)


PEERS: Peers = {
    "small convolutional network": lambda: Pooled(ConvEncoder((16, 32, 64), (2, 2, 2))),
    "captioner's encoder": lambda: Pooled(ConvEncoder()),
}


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> Iterator[Row]:
    """Rows of every side, both directions and all models; the glimpse model is the first of each."""
    canvases, sides, (glimpses, patch, scales) = SIZES[known(size, SIZES, "size")]
    looking = RecurrentAttention(CLASSES, glimpses=glimpses, size=patch, scales=scales)
    models: dict[str, nn.Module] = {OURS: looking, **bring(PEERS, peers)}
    for side in sides:
        generator = np.random.default_rng(0)
        images = jnp.float32(generator.uniform(size=(canvases, side, side, 1)))
        batch = {"images": images, "labels": jnp.int32(generator.integers(CLASSES, size=canvases))}
        case = f"B{canvases} {side} x {side}"
        for direction, prepare in (("forward", _inference), ("forward+gradient", _training)):
            options: Any = {"compared": lambda given: 0.0, "carried": int(prepare is _training)}
            contestants = [Contestant(name, *prepare(model, batch), **options) for name, model in models.items()]
            tolerance = TOLERANCES["float32"]
            timed = compare("glimpse_large", case, direction, contestants, tolerance=tolerance, repetitions=repetitions)
            yield from [GlimpseRow(**asdict(row), side=side) for row in timed]


def draw(rows: Sequence[Row]) -> Figure:
    """Time, temporaries and operations against the side of the canvas."""
    named = ({**asdict(row), "direction": NAMES[row.direction]} for row in rows)
    return draw_cost(
        [{**row, "implementation": DRAWN.get(row["implementation"], row["implementation"])} for row in named]
    )


def _inference(model: nn.Module, batch: dict[str, jax.Array]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    return model.apply, (_parameters(model, batch), batch["images"])


def _training(model: nn.Module, batch: dict[str, jax.Array]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A whole training step and what it is given."""
    optimizer, params = optax.adam(LEARNING_RATE), _parameters(model, batch)["params"]
    objective: Any
    carry: Any
    start = jnp.zeros((), jnp.int32)
    if isinstance(model, RecurrentAttention):
        objective, carry = hybrid_loss(model, steps=1000), {"step": start}
    else:
        objective, carry = class_loss(model, ("images",)), None
    state = TrainState(start, params, optimizer.init(params), jax.random.key(1, impl="unsafe_rbg"), carry)
    train = train_step(objective, optimizer)
    return lambda *given: train(*given)[::-1], (state, batch)


def _parameters(model: nn.Module, batch: dict[str, jax.Array]) -> Any:
    """Numbers as small as those of any model; what they are changes no time."""
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch["images"])
    return jax.tree.map(lambda leaf: jnp.float32(generator.normal(0, 0.1, leaf.shape)), shapes)

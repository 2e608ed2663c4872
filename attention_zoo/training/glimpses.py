"""Training on glimpses: the hybrid loss of the Recurrent Attention Model in two recipes, how it is judged and drawn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attention_zoo.figures import draw_glimpses, save
from attention_zoo.functional.hard import learned_baseline_loss, leave_one_out, reward_to_go, score_function_loss
from attention_zoo.functional.losses import log_likelihood
from attention_zoo.functional.retina import to_pixels
from attention_zoo.models.glimpse import Glimpses, RecurrentAttention
from attention_zoo.notation import Array, Float, Int, checked
from attention_zoo.training.classification import accuracy
from attention_zoo.training.experiment import Experiment, Prediction

RECIPES = ("dense", "classic")
JUDGED = 2  # the third glimpse is asked whether it is on the object: the first sees it nowhere, the second at the edge
DRAWN = 8  # pictures of the dev split

GlimpseObjective = Callable[[Any, Mapping[str, Any], jax.Array, Any], tuple[jax.Array, tuple[dict[str, Any], Any]]]


def hybrid_loss(
    model: RecurrentAttention,
    recipe: str = "dense",
    *,
    steps: int,
    rollouts: int = 4,
    std: tuple[float, float] = (0.15, 0.05),
    location_weight: float = 0.15,
    penalty: float = 1e-3,
) -> GlimpseObjective:
    """Cross-entropy for what can be differentiated, and REINFORCE for where to look (Mnih 2014, section 3.1).

    "dense": an answer after every glimpse; the reward of a location is the mean log-likelihood of the class from its
    glimpse on, its baseline that of the other rollouts of the same picture. "classic", as in the paper: the last answer
    alone; the reward of every location is 1 if that is right and 0 else, its baseline learned. No baseline brings a
    bias: each location follows its own reward, as it is expected given the glimpses before. In "classic" all rewards
    are one, so that this is the gradient of its expectation by where is looked; in "dense" with more than two glimpses
    it is not the gradient of one expectation. Made for models whose `detached` and `learned_baseline` are False in
    "dense", True in "classic". Random locations have no loss.

    Args:
        model: see `models.RecurrentAttention`; it draws from the rng stream "alignment".
        steps: of the whole training, over which the standard deviation falls.
        rollouts: K, paths through each picture.
        std: of the locations, in halves of the image's side, at the first and at the last step; geometric in between.
        location_weight: of the score-function loss, which is a mean over all locations that the policy chose.
        penalty: of the mean square of the locations before their tanh, which keeps it from saturating.

    Returns:
        an objective that carries `{"step"}` and is for batches of `images` and `labels`. Its metrics are `loss` (the
        cross-entropy, nats), `accuracy` (of the last glimpse), `std` and, where locations are learnt, their `reward`.

    Raises:
        ValueError: an unknown recipe, a number out of range, "classic" with a model that has no learned baseline, or a
            learned baseline that nothing would teach.
    """
    _check(model, recipe, rollouts, std)

    def objective(
        params: Any, batch: Mapping[str, Any], key: jax.Array, carry: Any
    ) -> tuple[jax.Array, tuple[dict[str, Any], Any]]:
        spread = annealed(carry["step"], steps, std)
        rngs = {"alignment": key}
        seen: Any = model.apply({"params": params}, batch["images"], False, spread, rollouts, rngs=rngs)
        labels = jnp.repeat(jnp.asarray(batch["labels"]), rollouts)
        likelihoods = log_likelihoods(seen.logits, labels)  # [B, T]
        loss = -(likelihoods if recipe == "dense" else likelihoods[:, -1]).mean()
        right = (seen.logits[:, -1].argmax(-1) == labels).astype(jnp.float32)
        metrics = {"loss": loss, "accuracy": right.mean(), "std": spread}
        if model.locations == "policy" and model.glimpses > 1:
            reward = dense_rewards(likelihoods) if recipe == "dense" else classic_rewards(right, model.glimpses)
            metrics["reward"] = reward.mean()
            loss = loss + location_weight * location_loss(seen, reward, rollouts, recipe)
            loss = loss + penalty * jnp.mean(jnp.square(seen.pre[:, 1:]))
            if recipe == "classic":
                loss = loss + learned_baseline_loss(seen.baselines[:, 1:], reward)
        return loss, (metrics, {"step": carry["step"] + 1})

    return objective


@checked
def annealed(step: Int[Array, ""], steps: int, std: tuple[float | int, float | int]) -> Float[Array, ""]:
    """From the first standard deviation to the last by the same factor every step; the last from `steps` on.

    >>> round(float(annealed(jnp.array(5), 10, (0.4, 0.1))), 4)
    0.2
    """
    done = jnp.minimum(step / steps, 1.0).astype(jnp.float32)
    return std[0] * (std[1] / std[0]) ** done


@checked
def log_likelihoods(logits: Float[Array, "B T N"], labels: Int[Array, " B"]) -> Float[Array, "B T"]:
    """`log p(y)` of the true class after every glimpse, in nats; in float32 at least."""
    return log_likelihood(logits, jnp.broadcast_to(labels[:, None], logits.shape[:2]))


@checked
def dense_rewards(likelihoods: Float[Array, "B T"]) -> Float[Array, "B T-1"]:
    """The mean log-likelihood from each glimpse to the last, for all but the first.

    >>> dense_rewards(jnp.array([[-9.0, -4.0, -2.0]]))
    Array([[-3., -2.]], dtype=float32)
    """
    later = likelihoods.shape[1] - 1
    return reward_to_go(likelihoods[:, 1:]) / jnp.arange(later, 0, -1, dtype=likelihoods.dtype)[None]


@checked
def classic_rewards(right: Float[Array, " B"], glimpses: int) -> Float[Array, "B {glimpses}-1"]:
    """What came of the last answer, 0 or 1, for all glimpses but the first."""
    return jnp.broadcast_to(right[:, None], (len(right), glimpses - 1))


def location_loss(seen: Glimpses, reward: jax.Array, rollouts: int, recipe: str) -> jax.Array:
    """The score-function loss of all locations but the first, with the recipe's baseline; rewards are [B, T - 1]."""
    if recipe == "classic":
        return score_function_loss(seen.log_probs[:, 1:], reward, seen.baselines[:, 1:])
    together = jnp.moveaxis(reward.reshape(-1, rollouts, reward.shape[1]), 1, 0)  # [K, pictures, T - 1]
    baseline = jnp.moveaxis(leave_one_out(together), 0, 1).reshape(reward.shape)
    return score_function_loss(seen.log_probs[:, 1:], reward, baseline)


def pointing(locations: np.ndarray, boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Which locations [rows, 2] are inside their boxes [rows, 4] (top, left, bottom, right); and the chance to be.

    The chance is a uniform location's: the part of the canvas that the box covers.
    """
    points = np.asarray(to_pixels(jnp.asarray(locations), height, width))
    low, high = boxes[:, :2], boxes[:, 2:]
    inside = np.all((low <= points) & (points < high), axis=1)
    border = np.array([height, width], np.float32)
    sides = np.clip(high, 0, border) - np.clip(low, 0, border)
    return inside, np.prod(sides, axis=1) / border.prod()


@dataclass(frozen=True)
class Judge:
    """A model and its data, as the functions that an `Experiment` is made of.

    data: with `split`, `encode_batch`, and the names of the classes in `labels`; batches of `images`, `labels`, `boxes`
    [B, 4] and `valid`.
    """

    model: RecurrentAttention
    data: Any

    @cached_property
    def look(self) -> Callable[[Any, Any], Glimpses]:
        """`look(params, images)`: the glimpses of inference; compiled once a batch shape."""
        apply: Any = self.model.apply
        return jax.jit(lambda params, images: apply({"params": params}, images))

    def evaluate(
        self, params: Any, split: str = "dev", beam_size: int = 1, folder: Path | None = None
    ) -> dict[str, float]:
        """`accuracy` and `error_rate` of the last glimpse; `pointing_accuracy`, how often the third one's centre is in
        the box, beside `chance_pointing` and their `pointing_ratio`; `glimpse_distance`, the mean way from glimpse to
        glimpse in halves of the image's side, which is 0 where a model always looks at the same place.

        Classes are not searched for, so that a beam changes nothing.
        """
        rows: list[list[np.ndarray]] = [[], [], [], [], []]
        for batch in self.data.split(split):
            seen, valid = self.look(params, batch["images"]), batch["valid"]
            locations = np.asarray(seen.locations)
            judged = locations[:, min(JUDGED, locations.shape[1] - 1)]
            inside, chance = pointing(judged, batch["boxes"], *batch["images"].shape[1:3])
            ways = np.linalg.norm(np.diff(locations, axis=1), axis=-1)
            found = np.asarray(seen.logits[:, -1]).argmax(-1), batch["labels"], inside, chance, ways
            for column, values in zip(rows, found, strict=True):
                column.append(values[valid])
        predicted, truth, inside, chance, ways = (np.concatenate(column) for column in rows)
        right, on, by_chance = accuracy(predicted, truth), float(inside.mean()), float(chance.mean())
        scores = {"accuracy": right, "error_rate": 1 - right, "pointing_accuracy": on, "chance_pointing": by_chance}
        return {
            **scores,
            "pointing_ratio": on / by_chance,
            "glimpse_distance": float(ways.mean()) if ways.size else 0.0,
        }

    def predict(self, params: Any, inputs: Sequence[str], beam_size: int = 1) -> Iterator[Prediction]:
        """One `Prediction` an input, the path of a picture, in order: the name of its class and its probability.

        Raises:
            ValueError: a picture cannot be read; the data say why.
        """
        images = self.data.encode_batch(inputs)["images"]
        for row in range(len(inputs)):
            image = images[row : row + 1]
            seen = self.look(params, image)
            chance = np.asarray(jax.nn.softmax(seen.logits[0, -1].astype(jnp.float32)))
            best = int(chance.argmax())
            text = f"{self.data.labels[best]}\t{chance[best]:.3f}"
            yield Prediction(text, (), self._plot(image[0], np.asarray(seen.locations[0]), text.replace("\t", ", ")))

    def _plot(
        self, image: np.ndarray, locations: np.ndarray, title: str, box: np.ndarray | None = None
    ) -> Callable[[Path], None]:
        def plot(path: Path) -> None:
            save(draw_glimpses(image, locations, self.model.size, self.model.scales, title, box), path)

        return plot

    def draw(self, params: Any, folder: Path) -> None:
        """The glimpses of a few pictures of the dev split, each with what it was taken for and its box."""
        batch = next(iter(self.data.split("dev")))
        seen = self.look(params, batch["images"])
        predicted = np.asarray(seen.logits[:, -1]).argmax(-1)
        for row in np.flatnonzero(batch["valid"])[:DRAWN]:
            said, true = (self.data.labels[int(classes[row])] for classes in (predicted, batch["labels"]))
            title = said if said == true else f"{said} (it is {true})"
            plot = self._plot(batch["images"][row], np.asarray(seen.locations[row]), title, batch["boxes"][row])
            plot(folder / f"glimpses_{row + 1}.png")


def glimpsing(
    name: str,
    model: RecurrentAttention,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    recipe: str = "dense",
    rollouts: int = 4,
    std: tuple[float, float] = (0.15, 0.05),
    location_weight: float = 0.15,
    penalty: float = 1e-3,
    **settings: Any,
) -> Experiment:
    """An `Experiment` that trains a model to look where it must, and to name the class of what it sees.

    Args:
        data: see `Judge`, such as `data.translated_digits`.
        recipe, rollouts, std, location_weight, penalty: see `hybrid_loss`.
        settings: further fields of `Experiment`: seed, evaluate_every, checkpoint_every, patience, ...
    """
    judge = Judge(model, data)
    options: dict[str, Any] = {"rollouts": rollouts, "std": std, "location_weight": location_weight}

    def init(key: jax.Array, batch: Mapping[str, np.ndarray]) -> Any:
        return model.init(key, jnp.asarray(batch["images"]))["params"]

    return Experiment(
        name=name,
        data=data,
        init=init,
        objective=hybrid_loss(model, recipe, steps=steps, penalty=penalty, **options),
        optimizer=optimizer,
        evaluate=judge.evaluate,
        best_metric="accuracy",
        predict=judge.predict,
        draw=judge.draw,
        steps=steps,
        batch_size=data.batch_size,
        carry=lambda: {"step": jnp.zeros((), jnp.int32)},
        **settings,
    )


def _check(model: RecurrentAttention, recipe: str, rollouts: int, std: tuple[float, float]) -> None:
    if recipe not in RECIPES:
        raise ValueError(f"recipe is one of {', '.join(RECIPES)}; got {recipe!r}")
    if rollouts < 1 + (recipe == "dense"):
        raise ValueError(f"rollouts is at least {1 + (recipe == 'dense')} in the recipe {recipe!r}; got {rollouts}")
    if min(std) <= 0:
        raise ValueError(f"std is above 0, first and last; got {std[0]} and {std[1]}")
    if recipe == "classic" and model.locations == "policy" and not model.learned_baseline:
        raise ValueError("the recipe 'classic' needs a model with a learned baseline")
    if model.learned_baseline and (recipe != "classic" or model.locations != "policy"):
        raise ValueError(
            "a learned baseline learns in the recipe 'classic' where locations are the policy's; "
            f"got {recipe!r} and {model.locations!r}: make the model without one"
        )

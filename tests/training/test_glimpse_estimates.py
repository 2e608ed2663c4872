"""What training on three glimpses estimates: against a sum over all places of the two locations that are chosen."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from attention_zoo.models import RecurrentAttention
from attention_zoo.models.glimpse import log_density
from attention_zoo.training.glimpses import hybrid_loss, log_likelihoods
from attention_zoo.training.step import KEYS
from tests.functional.chain import deviation
from tests.quick import quick

SIDE, STD, ROLLOUTS, ESTIMATES, BOUND = 28, 0.2, 32, 500, 4.5  # standard errors; there are six parameters
FIELDS = {"classes": 3, "units": 2, "hidden": 5, "glimpses": 3, "size": 2, "scales": 1, "first": "centre"}
MODEL = RecurrentAttention(**FIELDS, detached=True, learned_baseline=True)
BATCH = {
    "images": 2 * np.random.default_rng(0).normal(size=(1, 7, 7, 1)).astype(np.float32),
    "labels": np.array([2], np.int32),
}
# Cells that the borders between pixels do not cut, where what is seen changes.
LINE = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
PLACES = np.stack(np.meshgrid(LINE, LINE, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)


@cache
def parameters():
    """Means that are far from the border, which no sample should reach, and answers that change with both places."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), BATCH["images"])["params"]
    generator = np.random.default_rng(6)
    params = jax.tree.map(lambda leaf: np.float32(generator.normal(0, 1.5, leaf.shape)), shapes)
    return {**params, "locator": jax.tree.map(lambda leaf: leaf / 7.5, params["locator"])}


def every_path(module):
    """The states h [1, D] and [P, D] that choose the locations, and the answers after both, [P, P, 2, N]."""

    def look(state, places):
        return module.core.step(module.core.project(module._seen(BATCH["images"], places)), state)

    count = len(PLACES)
    repeat = partial(jax.tree.map, lambda leaf: jnp.repeat(leaf, count, 0))
    first = look(module.core.zeros((1,)), jnp.zeros((1, 2)))
    second = look(repeat(first), PLACES)
    third = look(repeat(second), jnp.tile(PLACES, (count, 1)))
    logits = jnp.stack([repeat(module.output(second.hidden)), module.output(third.hidden)], 1)
    return first.hidden, second.hidden, logits


@cache
def exact():
    """Gradients by the locator: of minus the expected 0/1 reward; for the dense rewards, each location's by its own
    density ("own"), and of minus the expectation of their sum ("sum")."""

    def density(locator, hidden):
        means = jnp.tanh(hidden @ locator["kernel"] + locator["bias"][None])[:, None]
        logs = log_density(*jnp.broadcast_arrays(PLACES[None], means), STD)
        return jnp.exp(logs) * (2 / SIDE) ** 2

    def values(locator, params):
        first, second, logits = MODEL.apply({"params": params}, method=every_path)
        count = len(PLACES)
        labels = jnp.broadcast_to(BATCH["labels"], len(logits))
        right = jnp.float32(logits[:, 1].argmax(-1) == labels).reshape(count, count)
        likelihoods = log_likelihoods(logits, labels)
        dense = jnp.stack([likelihoods.mean(1), likelihoods[:, 1]], 1).reshape(count, count, 2)
        one, two = density(locator, first)[0], density(locator, second)
        fixed, held = jax.lax.stop_gradient((one, two))
        mean = partial(jnp.einsum, "p,pq,pq->")
        own = mean(one, held, dense[..., 0]) + mean(fixed, two, dense[..., 1])
        return {"classic": -mean(one, two, right), "own": -own, "sum": -mean(one, two, dense.sum(-1))}

    found = quick(jax.jacrev(values))(parameters()["locator"], parameters())
    return {name: np.asarray(ravel_pytree(tree)[0]) for name, tree in found.items()}


def estimates(recipe):
    """Of the sum over both locations, of which the loss is the mean; the recipe "dense" learns no baseline."""
    options = {"steps": 1, "rollouts": ROLLOUTS, "std": (STD, STD), "location_weight": 2.0, "penalty": 0.0}
    objective = hybrid_loss(MODEL.clone(learned_baseline=recipe == "classic"), recipe, **options)

    def estimate(key):
        gradient = jax.grad(objective, has_aux=True)(parameters(), BATCH, key, {"step": jnp.array(0)})[0]
        return ravel_pytree(gradient["locator"])[0]

    return np.asarray(quick(jax.vmap(estimate))(jax.random.split(jax.random.key(11, impl=KEYS), ESTIMATES)))


@pytest.mark.parametrize(("recipe", "what", "other"), [("classic", "classic", None), ("dense", "own", "sum")])
def test_each_location_follows_its_own_reward(recipe, what, other):
    """With the classic recipe that is the gradient of the expected reward; with the dense not that of any sum's."""
    found, truth = estimates(recipe), exact()
    assert deviation(found, truth[what]) < BOUND < deviation(found, 0 * truth[what]) / 2
    assert other is None or deviation(found, truth[other]) > 2 * BOUND

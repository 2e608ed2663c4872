"""Training on glimpses: by hand, every parameter learns, the estimate against its exact gradient, how it is judged."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imsave
from scipy.special import log_softmax

from attention_zoo.data import translated_digits
from attention_zoo.models import RecurrentAttention
from attention_zoo.models.glimpse import Glimpses, log_density
from attention_zoo.training import glimpses, optimizer
from attention_zoo.training.glimpses import Judge, glimpsing, hybrid_loss, location_loss, pointing
from attention_zoo.training.step import initial_state, train_step

B, Y, X, N, T, K = 3, 11, 13, 5, 3, 2
FIELDS = {"classes": N, "units": 6, "hidden": 7, "glimpses": T, "size": 3, "scales": 2}
MODELS = {
    "dense": RecurrentAttention(**FIELDS),
    "classic": RecurrentAttention(**FIELDS, detached=True, learned_baseline=True),
}
GENERATOR = np.random.default_rng(0)
BATCH = {
    "images": GENERATOR.normal(size=(B, Y, X, 1)).astype(np.float32),
    "labels": np.array([0, 4, 2], np.int32),
}
START = {"step": np.array(5)}
where_to_look = jax.jit(location_loss, static_argnames=("rollouts", "recipe"))


def parameters(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), BATCH["images"])["params"]
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.float32(generator.normal(0, 0.7, leaf.shape)), shapes)


def values(model, params, key, rollouts=K, std=0.2):
    return model.apply({"params": params}, BATCH["images"], False, std, rollouts, rngs={"alignment": key})


def test_schedule_and_rewards_by_hand():
    stds = jax.jit(jax.vmap(lambda step: glimpses.annealed(step, 4, (0.16, 0.01))))(np.array([0, 1, 2, 4, 9]))
    assert stds.tolist() == pytest.approx([0.16, 0.08, 0.04, 0.01, 0.01])
    assert glimpses.annealed(jnp.array(0), 4, (1, 0.5)) == 1
    logits = jnp.array(np.log([[[0.5, 0.5], [0.25, 0.75], [0.8, 0.2]]]))
    likelihoods = jax.jit(glimpses.log_likelihoods)(logits, jnp.array([1]))
    np.testing.assert_allclose(likelihoods, np.log([[0.5, 0.75, 0.2]]), rtol=1e-5)
    expected = [[(np.log(0.75) + np.log(0.2)) / 2, np.log(0.2)]]
    np.testing.assert_allclose(jax.jit(glimpses.dense_rewards)(likelihoods), expected, rtol=1e-5)
    np.testing.assert_array_equal(glimpses.classic_rewards(jnp.array([1.0, 0.0]), 3), [[1, 1], [0, 0]])


def test_the_location_loss_by_hand():
    # Two pictures, two rollouts of each, one location each: the reward of the same picture's other is the baseline.
    blank = np.zeros((4, 2, 2), np.float32)
    log_probs = np.float32([[9, 0.5], [9, -2], [9, 0.25], [9, 4]])
    baselines = np.float32([[9, 1], [9, 3], [9, 6], [9, 5]])
    seen, reward = Glimpses(blank, blank, blank, blank, log_probs, baselines), np.float32([[4], [1], [30], [50]])
    expected = (4 - 1) * 0.5 + (1 - 4) * -2.0 + (30 - 50) * 0.25 + (50 - 30) * 4.0
    assert where_to_look(seen, reward, 2, "dense") == pytest.approx(-expected / 4)
    expected = (4 - 1) * 0.5 + (1 - 3) * -2.0 + (30 - 6) * 0.25 + (50 - 5) * 4.0
    assert where_to_look(seen, reward, 2, "classic") == pytest.approx(-expected / 4)


@pytest.mark.parametrize("recipe", MODELS)
def test_the_loss_is_the_sum_of_its_parts(recipe):
    model, key = MODELS[recipe], jax.random.key(3)
    params = parameters(model)
    objective = jax.jit(hybrid_loss(model, recipe, steps=10, rollouts=K, std=(0.4, 0.1), penalty=0.3))
    loss, (metrics, carry) = objective(params, BATCH, key, START)
    seen = jax.device_get(jax.jit(partial(values, model, std=0.2))(params, key))
    log_probs = log_softmax(seen.logits, -1)[np.arange(B * K), :, np.repeat(BATCH["labels"], K)]
    right = seen.logits[:, -1].argmax(-1) == np.repeat(BATCH["labels"], K)
    if recipe == "dense":
        entropy, reward = -log_probs.mean(), np.stack([log_probs[:, 1:].mean(1), log_probs[:, 2]], 1)
        rest = 0.0
    else:
        entropy, reward = -log_probs[:, -1].mean(), np.repeat(np.float32(right)[:, None], 2, 1)
        rest = np.square(reward - seen.baselines[:, 1:]).mean()
    where = 0.15 * where_to_look(seen, reward, K, recipe)
    expected = entropy + where + rest + 0.3 * np.square(seen.pre[:, 1:]).mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)
    assert metrics["loss"] == pytest.approx(float(entropy), rel=1e-4)
    assert metrics["reward"] == pytest.approx(float(reward.mean()), rel=1e-4)
    assert metrics["accuracy"] == right.mean() and metrics["std"] == pytest.approx(0.2) and carry["step"] == 6


@pytest.mark.parametrize("recipe", MODELS)
def test_every_parameter_learns_the_locator_too(recipe):
    model = MODELS[recipe]
    # Of the classic reward, 0 or 1 for the right class: so many rollouts that both occur.
    objective = hybrid_loss(model, recipe, steps=10, rollouts=17, penalty=0.0)
    gradient = jax.jit(jax.grad(objective, has_aux=True))(parameters(model), BATCH, jax.random.key(0), START)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 1e-6, path
    assert np.abs(gradient["locator"]["kernel"]).min() > 0


def test_what_is_detached_gets_nothing_from_the_location_or_the_baseline():
    model = MODELS["classic"]

    def loss(params):
        seen = values(model, params, jax.random.key(0))
        return location_loss(seen, jnp.arange(B * K * 2.0).reshape(-1, 2), K, "classic") + jnp.sum(seen.baselines)

    gradient = jax.jit(jax.grad(loss))(parameters(model))
    norms = {name: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(part)) for name, part in gradient.items()}
    assert {name for name, norm in norms.items() if norm > 0} == {"locator", "baseline"}
    attached = jax.jit(jax.grad(lambda params: jnp.sum(values(MODELS["dense"], params, jax.random.key(0)).log_probs)))
    assert np.abs(attached(parameters(MODELS["dense"]))["core"]["recurrent"]).max() > 0


def exact_gradient(model, params, batch, std):
    """Of minus the expected reward of the second of two glimpses, by the locator: a sum over a fine grid of places.

    `-sum_l r(l) grad N(l; m, std) dl`; the reward at l is the model's, its locator set to give l.
    """
    line = (np.arange(200) + 0.5) / 100 - 1
    places = jnp.asarray(np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2), jnp.float32)

    def reward(place):
        there = {"kernel": jnp.zeros_like(params["locator"]["kernel"]), "bias": jnp.arctanh(place)}
        seen = model.apply({"params": {**params, "locator": there}}, batch["images"])
        return glimpses.log_likelihoods(seen.logits, batch["labels"])[0, 1]

    rewards = jax.lax.map(reward, places, batch_size=8000)

    def expected(params):
        mean = model.apply({"params": params}, batch["images"]).means[0, 1]
        density = jnp.exp(log_density(places, jnp.broadcast_to(mean, places.shape), jnp.float32(std)))
        return -jnp.sum(rewards * density) * (2 / 200) ** 2

    return jax.grad(expected)(params)


@pytest.mark.parametrize("recipe", ["dense", "classic"])
def test_the_estimate_is_unbiased_of_the_exact_gradient(recipe):
    """The mean over many samples lies within 4 standard errors, for every parameter that decides where to look."""
    fields = {"classes": 3, "units": 2, "hidden": 3, "glimpses": 2, "size": 2, "scales": 1, "first": "centre"}
    model = RecurrentAttention(**fields, learned_baseline=True)
    batch = {"images": 2 * BATCH["images"][:1, :5, :7], "labels": np.array([1], np.int32)}
    params = parameters(model)
    # A mean that is far from the border, which no sample should reach; and a baseline that is good enough.
    params["locator"] = jax.tree.map(lambda leaf: leaf * 0.2, params["locator"])
    params["baseline"] = {"kernel": np.zeros((2, 1), np.float32), "bias": np.log(np.float32([1 / 3]))}
    params["output"]["kernel"] *= 3

    def estimate(params, key):
        seen = model.apply({"params": params}, batch["images"], False, 0.2, 32, rngs={"alignment": key})
        reward = glimpses.log_likelihoods(seen.logits, jnp.repeat(batch["labels"], 32))[:, 1:]
        return location_loss(seen, reward, 32, recipe)

    exact = jax.jit(partial(exact_gradient, model, batch=batch, std=0.2))(params)
    several = jax.jit(jax.vmap(jax.grad(estimate), (None, 0)))(params, jax.random.split(jax.random.key(1), 500))
    exact, several = jax.device_get((exact, several))  # whose statistics NumPy computes
    moved = 0
    for (path, wanted), found in zip(jax.tree_util.tree_leaves_with_path(exact), jax.tree.leaves(several), strict=True):
        error = np.std(found, 0) / np.sqrt(len(found))
        assert np.all(np.abs(np.mean(found, 0) - wanted) <= 4 * error + 1e-7), path
        moved += int(np.sum(np.abs(wanted) > 8 * error))
    assert moved >= 4  # an estimate of zeros would not pass


@pytest.mark.parametrize(("recipe", "locations"), [("dense", "policy"), ("dense", "random"), ("classic", "random")])
def test_a_baseline_that_nothing_would_teach_is_refused(recipe, locations):
    model = RecurrentAttention(**FIELDS, learned_baseline=True, locations=locations)
    with pytest.raises(ValueError, match=f"learned baseline learns .* got '{recipe}' and '{locations}'"):
        hybrid_loss(model, recipe, steps=10, rollouts=K)


def test_random_locations_have_no_loss_but_the_classes():
    model = RecurrentAttention(**FIELDS, locations="random")
    loss, (metrics, _) = jax.jit(hybrid_loss(model, steps=10, rollouts=K))(
        parameters(model), BATCH, jax.random.key(0), START
    )
    assert loss == metrics["loss"]


def test_pointing_by_hand():
    # On 8 x 10 pixels the middle is (4, 5): just outside a box that ends there and inside one that begins there.
    places = np.float32([[0, 0], [0, 0], [-1, 1]])
    boxes = np.float32([[0, 0, 4, 6], [4, 5, 8, 10], [-3, 8, 2, 10]])
    inside, chance = pointing(places, boxes, 8, 10)
    assert inside.tolist() == [False, True, False]
    np.testing.assert_allclose(chance, [24 / 80, 20 / 80, 4 / 80])


@pytest.fixture(scope="module")
def experiment():
    data = translated_digits(
        4, canvas=23, size=11, train_examples=8, dev_examples=6, test_examples=5, held_out=2, distort=0.0
    )
    model = RecurrentAttention(10, **{name: value for name, value in FIELDS.items() if name != "classes"})
    return glimpsing("small", model, data, optimizer=optimizer("adam", 1e-2), steps=4, rollouts=K)


@pytest.fixture(scope="module")
def state(experiment):
    """After two steps."""
    step = jax.jit(train_step(experiment.objective, experiment.optimizer))
    batches = iter(experiment.data.train(0))
    state = jax.jit(partial(initial_state, experiment))(next(batches))
    for _ in range(2):
        before, (state, _) = state, step(state, next(batches))
    assert state.carry["step"] == 2
    assert np.any(before.params["locator"]["bias"] != state.params["locator"]["bias"])
    return state


def test_every_row_is_judged_once(experiment, state):
    found = experiment.evaluate(state.params, "dev")
    look = experiment.evaluate.__self__.look  # which is compiled
    right, on, area = [], [], []
    for batch in experiment.data.split("dev"):
        seen = jax.device_get(look(state.params, batch["images"]))
        for row in np.flatnonzero(batch["valid"]):
            y, x = (seen.locations[row, 2] + 1) / 2 * 23
            top, left, bottom, right_side = batch["boxes"][row]
            right.append(int(np.argmax(seen.logits[row, -1])) == batch["labels"][row])
            on.append(top <= y < bottom and left <= x < right_side)
            area.append((bottom - top) * (right_side - left) / 23**2)
    assert len(right) == 6 and found["accuracy"] == pytest.approx(np.mean(right))
    assert found["error_rate"] == pytest.approx(1 - np.mean(right))
    assert found["pointing_accuracy"] == pytest.approx(np.mean(on))
    assert found["chance_pointing"] == pytest.approx(np.mean(area), rel=1e-5)
    assert found["pointing_ratio"] == pytest.approx(np.mean(on) / np.mean(area), rel=1e-5)


@pytest.mark.parametrize(("places", "judged"), [([9, 9, 1, 9], 1), ([1, 1, 9, 1], 0), ([9, 1], 1)])
def test_the_third_glimpse_is_asked_whether_it_is_on_the_object(places, judged):
    """The last one, where there are fewer. On 10 x 10 pixels; the box is the upper left quarter."""
    locations = np.float32([[[place / 5 - 1, place / 5 - 1] for place in places]])
    seen = Glimpses(np.zeros((1, len(places), N)), *(locations,) * 3, *(np.zeros(locations.shape[:2]),) * 2)
    batch = {"images": np.zeros((1, 10, 10, 1)), "labels": np.array([0]), "boxes": np.float32([[0, 0, 5, 5]])}
    judge = Judge(MODELS["dense"], SimpleNamespace(split=lambda name: [{**batch, "valid": np.array([True])}]))
    judge.__dict__["look"] = lambda params, images: seen
    found = judge.evaluate({})
    assert found["pointing_accuracy"] == judged and found["chance_pointing"] == 0.25
    assert found["glimpse_distance"] == pytest.approx(np.abs(np.diff(places)).mean() / 5 * 2**0.5)


def test_a_file_is_named_and_drawn_and_the_dev_split_too(experiment, state, tmp_path):
    imsave(tmp_path / "digit.png", np.eye(23), cmap="gray")
    (prediction,) = experiment.predict(state.params, [str(tmp_path / "digit.png")])
    name, chance = prediction.text.split("\t")
    assert name in experiment.data.labels and 0.1 <= float(chance) <= 1
    prediction.plot(tmp_path / "seen.png")
    assert (tmp_path / "seen.png").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"none\.png cannot be read as a picture"):
        list(experiment.predict(state.params, [str(tmp_path / "none.png")]))
    experiment.draw(state.params, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("glimpses_*.png")) == [f"glimpses_{n}.png" for n in range(1, 5)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"recipe": "best"}, "recipe is one of dense, classic; got 'best'"),
        ({"rollouts": 1}, "rollouts is at least 2 in the recipe 'dense'; got 1"),
        ({"std": (0.1, 0.0)}, r"std is above 0, first and last; got 0\.1 and 0\.0"),
        ({"recipe": "classic"}, "the recipe 'classic' needs a model with a learned baseline"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        hybrid_loss(MODELS["dense"], steps=3, **arguments)

"""The Recurrent Attention Model: against its equations in numpy, what is drawn, rollouts, transforms, the control."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from attention_zoo.functional.retina import retina
from attention_zoo.models import RecurrentAttention
from attention_zoo.models.glimpse import log_density

B, Y, X, C, N, T, K = 3, 13, 17, 2, 5, 3, 101
FIELDS = {"classes": N, "units": 6, "hidden": 11, "glimpses": T, "size": 3, "scales": 2}
MODEL = RecurrentAttention(**FIELDS, learned_baseline=True)
IMAGES = np.random.default_rng(0).normal(size=(B, Y, X, C)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)["params"]
    generator = np.random.default_rng(1)
    # Larger than the usual first values, so that mistakes are visible; and no biases of zero.
    return jax.tree.map(lambda leaf: np.float32(generator.normal(0, 0.7, leaf.shape)), shapes)


@partial(jax.jit, static_argnums=(0, 5))
def look(model, params, images, std, key, rollouts=1):
    return model.apply({"params": params}, images, False, std, rollouts, rngs={"alignment": key})


patches_at = jax.jit(partial(retina, size=FIELDS["size"], scales=FIELDS["scales"]))


@partial(jax.jit, static_argnums=0)
def infer(model, params, images):
    return model.apply({"params": params}, images)


def by_equations(params, images, locations):
    """Logits, locations before the tanh and baselines from given locations, one product after the other."""
    relu, sigmoid = (lambda x: np.maximum(x, 0)), (lambda x: 1 / (1 + np.exp(-x)))
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]  # noqa: E731
    hidden = memory = np.zeros((len(images), FIELDS["units"]))
    logits, pre, baselines = [], [], []
    for step in range(T):
        pre.append(dense("locator", hidden))
        baselines.append(dense("baseline", hidden)[:, 0])
        patches = np.asarray(patches_at(images, locations[:, step])).reshape(len(images), -1)
        both = relu(dense("what", patches)), relu(dense("where", locations[:, step]))
        seen = relu(dense("glimpse", np.concatenate(both, -1)))
        core = params["core"]
        gates = seen @ core["input"]["kernel"] + hidden @ core["recurrent"] + core["recurrent_bias"]
        i, f, g, o = np.split(gates, 4, -1)
        memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(memory)
        logits.append(dense("output", hidden))
    return (np.stack(values, 1) for values in (logits, pre, baselines))


def test_inference_follows_the_equations_and_looks_at_the_means_from_the_centre(params):
    seen = infer(MODEL, params, IMAGES)
    logits, pre, baselines = by_equations(params, IMAGES, np.asarray(seen.locations))
    np.testing.assert_allclose(seen.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.pre[:, 1:], pre[:, 1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.baselines, baselines, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.locations[:, 1:], np.tanh(pre[:, 1:]), rtol=1e-4, atol=1e-5)
    assert not np.any(seen.locations[:, 0]) and not np.any(seen.pre[:, 0]) and not np.any(seen.log_probs[:, 0])
    assert len({tuple(place) for place in np.asarray(seen.locations).reshape(-1, 2).round(5).tolist()}) == 1 + B * (
        T - 1
    )


def test_training_follows_the_equations_at_the_locations_that_it_drew(params):
    seen = look(MODEL, params, IMAGES, 0.3, jax.random.key(2))
    logits, pre, _ = by_equations(params, IMAGES, np.asarray(seen.locations))
    np.testing.assert_allclose(seen.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.means[:, 1:], np.tanh(pre[:, 1:]), rtol=1e-4, atol=1e-5)


def test_what_is_drawn_is_gaussian_and_has_its_density(params):
    seen = look(MODEL, params, IMAGES, 0.02, jax.random.key(3), K)
    inside = np.all(np.abs(seen.locations) < 1, -1)[:, 1:]
    drawn, means, log_probs = (np.asarray(part)[:, 1:][inside] for part in (seen.locations, seen.means, seen.log_probs))
    expected = norm.logpdf(drawn, means, 0.02).sum(-1)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-3, atol=1e-3)
    noise = ((drawn - means) / 0.02).ravel()
    assert len(noise) > 1000
    assert abs(noise.mean()) < 4 / len(noise) ** 0.5 and abs(noise.var() - 1) < 4 * (2 / len(noise)) ** 0.5


def test_the_density_by_hand():
    # At one standard deviation down and two across: -(1 + 4) / 2 - log(2 pi s^2).
    value = log_density(jnp.array([0.7, 0.9]), jnp.array([0.2, -0.1]), jnp.array(0.5))
    assert value == pytest.approx(-2.5 - np.log(2 * np.pi * 0.25), rel=1e-6)


def test_what_is_drawn_beyond_the_border_is_moved_to_it_and_keeps_its_density(params):
    seen = look(MODEL, params, IMAGES, 9.0, jax.random.key(4), K)
    assert np.abs(seen.locations).max() == 1
    moved = np.abs(np.asarray(seen.locations)) == 1
    at_border = np.asarray(norm.logpdf(seen.locations, seen.means, 9.0).sum(-1))
    assert np.all(np.asarray(seen.log_probs)[moved.any(-1)] < at_border[moved.any(-1)])


def test_rollouts_stand_beside_each_other_and_share_their_first_glimpse(params):
    seen = look(MODEL, params, IMAGES, 0.3, jax.random.key(5), K)
    places = np.asarray(seen.locations).reshape(B, K, T, 2)
    np.testing.assert_array_equal(places[:, :, 0], np.broadcast_to(places[:, :1, 0], (B, K, 2)))
    assert len(np.unique(places[:, 0, 0], axis=0)) == B and np.all(np.ptp(places[:, :, 1], axis=1) > 0)
    # Without noise a rollout from the centre is inference.
    centred = MODEL.clone(first="centre")
    quiet, expected = look(centred, params, IMAGES, 1e-9, jax.random.key(6), K), infer(MODEL, params, IMAGES)
    np.testing.assert_allclose(quiet.logits, np.repeat(expected.logits, K, 0), rtol=1e-4, atol=1e-5)


def test_batched_equals_single_and_inference_is_deterministic(params):
    single = jax.jit(jax.vmap(lambda image: infer(MODEL, params, image[None])))(IMAGES)
    jax.tree.map(
        lambda one, all: np.testing.assert_allclose(one[:, 0], all, rtol=1e-4, atol=1e-5),
        single,
        infer(MODEL, params, IMAGES),
    )
    jax.tree.map(np.testing.assert_array_equal, infer(MODEL, params, IMAGES), infer(MODEL, params, IMAGES))


def test_checkpointing_changes_no_gradient(params):
    def loss(params, wrap):
        run = wrap(lambda params: look.__wrapped__(MODEL, params, IMAGES, 0.3, jax.random.key(7), 2))
        seen = run(params)
        return jnp.sum(jnp.square(seen.logits)) + jnp.sum(seen.log_probs)

    plain, saved = (jax.jit(jax.grad(partial(loss, wrap=wrap)))(params) for wrap in (lambda run: run, jax.checkpoint))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), plain, saved)


def test_random_locations_are_uniform_and_the_same_at_every_inference(params):
    control = RecurrentAttention(**FIELDS, locations="random")
    assert "locator" not in jax.eval_shape(control.init, jax.random.key(0), IMAGES)["params"]
    seen = look(control, params, IMAGES, 0.3, jax.random.key(8), K)
    places = np.asarray(seen.locations).ravel()
    assert abs(places.mean()) < 4 / (3 * len(places)) ** 0.5 and abs(places.var() - 1 / 3) < 0.03
    assert not np.any(seen.log_probs) and not np.any(seen.pre)
    first, again = infer(control, params, IMAGES), infer(control, params, IMAGES)
    np.testing.assert_array_equal(first.locations, again.locations)
    np.testing.assert_array_equal(infer(control, params, IMAGES[::-1]).locations, first.locations)  # another batch
    assert np.all(np.ptp(first.locations, axis=(0, 1)) > 0)


def test_the_dtype_is_that_of_the_computation_and_places_stay_exact():
    model = RecurrentAttention(**FIELDS, learned_baseline=True, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    seen = jax.eval_shape(partial(look.__wrapped__, model), shapes["params"], IMAGES, 0.1, jax.random.key(0))
    assert [part.dtype for part in seen] == [jnp.bfloat16, *[jnp.float32] * 5]


def test_an_exported_model_says_the_same(params):
    exported = jax.export.export(jax.jit(lambda params, images: infer(MODEL, params, images)[0]))(params, IMAGES)
    np.testing.assert_allclose(exported.call(params, IMAGES), infer(MODEL, params, IMAGES).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"locations": "best"}, "locations is one of policy, random; got 'best'"),
        ({"first": "corner"}, "first is one of random, centre; got 'corner'"),
        ({"glimpses": 0}, "glimpses is at least 1; got 0"),
    ],
)
def test_unknown_fields_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(RecurrentAttention(**{**FIELDS, **fields}).init, jax.random.key(0), IMAGES)


def test_a_width_may_be_an_integer_but_not_zero(params):
    def seen(std):
        drawn = MODEL.apply({"params": params}, IMAGES, False, std, rngs={"alignment": jax.random.key(0)})
        return drawn, log_density(jnp.ones(2), jnp.zeros(2), std)

    jax.tree.map(np.testing.assert_array_equal, *jax.jit(lambda: (seen(1), seen(1.0)))())
    for std in (0.0, 0):
        with pytest.raises(ValueError, match=f"std is above 0; got {std}"):
            jax.eval_shape(partial(seen, std))

"""The captioner: its equations in numpy, decoding, masks, JAX's transformations, and what it refuses.

What training adds is in test_captioner_training.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from attention_zoo.functional.positions import sinusoidal_2d
from attention_zoo.functional.search import beam, greedy
from attention_zoo.modules.vision import ConvEncoder
from tests.models.captioners import (
    ALIKE,
    EVERY,
    MASK,
    SIZES,
    B,
    Q,
    R,
    S,
    T,
    V,
    by_hand,
    captioner,
    close,
    inputs,
    is_zero,
    likeliest,
    log_softmax,
    parameters,
    soft,
)
from tests.quick import quick

IMAGES, TOKENS = inputs()
every_kind = pytest.mark.parametrize("kind", EVERY)
some_kinds = pytest.mark.parametrize("kind", ["soft", "hard", "marginal"])
LOOKS_ONCE = ("hard", "straight_through")


@cache
def make(kind, **fields):
    model = captioner(kind, **fields)
    return model, parameters(model, IMAGES, TOKENS)


@cache
def writer(kind, decided=True, **fields):
    """Compiled: `from_start` of (params, images, tokens, mask), in arrays of numpy."""
    compiled = quick(partial(from_start, captioner(kind, **fields), deterministic=decided))
    return lambda *arguments: jax.device_get(compiled(*arguments))


def from_start(model, params, images, tokens, mask=None, **options):
    """What `write` gives from the first word on."""
    noise = {"alignment": jax.random.key(5)}
    cache = model.apply({"params": params}, images, mask, method="start")
    return model.apply({"params": params}, cache, tokens, method="write", rngs=noise, **options)


def latent(written, best=S):
    """`log sum_s alpha_ts p(y | s)` by force; what sees nothing has the one context of zeros."""
    weights = np.array(written.weights, np.float64)
    weights[weights < np.sort(weights, -1)[..., -best, None]] = 0
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    summed = np.log(np.maximum(np.sum(weights[..., None] * np.exp(log_softmax(written.everywhere)), 2), 1e-30))
    return np.where(MASK.any(1)[:, None, None], summed, log_softmax(written.logits))


@every_kind
def test_the_equations_word_by_word(kind):
    _, params = make(kind)
    found = writer(kind)(params, IMAGES, TOKENS, MASK)
    choose = likeliest(MASK) if kind in LOOKS_ONCE else soft(MASK)
    expected = by_hand(params, IMAGES, TOKENS, choose, MASK)
    close(found.alignment.weights, expected.weights, rtol=1e-4, atol=1e-5)
    logits = latent(expected) if kind in ("marginal", "variational") else expected.logits
    close(found.logits, logits, rtol=1e-4, atol=1e-4)
    if kind in ("marginal", "variational"):
        close(np.log(np.exp(found.logits).sum(-1)), np.zeros((B, T)), atol=1e-5)
    chances = np.log(np.maximum(soft(MASK[:, None])(0, expected.scores), 1e-30))
    close(found.log_weights[:2][:, :, MASK[1]], chances[:2][:, :, MASK[1]], rtol=1e-4, atol=1e-4)
    if kind in LOOKS_ONCE:
        close(found.alignment.log_prob[:2], chances[:2].max(-1), rtol=1e-4, atol=1e-4)
        close(found.alignment.entropy[:2], -np.sum(np.exp(chances) * chances, -1)[:2], rtol=1e-4, atol=1e-4)


def test_pictures_go_through_the_encoder_and_know_their_places():
    model = captioner(encoder=ConvEncoder((3, V), (2, 2)), located=True)
    pictures = np.random.default_rng(2).normal(size=(B, 7, 18, 3)).astype(np.float32)
    params = parameters(model, pictures, TOKENS)
    (logits, alignment), grid, places = quick(
        lambda params: (
            model.apply({"params": params}, pictures, TOKENS),
            model.encoder.apply({"params": params["encoder"]}, pictures),
            sinusoidal_2d(R, Q, V),
        )
    )(params)
    assert grid.shape == (B, R, Q, V)
    annotations = np.asarray(grid) + np.asarray(places).reshape(R, Q, V)
    expected = by_hand(params, annotations, TOKENS, soft(np.ones((B, S), bool)))
    close((logits, alignment.weights), (expected.logits, expected.weights), rtol=1e-4, atol=1e-5)


def test_soft_hard_and_latent_coincide_where_the_alignment_is_one_hot():
    """With the same parameters, also where training samples: the scores are so far apart that noise decides nothing."""
    params = parameters(captioner("variational"), IMAGES, TOKENS, sharpness=1e4)
    expected = by_hand(params, IMAGES, TOKENS, likeliest(MASK), MASK)
    assert len(np.unique(expected.weights.argmax(-1))) > 2
    for kind, decided in [*((kind, True) for kind in ALIKE), ("hard", False), ("straight_through", False)]:
        found = writer(kind, decided)(params, IMAGES, TOKENS, MASK)
        close(found.alignment.weights, expected.weights, atol=1e-6)
        close(log_softmax(np.asarray(found.logits)), log_softmax(expected.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decided", [True, False])
def test_rows_that_expect_are_soft_and_the_others_look_once(decided):
    model, params = make("hard")
    rows = np.array([True, False, False])
    run = quick(partial(from_start, model, deterministic=decided))
    found = jax.device_get(run(params, IMAGES, TOKENS, MASK, expected=rows))
    same = writer("soft")(params, IMAGES, TOKENS, MASK)
    close((found.logits[0], found.alignment.weights[0]), (same.logits[0], same.alignment.weights[0]))
    assert is_zero(found.alignment.log_prob[0]) and is_zero(found.alignment.entropy[0])
    weights, log_weights = np.asarray(found.alignment.weights[1]), np.asarray(found.log_weights[1])
    assert set(np.unique(weights)) == {0, 1} and np.all(weights.sum(-1) == 1)
    # What was drawn has its probability.
    close(found.alignment.log_prob[1], np.sum(weights * np.where(weights, log_weights, 0), -1), rtol=1e-4)


@pytest.mark.parametrize(("best", "decided"), [(1, True), (2, True), (S, True), (S + 13, True), (1, False)])
def test_the_best_locations_stand_for_all_at_inference_only(best, decided):
    _, params = make("marginal")
    found = writer("marginal", decided, best=best)(params, IMAGES, TOKENS, MASK)
    written = by_hand(params, IMAGES, TOKENS, soft(MASK), MASK)
    close(found.logits, latent(written, min(best, S) if decided else S), rtol=1e-4, atol=1e-4)
    assert np.abs(latent(written, 1) - latent(written, S)).max() > 0.1


def test_soft_and_hard_have_the_same_parameters():
    shapes = {kind: jax.eval_shape(make(kind)[0].init, jax.random.key(0), IMAGES, TOKENS) for kind in EVERY}
    for kind in set(EVERY) - {"variational"}:
        assert shapes[kind] == shapes["soft"], kind
    assert set(shapes["variational"]["params"]) - set(shapes["soft"]["params"]) == {"posterior"}
    baseline = jax.eval_shape(captioner("hard", baseline=True).init, jax.random.key(0), IMAGES, TOKENS)
    assert baseline["params"].pop("value")["kernel"].shape == (SIZES["units"], 1)
    assert baseline == shapes["soft"]


@every_kind
def test_decode_equivalence(kind):
    """Teacher forced == step by step == in chunks of 2, both in a scan."""
    model, params = make(kind)
    in_chunks = np.stack(np.split(TOKENS, T // 2, axis=1))

    @quick
    def every_way(params):
        apply = partial(model.apply, {"params": params})
        start = apply(IMAGES, MASK, method="start")

        def step(cache, tokens):
            logits, cache, alignment = apply(cache, tokens, method="step")
            return cache, (logits, alignment)

        def chunk(cache, tokens):
            logits, cache, alignment = apply(cache, tokens, method="extend")
            return cache, (logits, alignment)

        steps, chunks = jax.lax.scan(step, start, TOKENS.T)[1], jax.lax.scan(chunk, start, in_chunks)[1]
        return chunk(start, TOKENS)[1], steps, chunks

    expected, steps, chunks = jax.device_get(every_way(params))
    close(jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 1), steps), expected)
    close(jax.tree.map(lambda leaf: np.concatenate(leaf, 1), chunks), expected)


@some_kinds
def test_greedy_search_is_a_beam_of_one_and_follows_the_teacher(kind):
    model, params = make(kind)

    @quick
    def search(params):
        apply = partial(model.apply, {"params": params})
        start, first, options = apply(IMAGES, MASK, method="start"), jnp.ones(B, jnp.int32), {"end": 2, "max_length": T}
        found = greedy(partial(apply, method="step"), start, first, **options)
        beamed = beam(partial(apply, method="step"), start, first, width=1, **options)
        fed = jnp.concatenate([first[:, None], found.tokens[:, :-1]], 1)
        return found, beamed, apply(start, fed, method="extend")

    found, beamed, (logits, _, alignment) = jax.device_get(search(params))
    np.testing.assert_array_equal(beamed.tokens[:, 0], found.tokens)
    for row, length in enumerate(found.lengths):
        np.testing.assert_array_equal(found.tokens[row, :length], logits[row].argmax(-1)[:length])
        close(found.alignment.weights[row, :length], alignment.weights[row, :length])
        close(found.scores[row], np.max(log_softmax(np.asarray(logits[row])), -1)[:length].sum(), atol=1e-4)


@some_kinds
def test_what_is_masked_is_neither_seen_nor_learned_from(kind):
    model, params = make(kind)

    def loss(images, params):
        found = from_start(model, params, images, TOKENS, MASK, deterministic=False)
        # The logits of each word, and the choice, which has a gradient of its own.
        numbers = jnp.vdot(found.logits, jnp.cos(jnp.arange(found.logits.size)).reshape(found.logits.shape))
        chosen = 0.0 if found.alignment.log_prob is None else jnp.sum(found.alignment.log_prob)
        return numbers + chosen, found

    (by_image, by_parameter), found = quick(jax.grad(loss, (0, 1), has_aux=True))(IMAGES, params)
    by_location = np.abs(np.asarray(by_image).reshape(B, S, V)).max(-1)
    assert not by_location[~MASK].any() and by_location[MASK].min() > 0
    assert not np.asarray(found.alignment.weights).swapaxes(1, 2)[~MASK].any()
    for leaf in jax.tree.leaves((by_parameter, found.logits, found.alignment)):
        assert np.isfinite(leaf).all()
    # Nothing to look at: the context is zero.
    nothing = by_hand(params, IMAGES[2:], TOKENS[2:], soft(MASK[2:]), MASK[2:]).logits
    close(log_softmax(np.asarray(found.logits[2:])), log_softmax(nothing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["hard", "marginal"])  # of soft attention both have all
def test_vmap_export_and_checkpoint(kind, float64):
    model, params = make(kind)
    params, images = jax.tree.map(np.float64, params), np.float64(IMAGES)

    def loss(params, images, tokens):
        logits, alignment = model.apply({"params": params}, images, tokens)
        return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.cos(alignment.weights)), logits

    @jax.jit
    def transformed(params, images, tokens):
        one = jax.vmap(lambda image, tokens: loss(params, image[None], tokens[None])[1][0])
        return jax.value_and_grad(jax.checkpoint(loss), has_aux=True)(params, images, tokens), one(images, tokens)

    expected = quick(jax.value_and_grad(loss, has_aux=True))(params, images, TOKENS)
    found, one_by_one = jax.export.export(transformed)(params, images, TOKENS).call(params, images, TOKENS)
    assert one_by_one.dtype == jnp.float64
    close((found, one_by_one), (expected, expected[0][1]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention": "sot"}, "attention is one of soft, hard, .*; got 'sot'"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\), .*; got \(1.0, 1.0, None\)"),
        ({"temperature": 0.0}, r"temperature is above 0 .*; got \(0.0, 0.0, None\)"),
        ({"best": 0}, r"best at least 1; got \(0.0, 1.0, 0\)"),
        ({"encoder": ConvEncoder((3, 6), (1, 1)), "located": True}, "sinusoidal_2d: .* multiple of 4.*; got 6"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(captioner(**fields).init, jax.random.key(0), IMAGES, TOKENS)


def test_a_wrong_shape_is_refused():
    model, params = make("soft")
    with pytest.raises(TypeCheckError, match="tokens"):
        model.apply({"params": params}, IMAGES, TOKENS[:2])
    with pytest.raises(TypeCheckError, match="mask"):
        model.apply({"params": params}, IMAGES, MASK[:, :3, None], method="start")

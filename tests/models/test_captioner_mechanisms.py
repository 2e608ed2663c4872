"""The captioner with the zoo's other scores, alignments and pasts: by hand, decoded, refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.search import beam, greedy
from attention_zoo.functional.sparse import entmax15, sparsemax, tempered, top_k
from attention_zoo.modules.vision import ConvEncoder
from tests.models.captioners import (
    MASK,
    SIZES,
    B,
    Q,
    R,
    S,
    T,
    by_hand,
    captioner,
    close,
    inputs,
    likeliest,
    log_softmax,
    parameters,
    quick,
)

IMAGES, TOKENS = inputs()
WIDE = inputs(grid=(R, Q, SIZES["units"]))[0]  # annotations as wide as the state, which a dot product needs
FUNCTIONS = {
    "tempered": partial(tempered, temperature=0.5),
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "top_k": partial(top_k, k=2),
}
FEW = {"temperature": 0.5, "kept": 2, "chunk": 2, "positions": S, "annotation_width": SIZES["units"]}
GOLDEN = [0.0581752, -0.0767357, 0.4176367]


@cache
def make(attention, images="narrow", **fields):
    model = captioner(attention, **{**FEW, **fields})
    return model, parameters(model, IMAGES if images == "narrow" else WIDE, TOKENS)


def write(model, params, images, tokens, **options):
    cache = model.apply({"params": params}, images, MASK, method="start")
    noise = {"alignment": jax.random.key(5)}
    return model.apply({"params": params}, cache, tokens, method="write", rngs=noise, **options)


@pytest.mark.parametrize(
    ("attention", "alignment"),
    [("soft", "tempered"), ("marginal", "entmax15"), ("hard", "top_k"), ("hard", "sparsemax")],
)
def test_the_equations_word_by_word(attention, alignment):
    model, params = make(attention, alignment=alignment)
    found = quick(partial(write, model, deterministic=True))(params, IMAGES, TOKENS)
    align = lambda t, scores: np.asarray(FUNCTIONS[alignment](scores, MASK))  # noqa: E731
    expected = by_hand(params, IMAGES, TOKENS, likeliest(MASK) if attention == "hard" else align, MASK)
    close(found.alignment.weights, expected.weights, rtol=1e-4, atol=1e-5)
    chances = np.asarray(FUNCTIONS[alignment](expected.scores, MASK[:, None]))
    assert attention == "soft" or np.any(chances[0] == 0)
    close(np.exp(found.log_weights[:2]), chances[:2], rtol=1e-4, atol=1e-5)
    logits = expected.logits
    if attention == "marginal":
        words = np.sum(chances[..., None] * np.exp(log_softmax(expected.everywhere)), 2)
        logits = np.where(MASK.any(1)[:, None, None], np.log(np.maximum(words, 1e-30)), log_softmax(logits))
    close(found.logits, logits, rtol=1e-4, atol=1e-4)
    if attention == "hard":
        close(found.alignment.log_prob[:2], np.log(chances[:2].max(-1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alignment", ["sparsemax", "entmax15", "top_k"])
def test_samples_of_sparse_attention_estimate_the_gradient_of_its_expectation(alignment, float64):
    """`E[r grad log p] = grad E[r]`: a location of weight zero is never drawn, and its weight has no gradient."""
    params, images, tokens = jax.tree.map(np.float64, make("hard", alignment=alignment)[1]), np.float64(IMAGES), TOKENS
    rewards = np.random.default_rng(4).normal(size=(B, 1, S))
    hard, soft = (make(attention, alignment=alignment)[0] for attention in ("hard", "soft"))

    def sampled(score):
        found = write(hard, {**params, "score": score}, images, tokens[:, :1])
        possible = found.log_weights > -jnp.inf
        chances = jax.lax.stop_gradient(jnp.where(possible, jnp.exp(found.log_weights), 0))
        seen = jnp.where(possible, found.log_weights, 0) * MASK.any(1)[:, None, None]
        return jnp.sum(rewards * chances * seen), (found, possible)

    def expected(score):
        found = write(soft, {**params, "score": score}, images, tokens[:, :1])
        return jnp.sum(rewards * found.alignment.weights)

    estimate, (found, possible) = quick(jax.grad(sampled, has_aux=True))(params["score"])
    close(estimate, quick(jax.grad(expected))(params["score"]), rtol=1e-9, atol=1e-12)
    assert np.abs(estimate["energy"]).max() > 1e-3
    drawn = np.asarray(found.alignment.weights[:2]) > 0
    assert np.all(drawn.sum(-1) == 1) and np.all(possible[:2][drawn])
    close(found.alignment.log_prob[:2][..., None][drawn.any(-1)], found.log_weights[:2][drawn][:, None], rtol=1e-9)


@pytest.mark.parametrize(
    "fields",
    [
        {"score": "dot", "alignment": "mocha", "past": "coverage", "fertility": 2.0},
        {"score": "cosine", "alignment": "monotonic", "past": "location", "filter_width": 3},
        {"attention": "hard", "score": "location", "alignment": "entmax15"},
    ],
    ids=str,
)
def test_decoding_is_the_same_at_once_by_chunks_and_by_a_beam_of_one(fields):
    model, params = make(**{"attention": "soft", "images": "wide", **fields})

    @quick
    def every_way(params):
        apply = partial(model.apply, {"params": params})
        start, first, options = apply(WIDE, MASK, method="start"), jnp.ones(B, jnp.int32), {"end": 2, "max_length": T}
        found = greedy(partial(apply, method="step"), start, first, **options)
        beamed = beam(partial(apply, method="step"), start, first, width=1, **options)
        fed = jnp.concatenate([first[:, None], found.tokens[:, :-1]], 1)
        logits, after, looked = apply(start, fed, method="extend")
        one, between, _ = apply(start, fed[:, :1], method="extend")
        rest, end, _ = apply(between, fed[:, 1:], method="extend")
        return found, beamed, (logits, looked, after), (one, rest, end)

    found, beamed, (logits, looked, after), (one, rest, end) = every_way(params)
    np.testing.assert_array_equal(beamed.tokens[:, 0], found.tokens)
    close((jnp.concatenate([one, rest], 1), end), (logits, after))
    for row, length in enumerate(found.lengths):
        np.testing.assert_array_equal(found.tokens[row, :length], logits[row].argmax(-1)[:length])
        close(found.alignment.weights[row, :length], looked.weights[row, :length])
        close(beamed.alignment.weights[row, 0, :length], looked.weights[row, :length])


def test_default_parameters_are_where_they_were_and_drawn_as_they_were():
    """As the captioner drew them when it had the additive score with the softmax alone."""
    found = jax.eval_shape(captioner().init, jax.random.key(3), IMAGES, TOKENS)["params"]
    layers = ("cell", "embed", "enter", "first_hidden", "first_memory", "from_context", "from_state", "gate", "output")
    assert set(found) == {*layers, "score"} and set(found["score"]) == {"query", "key", "energy"}
    drawn = quick(partial(captioner().init, method="start"))(jax.random.key(3), IMAGES)["params"]
    close(drawn["score"]["energy"][:3], GOLDEN, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"score": "adittive"}, "score is one of additive, .*; got 'adittive'"),
        ({"past": "all"}, "past is one of none, location, coverage; got 'all'"),
        ({"alignment": "local_p"}, "attention 'soft' goes with alignment softmax, .*, straight_through; got 'local_p'"),
        ({"attention": "hard", "alignment": "mocha"}, "attention 'hard' goes with alignment softmax, .*; got 'mocha'"),
        ({"attention": "variational", "alignment": "sparsemax"}, "'variational' goes with alignment softmax; got 'spa"),
        ({"attention": "marginal", "past": "coverage"}, "past 'coverage' goes with attention 'soft'; got 'marginal'"),
        ({"fertility": 2.0}, "fertility divides the past 'coverage'; got 2.0 and past 'none'"),
        ({"score": "location", "past": "location"}, "LocationSensitive enriches keys, and Location does not look at"),
        ({"score": "dot"}, "score 'dot' needs annotations of width 11; got 4"),
        ({"score": "cosine", "annotation_width": 5}, "score 'cosine' needs annotations of width 5; got 4"),
        ({"score": "cosine", "annotation_width": None}, "score 'cosine' asks how wide annotations are"),
        ({"alignment": "top_k", "kept": 0}, "top_k: k is at least 1; got 0"),
    ],
)
def test_mechanisms_that_do_not_fit_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(captioner(**{**FEW, **fields}).init, jax.random.key(0), IMAGES, TOKENS)


def test_the_encoder_tells_the_cosine_score_how_wide_annotations_are():
    model = captioner(encoder=ConvEncoder((3, 5), (1, 1)), score="cosine")
    found = jax.eval_shape(model.init, jax.random.key(0), IMAGES, TOKENS)["params"]
    assert found["score"]["query"]["kernel"].shape == (SIZES["units"], 5)

"""The captioner with the zoo's other scores, alignments and pasts: by hand, decoded, refused."""

from functools import cache, partial
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from attention_zoo.functional import latent
from attention_zoo.functional.search import beam, greedy
from attention_zoo.functional.sparse import entmax15, sparsemax, tempered, top_k
from attention_zoo.models import Seq2Seq
from attention_zoo.models.caption_attention import look
from attention_zoo.models.mechanisms import COUNTS
from attention_zoo.modules.attention import Attention
from attention_zoo.modules.memory import Memory
from attention_zoo.modules.vision import ConvEncoder
from tests.models.captioners import (
    MASK,
    SIZES,
    B,
    N,
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
)
from tests.quick import quick

IMAGES, TOKENS = inputs()
WIDE = inputs(grid=(R, Q, SIZES["units"]))[0]  # annotations as wide as the state, which a dot product needs
FUNCTIONS = {
    "tempered": partial(tempered, temperature=0.5),
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "top_k": partial(top_k, k=2),
}
FEW = {"temperature": 0.5, "kept": 2, "chunk": 2, "positions": S, "annotation_width": SIZES["units"]}
ENCODER = ConvEncoder((3, 5), (1, 1))
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
    found = jax.device_get(quick(partial(write, model, deterministic=True))(params, IMAGES, TOKENS))
    align = jax.jit(FUNCTIONS[alignment])
    choose = likeliest(MASK) if attention == "hard" else lambda t, scores: np.asarray(align(scores, MASK))
    expected = by_hand(params, IMAGES, TOKENS, choose, MASK)
    close(found.alignment.weights, expected.weights, rtol=1e-4, atol=1e-5)
    chances = np.asarray(align(expected.scores, MASK[:, None]))
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

    both = quick(lambda score: (jax.grad(sampled, has_aux=True)(score), jax.grad(expected)(score)))
    (estimate, (found, possible)), exact = jax.device_get(both(params["score"]))
    close(estimate, exact, rtol=1e-9, atol=1e-12)
    assert np.abs(estimate["energy"]).max() > 1e-3
    drawn = found.alignment.weights[:2] > 0
    assert np.all(drawn.sum(-1) == 1) and np.all(possible[:2][drawn])
    close(found.alignment.log_prob[:2][..., None][drawn.any(-1)], found.log_weights[:2][drawn][:, None], rtol=1e-9)


@pytest.mark.parametrize(
    "fields",
    [
        {"score": "dot", "alignment": "mocha", "chunk_score": "cosine", "past": "coverage", "fertility": 2.0},
        {"score": "cosine", "alignment": "monotonic", "score_gain": 0.5, "past": "location", "filter_width": 3},
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

        def chunk(cache, tokens):
            logits, cache, _ = apply(cache, tokens, method="extend")
            return cache, logits

        end, chunks = jax.lax.scan(chunk, start, jnp.stack(jnp.split(fed, T // 2, axis=1)))
        return found, beamed, (logits, looked, after), (chunks, end)

    found, beamed, (logits, looked, after), (chunks, end) = jax.device_get(every_way(params))
    np.testing.assert_array_equal(beamed.tokens[:, 0], found.tokens)
    close((np.concatenate(chunks, 1), end), (logits, after))
    for row, length in enumerate(found.lengths):
        np.testing.assert_array_equal(found.tokens[row, :length], logits[row].argmax(-1)[:length])
        close(found.alignment.weights[row, :length], looked.weights[row, :length])
        close(beamed.alignment.weights[row, 0, :length], looked.weights[row, :length])


def test_a_beam_of_three_carries_the_state_of_attention():
    """Each hypothesis has the alignments of its own tokens, teacher-forced."""
    model, params = make("soft", "wide", score="dot", alignment="mocha", past="coverage", fertility=2.0)

    @quick
    def search(params):
        apply, first = partial(model.apply, {"params": params}), jnp.ones(B, jnp.int32)
        start = apply(WIDE, MASK, method="start")
        found = beam(partial(apply, method="step"), start, first, end=2, max_length=T, width=3)
        fed = jnp.pad(found.tokens[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=1).reshape(B * 3, T)
        alone = jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, 0), start)
        return found, apply(alone, fed, method="extend")[2].weights.reshape(B, 3, T, S)

    found, again = search(params)
    assert len(np.unique(np.asarray(found.tokens[0]), axis=0)) == 3
    written = np.arange(T) < np.asarray(found.lengths)[..., None]
    assert np.ptp(np.where(written[..., None], again, 0)[0], axis=0).max() > 1e-3
    close(found.alignment.weights, np.where(written[..., None], again, 0))


def test_rows_of_the_coin_see_the_expectation_of_a_sparse_alignment():
    (model, params), align = make("hard", alignment="sparsemax"), jax.jit(sparsemax)
    found = jax.device_get(
        quick(partial(write, model))(params, IMAGES, TOKENS, expected=np.array([True, False, False]))
    )
    expected = by_hand(params, IMAGES, TOKENS, lambda t, scores: np.asarray(align(scores, MASK)), MASK)
    close(found.alignment.weights[0], align(expected.scores, MASK[:, None])[0], rtol=1e-4, atol=1e-5)
    assert np.any((expected.weights[0] > 0) & (expected.weights[0] < 1)) and np.any(expected.weights[0] == 0)
    assert not found.alignment.log_prob[0].any() and np.all(found.alignment.weights[1].max(-1) == 1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(("alignment", "temperature"), [*product(FUNCTIONS, [0.3]), ("tempered", 1e-3)])
def test_probabilities_of_locations_are_the_weights_in_half_precision(alignment, temperature, dtype):
    """To float32: what the weights are before they are rounded; a temperature divides no rounded score."""
    align = partial(tempered, temperature=temperature) if alignment == "tempered" else FUNCTIONS[alignment]
    scores = jnp.array([[[90, 89.9, 1, 0]], [[3.1, 2.6, 2.2, -1.7]]], dtype)
    memory = Memory(None, np.ones((2, 4, 3), dtype), np.ones((2, 4), bool))
    attend = Attention(lambda query, keys: scores, align)
    module = SimpleNamespace(attention="hard", alignment=alignment, temperature=temperature, attend=attend)
    query, coin = np.zeros((2, 1, 5), dtype), np.array([True, False])
    context, chosen, logits, _ = look(module, query, memory, None, coin, True)
    wide = align(scores.astype(jnp.float32))
    close(np.exp(latent.log_softmax(logits)), wide, rtol=1e-6, atol=0)
    expected = np.stack([np.asarray(wide)[0].astype(dtype), np.eye(4, dtype=dtype)[:1]])
    np.testing.assert_array_equal(chosen.weights, expected)
    assert context.dtype == chosen.weights.dtype == dtype


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
        ({"chunk_score": "dto"}, "chunk_score is one of additive, .*; got 'dto'"),
        (
            {"alignment": "mocha", "chunk_score": "cosine", "annotation_width": 5},
            "chunk_score 'cosine' needs annotations of width 5; got 4",
        ),
        ({"past": "all"}, "past is one of none, location, coverage; got 'all'"),
        ({"alignment": "local_p"}, "attention 'soft' goes with alignment softmax, .*, straight_through; got 'local_p'"),
        ({"attention": "hard", "alignment": "mocha"}, "attention 'hard' goes with alignment softmax, .*; got 'mocha'"),
        ({"attention": "variational", "alignment": "sparsemax"}, "'variational' goes with alignment softmax; got 'spa"),
        ({"attention": "marginal", "past": "coverage"}, "past 'coverage' goes with attention 'soft'; got 'marginal'"),
        ({"fertility": 2.0}, "fertility divides the past 'coverage'; got 2.0 and past 'none'"),
        ({"score": "location", "past": "location"}, "past 'location' enriches keys, and the score 'location' does not"),
        ({"score": "dot"}, "'dot' needs annotations as wide as the state: units is 11, they are 4"),
        ({"score": "cosine", "annotation_width": 5}, "score 'cosine' needs annotations of width 5; got 4"),
        ({"score": "cosine", "annotation_width": None}, "score 'cosine' asks how wide annotations are"),
        ({"encoder": ENCODER, "annotation_width": 7}, "annotation_width is that of the encoder, 5, or None; got 7"),
        *(({name: 0}, f"{name} is at least 1; got 0") for name in COUNTS if name != "score_units"),
    ],
)
def test_mechanisms_that_do_not_fit_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(captioner(**{**FEW, **fields}).init, jax.random.key(0), IMAGES, TOKENS)


def test_a_translator_refuses_the_same_counts():
    model = Seq2Seq(N, N, score_units=0)
    with pytest.raises(ValueError, match="score_units is at least 1; got 0"):
        jax.eval_shape(model.init, jax.random.key(0), TOKENS, np.full(B, T), TOKENS)


@pytest.mark.parametrize(
    ("encoder", "told"), [(ENCODER, None), (ENCODER, 5), (nn.Conv(5, (3, 3)), 5)], ids=["encoder", "both", "field"]
)
def test_the_encoder_or_a_field_tells_the_cosine_score_how_wide_annotations_are(encoder, told):
    model = captioner(encoder=encoder, score="cosine", annotation_width=told)
    found = jax.eval_shape(model.init, jax.random.key(0), IMAGES, TOKENS)["params"]
    assert found["score"]["query"]["kernel"].shape == (SIZES["units"], 5)


def test_only_a_conv_encoders_features_are_the_width_of_annotations():
    """Those of a single convolution are a number; what another encoder means by them is not known."""
    model = captioner(encoder=nn.Conv(5, (3, 3)))
    assert jax.eval_shape(model.init, jax.random.key(0), IMAGES, TOKENS)["params"]["encoder"]["kernel"].shape[-1] == 5
    with pytest.raises(ValueError, match="score 'cosine' asks how wide annotations are"):
        jax.eval_shape(model.clone(score="cosine").init, jax.random.key(0), IMAGES, TOKENS)

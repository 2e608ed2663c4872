"""Contracts of the encoder-decoder, for every attention and score."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import InvalidRngError
from jaxtyping import TypeCheckError

from attention_zoo.functional.losses import cross_entropy
from attention_zoo.functional.metrics import token_accuracy
from attention_zoo.functional.search import beam, greedy
from tests.models.small import FAMILIES, FORWARD, MECHANISMS, B, S, T, family, make
from tests.quick import quick


@pytest.mark.parametrize("name", MECHANISMS)
def test_decode_equivalence(name):
    """Teacher forcing == step by step == prefill in chunks of 2, both of padded sources, and alignments agree too."""
    model, params, source, lengths, target = make(**MECHANISMS[name])
    in_chunks = np.stack(np.split(np.asarray(target)[:, :4], 2, axis=1))

    @quick
    def every_way(params):
        def take(cache, tokens, method="extend"):
            logits, cache, alignment = model.apply(params, cache, tokens, method=method)
            return cache, (logits, alignment)

        padded = jnp.pad(source, ((0, 0), (0, 4)), constant_values=9)
        start = model.apply(params, padded, lengths, method="start")
        steps = jax.lax.scan(partial(take, method="step"), start, target.T)[1]
        chunks = jax.lax.scan(take, start, in_chunks)[1]
        return model.apply(params, source, lengths, target), steps, chunks

    expected, steps, chunks = jax.device_get(every_way(params))
    by_step = jax.tree.map(lambda stacked: np.moveaxis(stacked, 0, 1), steps)
    by_chunk = jax.tree.map(lambda stacked: np.concatenate(stacked, 1), chunks)

    def same(found, forced):
        """But for the padding of the source, and the last token, which fills no chunk."""
        found, forced = found[..., : forced.shape[-1]], forced[:, : found.shape[1]]
        np.testing.assert_allclose(found, forced, rtol=2e-5, atol=2e-6)

    jax.tree.map(same, by_step, expected)
    jax.tree.map(same, by_chunk, expected)
    if expected[1] is not None:
        weights = np.asarray(expected[1].weights)
        sums = weights[:2].sum(-1)
        if MECHANISMS[name].get("alignment") in ("local_m", "local_p", "monotonic", "mocha"):
            assert (sums < 1 + 1e-5).all() and sums.any()  # the rest fell to a Gaussian, or off an end of the source
        else:
            np.testing.assert_allclose(sums, 1, rtol=1e-5)
        assert not weights[1, :, 4:].any() and not weights[2].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_gradient_from_the_future_nor_from_padding(name):
    model, params, source, lengths, _ = make(**FAMILIES[name])

    def logit(source_vectors, target_vectors):
        """The logits of step 2 of the second example, whose source has 4 tokens, from embedded tokens."""
        embedded = iter([source_vectors, target_vectors])

        def replace(next_function, args, kwargs, context):
            if type(context.module).__name__ == "Embedding" and context.method_name == "__call__":
                return next(embedded)
            return next_function(*args, **kwargs)

        with nn.intercept_methods(replace):
            return model.apply(params, source, lengths, jnp.zeros((B, T), jnp.int32))[0][1, 2].sum()

    generator = np.random.default_rng(1)
    vectors = [jnp.float32(generator.normal(size=(B, steps, 5))) for steps in (S, T)]
    by_source, by_target = quick(jax.grad(logit, (0, 1)))(*vectors)
    assert np.abs(by_source[1, :4]).min() > 0 and not by_source[1, 4:].any() and not by_source[0].any()
    assert np.abs(by_target[1, :3]).min() > 0 and not by_target[1, 3:].any()


def test_greedy_search_is_beam_of_one_and_follows_the_teacher():
    model, params, source, lengths, _ = make(attention="bahdanau")

    @quick
    def search(params):
        cache = model.apply(params, source, lengths, method="start")
        step = lambda cache, tokens: model.apply(params, cache, tokens, method="step")  # noqa: E731
        start, options = jnp.ones(B, jnp.int32), {"end": 2, "max_length": T}
        found = greedy(step, cache, start, **options)
        inputs = jnp.concatenate([start[:, None], found.tokens[:, :-1]], 1)
        return found, beam(step, cache, start, width=1, **options), model.apply(params, source, lengths, inputs)

    found, beamed, (logits, alignment) = jax.device_get(search(params))
    np.testing.assert_array_equal(beamed.tokens[:, 0], found.tokens)
    for row, length in enumerate(found.lengths):
        np.testing.assert_array_equal(found.tokens[row, :length], logits[row].argmax(-1)[:length])
        weights = found.alignment.weights[row, :length]
        np.testing.assert_allclose(weights, alignment.weights[row, :length], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bahdanau", "feeding"])
def test_bfloat16_computes_in_bfloat16_from_float32_parameters(name):
    model, (params, *inputs), run = family(name)
    half = model.clone(dtype=jnp.bfloat16)
    logits, alignment = quick(half.apply)(params, *inputs)
    assert logits.dtype == alignment.weights.dtype == jnp.bfloat16
    shapes = jax.eval_shape(half.init, jax.random.key(0), *inputs)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shapes)} == {"float32"}
    expected = run(params, *inputs)[0]
    # Numbers of eight bits: errors far below a hundredth of what the logits span.
    assert np.abs(logits - expected).max() < 0.01 * np.ptp(expected)


def test_dropout_needs_a_key_differs_by_key_and_stays_out_of_evaluation():
    model, params, *inputs = make(attention="luong", score="general", dropout=0.5, decoder_layers=2)

    @quick
    def call(seed):
        key = jax.random.key(seed)
        return model.apply(params, *inputs, False, rngs={"dropout": key})[0], model.apply(params, *inputs)[0]

    (first, dry), (again, _), (other, _) = (call(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - dry).max() > 1e-3
    with pytest.raises(InvalidRngError, match='needs PRNG for "dropout"'):
        jax.eval_shape(partial(model.apply, deterministic=False), params, *inputs)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention": "bahdanu"}, "attention is one of none, context, bahdanau, luong; got 'bahdanu'"),
        ({"score": "mlp"}, "score is one of additive, .*; got 'mlp'"),
        ({"chunk_score": "mlp"}, "chunk_score is one of additive, .*; got 'mlp'"),
        (
            {"alignment": "mocha", "chunk_score": "dot", "decoder_units": 8},
            "chunk_score 'dot' needs annotations as wide as the decoder; got 6 and 8",
        ),
        ({"shared": True}, "shared embeddings need one vocabulary; got 13 and 11"),
        ({"readout": "wide"}, "readout is one of deep, state, both with attention 'bahdanau'.*; got 'wide'"),
        ({"attention": "luong", "readout": "both"}, "None with the others; got 'both' and 'luong'"),
        ({"cell": "rnn"}, "cell is one of lstm, gru, gru_reset_before; got 'rnn'"),
        ({"score": "dot", "decoder_units": 8}, "needs annotations as wide as the decoder; got 6 and 8"),
        ({"score": "general", "decoder_units": 7}, "decoder_units is even; got 7"),
        ({"alignment": "local_q"}, "alignment is one of softmax, .*; got 'local_q'"),
        ({"past": "coverage", "score": "location"}, "past 'coverage' enriches keys, and the score 'location' does not"),
        ({"bridge": "copy", "decoder_layers": 2}, "got 1 encoder layers of 6 and 2 decoder layers of 6"),
        ({"bridge": "zeros", "attention": "none"}, "nothing of the source would reach the decoder"),
        ({"bridge": "backward", "bidirectional": False}, "needs a bidirectional encoder"),
        ({"tied": True, "one_hot": True}, "tied output needs learned embeddings"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\); got 1.0"),
        ({"dropout": -0.1}, r"dropout lies in \[0, 1\); got -0.1"),
        ({"fertility": 2.0}, "fertility divides the past 'coverage'; got 2.0 and past 'none'"),
        ({"fertility": -2.0, "past": "coverage"}, "fertility is 0, for none, or above; got -2.0"),
        ({"attention": "none", "alignment": "sparsemax"}, "attention 'none' aligns nothing: .* got 'sparsemax' and"),
        ({"attention": "context", "past": "coverage"}, "attention 'context' aligns nothing: .* and 'coverage'"),
        ({"temperature": 0.0}, "temperature is above zero; got 0.0"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**fields)


def test_a_wrong_shape_names_the_argument():
    model, params, source, lengths, target = make(attention="none")
    with pytest.raises(TypeCheckError, match="source_lengths"):
        model.apply(params, source, lengths[:2], target)


@pytest.mark.parametrize("fields", [{}, {"tied": True}, {"output_bias": False}])
def test_loss_without_whole_logits_equals_cross_entropy_of_the_logits(fields):
    model, params, source, lengths, target = make(attention="none", **FORWARD, **fields)
    assert ("bias" in params["params"].get("output", {})) == (not fields)
    mask = np.arange(T)[None] < np.array([[T], [2], [0]])
    inputs = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=1)

    def whole(params):
        logits, _ = model.apply(params, source, lengths, inputs)
        return cross_entropy(logits, target, mask, 0.1), token_accuracy(logits.argmax(-1), target, mask)

    def sliced(params):
        return model.apply(params, source, lengths, inputs, target, mask, 0.1, method="loss")[:2]

    both = quick(lambda params: [jax.value_and_grad(loss, has_aux=True)(params) for loss in (sliced, whole)])
    found, expected = both(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)

"""Any score with any alignment: by name, with more leading axes (heads, an image's cells), and through beam search."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.search import beam
from attention_zoo.models import Seq2Seq
from attention_zoo.models.mechanisms import ALIGNMENTS, PASTS, SCORES, mechanism
from tests.models.small import MECHANISMS, B, S, T, make
from tests.quick import quick

H, Q, K = 2, 6, 3  # heads; width of queries and values; hypotheses
MARKS = np.float32([2, 3, 5, 7, 11, 13, 17])  # of the S source positions
STATEFUL = [
    *("bahdanau_local_m", "bahdanau_monotonic", "bahdanau_mocha", "bahdanau_past_location"),
    *("bahdanau_past_fertility", "at_once_past_coverage", "feeding_local_p"),
]
SAMPLING = {
    "previous": MECHANISMS["bahdanau_straight_through"],
    "feeding": {**MECHANISMS["feeding_local_p"], "score": "general", "alignment": "straight_through"},
    "at_once": {**MECHANISMS["at_once_local_p"], "alignment": "straight_through"},
    "at_once_past": {**MECHANISMS["at_once_past_coverage"], "alignment": "straight_through"},
}


def attention(score="additive", alignment="softmax", past="none", **fields):
    fields = {"encoder_units": Q // 2, "decoder_units": Q, "positions": S, "window": 2, **fields}
    return mechanism(Seq2Seq(5, 5, score=score, alignment=alignment, past=past, **fields), Q)


def draw(*shape):
    return np.float32(np.random.default_rng(shape).normal(size=shape))


def drawn(made, *inputs):
    """Its variables, large enough to matter; nothing is compiled for them."""
    shapes = jax.eval_shape(partial(made.init, method="over"), jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: draw(*leaf.shape), shapes)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_any_score_fits_any_alignment_and_any_past(alignment):
    queries, values = draw(B, T, Q), draw(B, S, Q)
    for score, past in product(SCORES, PASTS):
        if score == "location" and past != "none":
            continue  # refused: it does not look at keys
        run = partial(attention(score, alignment, past).init_with_output, jax.random.key(0), method="over")
        (context, found, state), _ = jax.eval_shape(run, queries, values)
        assert context.shape == (B, T, Q) and found.weights.shape == (B, T, S)
        assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("alignment", ["monotonic", "mocha"])
def test_what_is_learnt_of_a_walk_starts_where_the_fields_say(alignment):
    made = attention(alignment=alignment, score_bias=-3.0, score_gain=0.25, chunk_score="additive_normalised")
    learned = quick(partial(made.init, method="over"))(jax.random.key(0), draw(B, T, Q), draw(B, S, Q))["params"]
    chunk = learned["alignment"].pop("chunk_score", None)
    assert jax.tree.map(float, learned["alignment"]) == {"bias": -3, "gain": 0.25}
    assert (chunk is None) == (alignment == "monotonic")
    np.testing.assert_allclose(Q**-0.5 if chunk is None else chunk["gain"], Q**-0.5, rtol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_a_chunk_has_any_score_and_a_walk_keeps_the_dtype(score):
    made = attention(alignment="mocha", chunk_score=score, score_gain=1.0, dtype=jnp.bfloat16)
    queries, values = (draw(B, size, Q).astype(jnp.bfloat16) for size in (T, S))
    (context, found, _), learned = jax.eval_shape(
        partial(made.init_with_output, method="over"), jax.random.key(0), queries, values
    )
    assert context.dtype == found.weights.dtype == jnp.bfloat16
    kind = type(SCORES[score](Seq2Seq(5, 5, decoder_units=Q, positions=S), Q))
    assert type(made.alignment.chunk_score) is kind
    assert ("chunk_score" in learned["params"]["alignment"]) == (score not in ("dot", "scaled_dot"))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_heads_and_image_cells_are_leading_axes_and_positions(alignment):
    """[B, H, T, Q] over the cells of an image equals each head alone."""
    made, mask = attention(alignment=alignment), np.arange(S)[None, None] < np.array([[[S]], [[4]], [[0]]])
    queries, values, mask = draw(B, H, T, Q), draw(B, H, S, Q), np.broadcast_to(mask, (B, H, S))
    variables = drawn(made, queries, values, mask)
    run = quick(lambda *inputs: made.apply(variables, *inputs, method="over")[:2])
    together = jax.device_get(run(queries, values, mask))
    for h in range(H):
        jax.tree.map(
            lambda whole, one, h=h: np.testing.assert_allclose(whole[:, h], one, rtol=1e-5, atol=1e-6),
            together,
            run(queries[:, h], values[:, h], mask[:, h]),
        )
    assert not np.any(together[0][2]) and not np.any(together[1].weights[2])


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize(
    ("score", "past", "steps"), [("dot", "none", 1), ("location", "none", T), ("dot", "coverage", T)]
)
def test_queries_are_shared_by_all_sources_of_a_memory(alignment, score, past, steps):
    """[T, Q] and [1, T, Q] equal the same queries written out for each source."""
    made, mask = attention(score, alignment, past), np.arange(S) < np.array([[S], [4], [0]])
    queries, values = draw(1, steps, Q), draw(B, S, Q)
    written_out = np.broadcast_to(queries, (B, steps, Q))
    variables = drawn(made, written_out, values, mask)

    @quick
    def each(*ways):
        memory = made.apply(variables, values, mask, method="remember")
        state = made.apply(variables, memory, method="start")
        return [made.apply(variables, way, memory, state) for way in ways]

    expected, *found = each(written_out, queries, queries[0])
    for other in found:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), other, expected)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_of_a_mechanism_follows_its_hypothesis_through_beam_search(name):
    model, params, source, lengths, _ = make(**MECHANISMS[name])

    @quick
    def search(params):
        cache = model.apply(params, source, lengths, method="start")

        def step(cache, tokens):
            logits, cache, alignment = model.apply(params, cache, tokens, method="step")
            # What a sampled alignment has beside its weights: here a number that tells which weights it belongs to.
            return logits, cache, alignment._replace(log_prob=alignment.weights @ MARKS)

        found = beam(step, cache, jnp.ones(B, jnp.int32), end=2, max_length=T, width=K)
        inputs = jnp.pad(found.tokens[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=1).reshape(B * K, T)
        again = model.apply(params, jnp.repeat(source, K, 0), jnp.repeat(lengths, K, 0), inputs)[1]
        return found, again.weights.reshape(B, K, T, S)

    found, again = jax.device_get(search(params))
    written = np.arange(T) < found.lengths[..., None]
    assert len(np.unique(found.tokens[0], axis=0)) == K
    expected = np.where(written[..., None], again, 0)
    np.testing.assert_allclose(found.alignment.weights, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.alignment.log_prob, expected @ MARKS, rtol=1e-5, atol=1e-5)
    assert found.alignment.entropy is None


@pytest.mark.parametrize("name", SAMPLING)
def test_a_decoder_that_samples_tells_the_log_prob_of_every_step(name):
    """[B, T], in training: whichever way the decoder takes its steps, and the score-function term has a gradient."""
    model, params, source, lengths, target = make(**SAMPLING[name])
    rngs = {"alignment": jax.random.key(3)}

    def log_prob(params):
        alignment = model.apply(params, source, lengths, target, False, rngs=rngs)[1]
        return alignment.log_prob.sum(), alignment

    (_, found), gradient = jax.device_get(quick(jax.value_and_grad(log_prob, has_aux=True))(params))
    assert found.log_prob.shape == found.entropy.shape == (B, T) == found.weights.shape[:2]
    np.testing.assert_array_equal(found.weights.max(-1), [[1] * T, [1] * T, [0] * T])
    # Between the certain and the impossible; a source without tokens has no choice.
    assert np.all(found.log_prob[:2] < 0) and np.all(found.entropy[:2] > 0)
    assert np.all(found.entropy[:2] < np.log(np.asarray(lengths[:2, None])))
    np.testing.assert_array_equal((found.log_prob[2], found.entropy[2]), 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    score = jax.tree.leaves(gradient["params"]["decoder"]["attention"])
    assert all(np.abs(leaf).max() > 1e-5 for leaf in score)


def test_a_state_is_asked_for_where_one_is_needed():
    queries, values = draw(B, T, Q), draw(B, S, Q)
    for made, sentence in (
        (attention(past="coverage"), "this score knows where was attended before"),
        (attention(alignment="local_m"), "this alignment carries a state"),
    ):
        variables = drawn(made, queries, values)
        memory = jax.eval_shape(partial(made.apply, method="remember"), variables, values)
        with pytest.raises(ValueError, match=sentence):
            jax.eval_shape(made.apply, variables, queries, memory)
        with pytest.raises(ValueError, match="starts from a memory; got None"):
            made.apply(variables, None, method="start")

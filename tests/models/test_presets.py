"""The table of presets is complete, and every model has as many parameters as its paper's equations say."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.models import PRESETS, seq2seq
from tests.models.small import SIZES, make
from tests.quick import quick


def lstm(inputs, units):
    return 4 * units * (inputs + units + 1)


def gru(inputs, units):
    """As first written: the reset gate acts on the state, and every gate has one bias."""
    return 3 * units * (inputs + units + 1)


def additive(query, value, units):
    """W with its bias, U, v."""
    return units * (query + 1) + units * value + units


def bahdanau_2014():
    words, m, n = 30_001, 620, 1000  # the paper's K, m and n; l = 500
    encoder = 2 * gru(m, n)
    decoder = gru(m + 2 * n, n) + additive(n, 2 * n, n) + n * (n + 1)
    readout = 1000 * (n + m + 2 * n + 1) + words * (500 + 1)
    return 2 * words * m + encoder + decoder + readout


def tu_2016_linguistic():
    return bahdanau_2014() + 1000  # V of eq. 6, from one number to the alignment units


def tu_2016_linguistic_fertility():
    return tu_2016_linguistic() + 2 * 1000  # U_f, over the annotations


def chorowski_2015_like():
    inputs, phones, n = 123, 63, 256
    encoder = 2 * (gru(inputs, n) + 2 * gru(2 * n, n))
    location = 201 * 10 + 10 * 2 * n  # F and U
    decoder = gru(phones + n, n) + additive(n, 2 * n, 2 * n) + location + n * 3 * n + n * (2 * n + 1)  # W_c, the bridge
    return encoder + decoder + phones * (n + 1)


def see_2017_like():
    """The paper's own count (section 5) and all that `presets.SEE` names as different."""
    e, n = 128, 256
    feeding = lstm(e + n, n) - (lstm(e, n) + e * (e + 2 * n + 1))
    features = n * 3 * n - n * (3 * n + 1)  # no bias
    return 21_499_600 + feeding + features + additive(n, 2 * n, 2 * n) - additive(2 * n, 2 * n, 2 * n)


def see_2017_coverage_like():
    return see_2017_like() + 512  # w_c, as wide as the alignment: the paper's own count


def luong_2015(score=1000 * 1000):
    """With W_a of the general score, or what another mechanism learns instead."""
    words, n = 50_000, 1000
    encoder = 4 * lstm(n, n)
    decoder = lstm(2 * n, n) + 3 * lstm(n, n) + score + n * 2 * n  # input feeding, W_c
    return 2 * words * n + encoder + decoder + words * n


def luong_2015_dot():
    return luong_2015(0)


def luong_2015_concat():
    return luong_2015(1000 * 2000 + 1000)


def luong_2015_location():
    return luong_2015(1000 * 51)


def luong_2015_local_m_general():
    return luong_2015()


def luong_2015_local_m_dot():
    return luong_2015(0)


def luong_2015_local_p_general():
    return luong_2015(1000 * 1000 + 1000 * 1000 + 1000)  # W_a, W_p and v_p


def luong_2015_local_p_dot():
    return luong_2015(1000 * 1000 + 1000)


def raffel_2017_translation_like(score=512 * (512 + 1) + 512 * 512 + 512 + 1):
    """With the additive score and its g, or what another score learns instead."""
    n = 512
    decoder = lstm(2 * n, n) + lstm(n, n) + score + 1 + n * 2 * n  # r, W_c
    return 17_000 * n + 7_700 * n + 2 * lstm(n, n) + decoder + 7_700 * (n + 1)


def raffel_2017_translation_general_like():
    return raffel_2017_translation_like(512 * 512 + 1)  # W and g


def raffel_2017_summarization():
    words, e, n = 200_000, 200, 256
    encoder = 2 * (lstm(e, n) + 3 * lstm(2 * n, n))
    decoder = lstm(e + 2 * n, n) + additive(n, 2 * n, n) + 2  # g and r
    return words * e + encoder + decoder + words * (n + 1)


def chiu_2018_summarization_like():
    words, e, n = 50_000, 512, 1024
    energies = 2 * (additive(n, n, n) + 1) + 1  # two g and one r
    return 2 * words * e + 2 * lstm(e, n // 2) + lstm(e + n, n) + energies + words * (2 * n + 1)


def joeynmt_reverse_like():
    words, e, n = 54, 16, 64
    decoder = lstm(e + n, n) + 2 * n * n + 3 * n * n  # W_a, W_c
    return 2 * words * e + 2 * lstm(e, n) + decoder + words * n


def dates_small():
    source, target, e, n = 159, 15, 48, 128
    decoder = lstm(e + 2 * n, n) + additive(n, 2 * n, n) + 2 * n * (2 * n + 1)  # and the bridge to h and c
    readout = n * (n + e + 2 * n + 1) + target * (n // 2 + 1)
    return (source + target) * e + 2 * lstm(e, n) + decoder + readout


def dates_luong_small():
    source, target, e, n = 159, 15, 48, 192  # n: the decoder's units, twice those of a direction of the encoder
    decoder = lstm(e + n, n) + n * n + n * 2 * n + 2 * n * (n + 1)  # W_a, W_c, the bridge to h and c
    return (source + target) * e + 2 * lstm(e, n // 2) + decoder + target * (n + 1)


def translator():
    words, e, n = 8000, 256, 512
    decoder = lstm(e + 2 * n, n) + additive(n, 2 * n, n) + 2 * n * (2 * n + 1)
    readout = n * (n + e + 2 * n + 1) + words * (n // 2 + 1)
    return 2 * words * e + 2 * lstm(e, n) + decoder + readout


LUONGS = (
    luong_2015,
    luong_2015_dot,
    luong_2015_concat,
    luong_2015_location,
    luong_2015_local_m_general,
    luong_2015_local_m_dot,
    luong_2015_local_p_general,
    luong_2015_local_p_dot,
)
COVERAGES = (tu_2016_linguistic, tu_2016_linguistic_fertility, see_2017_like, see_2017_coverage_like)
WALKS = (
    raffel_2017_translation_like,
    raffel_2017_translation_general_like,
    raffel_2017_summarization,
    chiu_2018_summarization_like,
)
OTHERS = (joeynmt_reverse_like, dates_small, dates_luong_small, translator)
COUNTS = {count.__name__: count for count in (bahdanau_2014, *LUONGS, chorowski_2015_like, *COVERAGES, *WALKS, *OTHERS)}


def test_every_preset_is_counted():
    assert COUNTS.keys() == PRESETS.keys()


@cache
def shapes_of(name):
    tokens, lengths = jnp.zeros((2, 3), jnp.int32), jnp.ones(2, jnp.int32)
    return jax.eval_shape(seq2seq(name).init, jax.random.key(0), tokens, lengths, tokens)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count(name):
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of(name))) == COUNTS[name]()


ALIGNMENT_UNITS = {
    "bahdanau_2014": 1000,
    "tu_2016_linguistic": 1000,
    "chorowski_2015_like": 512,
    "see_2017_like": 512,
    "raffel_2017_translation_like": 512,
    "raffel_2017_summarization": 256,
    "chiu_2018_summarization_like": 1024,
}


@pytest.mark.parametrize("name", ALIGNMENT_UNITS)
def test_the_score_has_the_units_of_the_paper(name):
    shapes = shapes_of(name)["params"]["decoder"]["attention"]["score"]
    additive = shapes.get("score", shapes)  # beside what a past owns
    assert additive["energy"].shape == (ALIGNMENT_UNITS[name],)


def test_location_filters_are_those_of_the_paper():
    score = shapes_of("chorowski_2015_like")["params"]["decoder"]["attention"]["score"]
    assert (score["filters"].shape, score["past"].shape) == ((201, 10), (10, 512))


# Where the learned r and, of a general score, g start; how many annotations a chunk has; dropout.
WALKING = {
    "raffel_2017_translation_like": (-2, None, None, 0.3),
    "raffel_2017_translation_general_like": (-2, 1 / math.sqrt(512), None, 0.3),
    "raffel_2017_summarization": (-4, None, None, 0),
    "chiu_2018_summarization_like": (0, None, 8, 0),
}


@pytest.mark.parametrize("name", WALKING)
def test_walks_start_as_in_the_paper(name):
    model, (bias, gain, chunk, dropout) = seq2seq(name), WALKING[name]
    assert (model.score_bias, model.dropout) == (bias, dropout)
    assert model.score_gain == (None if gain is None else pytest.approx(gain))
    assert (model.alignment, model.chunk) == (("mocha", chunk) if chunk else ("monotonic", model.chunk))


# Has the state that asks for the word y_t read y_{t-1} already? For each paper, its mechanism with the most to it.
ASKS_AFTER_READING = {
    "bahdanau_2014": False,
    "tu_2016_linguistic_fertility": False,
    "chorowski_2015_like": True,
    "see_2017_coverage_like": True,
    "luong_2015_local_p_general": True,
    "raffel_2017_translation_like": True,
    "raffel_2017_summarization": False,
    "chiu_2018_summarization_like": False,
}


@pytest.mark.parametrize("name", ASKS_AFTER_READING)
def test_the_query_is_taken_as_in_the_paper(name):
    units = SIZES["decoder_units"]
    # Equal, for Luong's bridge; an embedding for each, as the words of `make` are.
    sizes = {**SIZES, "encoder_units": units, "encoder_layers": 1, "decoder_layers": 1, "shared": False}
    fields = {field: value for field, value in PRESETS[name].items() if not field.endswith("vocabulary")}
    if name in WALKING:
        # A walk decides: where it stops need not move. A normalised score is too mild to move much.
        sizes |= {"alignment": "softmax", "score": "additive"}
    model, params, source, lengths, target = make(**{**fields, **sizes})
    run = quick(lambda target: model.apply(params, source, lengths, target)[1].weights[0])
    weights, changed = run(target), run(target.at[0, 2].add(-1))
    moved = np.abs(weights - changed).max(-1)
    first = 2 if ASKS_AFTER_READING[name] else 3  # the step that reads the changed word, or the next
    np.testing.assert_array_equal(moved[:first], 0)
    assert moved[first] > 1e-3


def test_variants_take_their_query_as_the_papers_other_models_do():
    for name, fields in PRESETS.items():
        akin = [other for other in ASKS_AFTER_READING if name.startswith(other[: other.index("_20") + 5])]
        # A paper may have two models.
        for other in [other for other in akin if name.startswith(other.removesuffix("_like"))] or akin:
            assert fields["attention"] == ("luong" if ASKS_AFTER_READING[other] else "bahdanau")


def test_fields_replace_the_presets():
    assert seq2seq("luong_2015", score="dot").score == "dot"


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"preset is one of bahdanau_2014, .*; got 'bahdanau'"):
        seq2seq("bahdanau")

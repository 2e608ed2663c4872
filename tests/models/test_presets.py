"""The table of presets is complete, and every model has as many parameters as its paper's equations say."""

import math

import jax
import jax.numpy as jnp
import pytest

from attention_zoo.models import PRESETS, seq2seq


def lstm(inputs, units):
    return 4 * units * (inputs + units + 1)


def gru(inputs, units):
    """Three gates with two biases each (one inside the reset gate's reach)."""
    return 3 * units * (inputs + units + 2)


def additive(query, value, units):
    """W with its bias, U, v."""
    return units * (query + 1) + units * value + units


def bahdanau_2014():
    words, m, n = 30_001, 620, 1000  # the paper's K, m and n; l = 500
    encoder = 2 * gru(m, n)
    decoder = gru(m + 2 * n, n) + additive(n, 2 * n, n) + n * (n + 1)
    readout = 1000 * (n + m + 2 * n + 1) + words * (500 + 1)
    return 2 * words * m + encoder + decoder + readout


def luong_2015(score=1000 * 1000):
    """With W_a of the general score, or what another mechanism learns instead."""
    words, n = 50_000, 1000
    encoder = 4 * lstm(n, n)
    decoder = lstm(2 * n, n) + 3 * lstm(n, n) + score + n * 2 * n  # input feeding, W_c
    return 2 * words * n + encoder + decoder + words * (n + 1)


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


def joeynmt_reverse():
    words, e, n = 54, 16, 64
    decoder = lstm(e + n, n) + 2 * n * n + 3 * n * n + 2 * n * (2 * n + 1)  # W_a, W_c, the bridge to h and c
    return 2 * words * e + 2 * lstm(e, n) + decoder + words * (n + 1)


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
PAPERS = (bahdanau_2014, *LUONGS, joeynmt_reverse, dates_small, dates_luong_small, translator)
COUNTS = {count.__name__: count for count in PAPERS}


def test_every_preset_is_counted():
    assert COUNTS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count(name):
    model = seq2seq(name)
    tokens, lengths = jnp.zeros((2, 3), jnp.int32), jnp.ones(2, jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, lengths, tokens)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == COUNTS[name]()


def test_fields_replace_the_presets():
    assert seq2seq("luong_2015", score="dot").score == "dot"


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"preset is one of bahdanau_2014, .*; got 'bahdanau'"):
        seq2seq("bahdanau")

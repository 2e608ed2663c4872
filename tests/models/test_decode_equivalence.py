"""Whatever the positions, every way of decoding gives the logits of teacher forcing, and so does packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.functional.masks import within
from attention_zoo.models import CausalLM, Packed, Transformer
from tests.models.transformers import LENGTHS, N_SOURCE, N_TARGET, POSITIONS, SIZES, B, S, T, drawn, run, tokens

SOURCE, SOURCE_LENGTHS, TARGET = tokens()
PIECES = np.stack(np.split(np.asarray(TARGET)[:, :4], 2, axis=1))  # of 2 tokens, which the last does not fill
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}
MODELS = {
    "translating": lambda positions: Transformer(
        source_vocabulary=N_SOURCE, target_vocabulary=N_TARGET, positions=positions, **SIZES
    ),
    "language": lambda positions: CausalLM(vocabulary=N_TARGET, positions=positions, **SIZES),
}
RAGGED = np.array([[T, 3, 1], [0, 2, 0], [0, 0, 4]])  # tokens of each row in a call, [call, B]
TARGET_LENGTHS, AT, ROOM = (T, 3), S, 11  # of the two sequences of a packed row, which are AT places apart


def forced(model, variables, rows=slice(0, B), source=S, target=T):
    """Teacher forcing of some rows, cut to some length."""
    inputs = (SOURCE[rows, :source], SOURCE_LENGTHS[rows]) if isinstance(model, Transformer) else ()
    return model.apply(variables, *inputs, TARGET[rows, :target])[0]


def in_pieces(model, variables, cache):
    """[piece, B, 2, N]."""

    def take(cache, piece):
        logits, cache, *_ = model.apply(variables, cache, piece, method="extend")
        return cache, logits

    return jax.lax.scan(take, cache, PIECES)[1]


def one_by_one(model, variables, cache):
    """[T, B, N]."""

    def step(cache, token):
        logits, cache, _ = model.apply(variables, cache, token, method="step")
        return cache, logits

    return jax.lax.scan(step, cache, TARGET.T)[1]


def ragged(model, variables, cache):
    """Every row in pieces of its own, `RAGGED`, in calls of T tokens of which the last are padding: [call, B, T, N]."""

    def call(cache, lengths):
        places = jnp.minimum(cache.length[:, None] + jnp.arange(T)[None], T - 1)
        piece = jnp.where(within(lengths, T), jnp.take_along_axis(TARGET, places, 1), 9)
        logits, cache, *_ = model.apply(variables, cache, piece, lengths=lengths, method="extend")
        return cache, logits

    cache, logits = jax.lax.scan(call, cache, jnp.asarray(RAGGED))
    return cache.length, logits


def together(model, variables):
    """The first two sequences in one row, padding between and behind."""

    def lay(rows, lengths):
        row, segments, places = (np.zeros((1, ROOM), np.int32) for _ in range(3))
        for number, (sequence, length) in enumerate(zip(np.asarray(rows)[:2], lengths, strict=True)):
            where = slice(number * AT, number * AT + length)
            row[0, where], segments[0, where], places[0, where] = sequence[:length], number + 1, np.arange(length)
        return jnp.asarray(row), jnp.asarray(segments), jnp.asarray(places)

    target, *of_target = lay(TARGET, TARGET_LENGTHS)
    if not isinstance(model, Transformer):
        return model.apply(variables, target, True, *of_target)[0][0]
    source, *of_source = lay(SOURCE, LENGTHS[:2])
    return model.apply(variables, source, jnp.array([ROOM]), target, packed=Packed(*of_source, *of_target))[0][0]


@pytest.mark.parametrize("positions", [name for name in POSITIONS if name != "sinusoidal_halves"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_way_of_decoding_gives_the_same_logits(kind: str, positions: str) -> None:
    model = MODELS[kind](positions)
    variables = drawn(model, *((SOURCE, SOURCE_LENGTHS) if kind == "translating" else ()), TARGET)

    def every_way(variables):
        inputs = (SOURCE, SOURCE_LENGTHS) if kind == "translating" else (B,)
        cache = model.apply(variables, *inputs, method="start")
        equal = one_by_one(model, variables, cache), in_pieces(model, variables, cache)
        alone = forced(model, variables, slice(1, 2), LENGTHS[1], TARGET_LENGTHS[1])
        return forced(model, variables), equal, ragged(model, variables, cache), alone[0], together(model, variables)

    whole, (steps, pieces), (lengths, calls), alone, packed = jax.device_get(run(every_way, variables))
    np.testing.assert_allclose(np.swapaxes(steps, 0, 1), whole, **TOLERANCE)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole[:, :4], **TOLERANCE)
    assert lengths.tolist() == [T] * B
    for row in range(B):
        joined = np.concatenate([calls[call, row, :length] for call, length in enumerate(RAGGED[:, row])])
        np.testing.assert_allclose(joined, whole[row], **TOLERANCE)
    np.testing.assert_allclose(alone, whole[1, : TARGET_LENGTHS[1]], **TOLERANCE)
    for row, length in enumerate(TARGET_LENGTHS):
        np.testing.assert_allclose(packed[row * AT :][:length], whole[row, :length], **TOLERANCE)

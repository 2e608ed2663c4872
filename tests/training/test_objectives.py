"""Teacher forcing: what the decoder is fed, and the loss against one written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from attention_zoo.functional.alignment import Alignment
from attention_zoo.training import shifted, teacher_forcing
from tests.training.tiny import Tiny, experiment, rows

TARGET = np.array([[7, 5, 2, 0, 0], [9, 4, 6, 8, 2], [2, 0, 0, 0, 0]], np.int32)
LENGTHS = np.array([3, 5, 1], np.int32)
BATCH = {"source": TARGET, "source_lengths": LENGTHS, "target": TARGET, "target_lengths": LENGTHS}


class NextToken(nn.Module):
    """Its logits depend on the decoder's input alone: one row of a table each."""

    @nn.compact
    def __call__(self, source, source_lengths, inputs, deterministic=True):
        return nn.Embed(11, 11, name="table")(inputs), None


def params():
    table = np.random.default_rng(3).normal(size=(11, 11)).astype(np.float32)
    return {"table": {"embedding": table}}


def by_hand(start=1, smoothing=0.0):
    """The mean loss and accuracy over the real tokens, one after another."""
    table = np.asarray(params()["table"]["embedding"], np.float64)
    losses, right = [], []
    for row, length in zip(TARGET, LENGTHS, strict=True):
        before = start
        for token in row[:length]:
            log_p = table[before] - np.log(np.exp(table[before]).sum())
            losses.append(-(1 - smoothing) * log_p[token] - smoothing * log_p.mean())
            right.append(table[before].argmax() == token)
            before = token
    return np.mean(losses), np.mean(right)


def test_the_inputs_are_the_target_one_step_late():
    expected = [[1, 7, 5, 2, 0], [1, 9, 4, 6, 8], [1, 2, 0, 0, 0]]
    np.testing.assert_array_equal(shifted(TARGET), expected)
    np.testing.assert_array_equal(shifted(jnp.asarray(TARGET), start=3)[:, 0], [3, 3, 3])


@pytest.mark.parametrize("start, smoothing", [(1, 0.0), (1, 0.2), (3, 0.1)])
def test_the_loss_is_the_mean_over_real_tokens(start, smoothing):
    objective = teacher_forcing(NextToken(), smoothing, start=start)
    loss, metrics = jax.jit(objective)(params(), BATCH, jax.random.key(0))
    expected, accuracy = by_hand(start, smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["token_accuracy"], accuracy, rtol=1e-6)


def test_padding_neither_counts_nor_gets_a_gradient():
    wide = {name: np.pad(BATCH[name], ((0, 0), (0, 2)), constant_values=10) for name in ("source", "target")}
    step = jax.jit(jax.value_and_grad(teacher_forcing(NextToken()), has_aux=True))
    (loss, _), gradient = step(params(), BATCH, jax.random.key(0))
    (wide_loss, _), wide_gradient = step(params(), {**BATCH, **wide}, jax.random.key(0))
    np.testing.assert_allclose(wide_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(wide_gradient["table"]["embedding"], gradient["table"]["embedding"], atol=1e-7)
    assert not wide_gradient["table"]["embedding"][10].any()


def test_dropout_is_on_and_drawn_from_the_key():
    model, batch = Tiny(), rows(5, 7)
    weights = jax.jit(experiment().init)(jax.random.key(0, impl="unsafe_rbg"), batch)
    loss = jax.jit(lambda key: teacher_forcing(model)(weights, batch, key)[0])
    first, again, other = (float(loss(jax.random.key(seed, impl="unsafe_rbg"))) for seed in (1, 1, 2))
    assert first == again != other


SPANS = np.zeros((3, 5, 2), np.int32)
SPANS[0, :2], SPANS[1, 3] = [[0, 2], [1, 5]], [4, 5]


class Looking(nn.Module):
    """Looks where its parameter says, whatever the source."""

    @nn.compact
    def __call__(self, source, source_lengths, inputs, deterministic=True):
        logits = nn.Embed(11, 11, name="table")(inputs)
        return logits, Alignment(jax.nn.softmax(self.param("looks", nn.initializers.zeros, (3, 5, 5))))


def test_losses_of_the_alignment_are_added_with_their_weights():
    weights = {**params(), "looks": np.random.default_rng(0).normal(size=(3, 5, 5))}
    objective = teacher_forcing(Looking(), guided=2.0, coverage=0.5)
    total, found = jax.jit(objective)(weights, {**BATCH, "spans": SPANS}, jax.random.key(0))
    looks = np.exp(weights["looks"]) / np.exp(weights["looks"]).sum(-1, keepdims=True)
    guided = -np.log([looks[0, 0, :2].sum(), looks[0, 1, 1:5].sum(), looks[1, 3, 4]]).mean()
    again = [np.minimum(looks[b, t], looks[b, :t].sum(0)).sum() for b, size in enumerate(LENGTHS) for t in range(size)]
    np.testing.assert_allclose(found["guided_alignment"], guided, rtol=1e-5)
    np.testing.assert_allclose(found["coverage_penalty"], np.mean(again), rtol=1e-5)
    np.testing.assert_allclose(found["loss"], by_hand()[0], rtol=1e-5)
    np.testing.assert_allclose(total, by_hand()[0] + 2 * guided + 0.5 * np.mean(again), rtol=1e-5)


def test_a_loss_of_the_alignment_needs_one_and_its_gold():
    with pytest.raises(ValueError, match="needs a model with attention"):
        teacher_forcing(NextToken(), coverage=1.0)(params(), BATCH, jax.random.key(0))
    with pytest.raises(ValueError, match="needs data with gold spans"):
        teacher_forcing(Looking(), guided=1.0)({**params(), "looks": np.zeros((3, 5, 5))}, BATCH, jax.random.key(0))

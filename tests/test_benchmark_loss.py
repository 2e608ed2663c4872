"""The loss benchmark at its smallest size: everyone agrees, also with the formula by hand; a wrong peer is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.training.errors import UserError
from benchmarks import loss


def test_everyone_agrees_at_every_vocabulary():
    rows = [*loss.benchmark("small", repetitions=1)]
    cases = [f"B3 T5 D7 N{vocabulary}" for vocabulary in (11, 13)]
    assert [row.case for row in rows if row.implementation == "attention_zoo"] == cases
    assert {row.implementation for row in rows} - {"PyTorch"} == {"attention_zoo", "optax"}
    assert {(row.benchmark, row.direction) for row in rows} == {("loss", "forward+gradient")}
    assert all(row.error_vs_reference < 1e-6 for row in rows)


@pytest.mark.parametrize("ours", [loss._ours, loss._optax])
def test_contestants_give_the_mean_of_real_tokens_by_hand(ours):
    features, kernel, bias, targets, mask = map(np.asarray, loss._problem(3, 5, 7, 11))
    assert 0 < mask.sum() < mask.size
    logits = features.astype(np.float64) @ kernel + bias
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(ours(features, kernel, bias, targets, mask), losses[mask].mean(), rtol=1e-6)


def test_a_peer_that_counts_padding_is_refused(monkeypatch):
    def careless(*arguments):
        return loss._optax(*arguments[:-1], jnp.ones_like(arguments[-1]))

    monkeypatch.setattr(loss, "PEERS", {"careless": lambda: loss._contestant("careless", careless)})
    with pytest.raises(UserError, match=r"N11: careless differs from attention_zoo by .* not timed"):
        [*loss.benchmark("small", repetitions=1)]

"""The captioner benchmark at its smallest size: one model in two hands, all kinds, a wrong peer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.training.errors import UserError
from benchmarks import captioner


def test_the_plain_captioner_agrees_and_kinds_are_measured(monkeypatch):
    monkeypatch.setattr(captioner, "KINDS", {"soft": captioner.KINDS["soft"]})
    rows = [*captioner.benchmark("small", repetitions=1)]
    assert [row.implementation for row in rows] == ["attention_zoo", "flax.linen", "soft"]
    assert [row.case for row in rows] == ["soft, B3 11 x 11 T4"] * 2 + ["kinds, B3 11 x 11 T4"]
    assert rows[1].error_vs_reference < 1e-5 and all(np.isfinite(row.ratio) for row in rows)


@pytest.mark.parametrize("kind", [kind for kind in captioner.KINDS if kind != "soft"])
def test_the_other_kinds_take_a_step(kind):
    setting = captioner.SIZES["small"]
    step = captioner._kind(kind, kind, setting, captioner._batch(setting), captioner._finite_metrics)
    metrics, state = jax.eval_shape(step.work, *step.arguments)
    given = jax.tree.map(jnp.shape, step.arguments[0].params)
    assert jax.tree.map(lambda leaf: leaf.shape, state.params) == given
    assert metrics["loss"].shape == metrics["gradient_norm"].shape == ()


def test_a_peer_with_another_gate_is_refused(monkeypatch):
    to_plain = captioner.to_plain

    def wrong(params):
        plain = to_plain(params)
        return {**plain, "cell": {**plain["cell"], "gate": jax.tree.map(jnp.ones_like, plain["cell"]["gate"])}}

    monkeypatch.setattr(captioner, "to_plain", wrong)
    monkeypatch.setattr(captioner, "KINDS", {"soft": captioner.KINDS["soft"]})
    with pytest.raises(UserError, match="linen differs from attention_zoo"):
        [*captioner.benchmark("small", repetitions=1)]


def test_a_loss_that_is_not_finite_is_no_result():
    assert captioner._finite_metrics(({"loss": jnp.ones(()), "norm": jnp.zeros(())}, None)) == 0
    assert np.isnan(captioner._finite_metrics(({"loss": jnp.ones(()), "norm": jnp.array(jnp.inf)}, None)))

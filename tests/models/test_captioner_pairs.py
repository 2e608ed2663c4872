"""The scores and alignments of a captioner together: finite in value and gradient, blind to masked cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from attention_zoo.models.caption_attention import ALIGNED, look
from attention_zoo.models.mechanisms import SCORES
from tests.models.captioners import MASK, SIZES, B, Q, R, S, captioner, inputs
from tests.quick import quick

VALUES = inputs(grid=(R, Q, SIZES["units"]))[0].reshape(B, S, -1)  # as wide as the state, which a dot product needs
FIELDS = {"temperature": 0.5, "kept": 2, "chunk": 2, "positions": S, "annotation_width": SIZES["units"]}


@pytest.mark.parametrize("alignment", ALIGNED["soft"])
def test_scores_with_alignments_are_finite_and_see_no_masked_cell(alignment):
    """Of every score, in training."""
    models = {score: captioner(score=score, alignment=alignment, **FIELDS) for score in SCORES}
    noise, query = {"alignment": jax.random.key(1)}, np.float32(np.random.default_rng(1).normal(size=(B, 1, 11)))

    def glance(model, values, query):
        memory = model.attend.remember(values, MASK)
        return look(model, query, memory, model.attend.start(memory), None, False)[:2]

    def every(params, values, query):
        found = {name: nn.apply(glance, models[name])(params[name], values, query, rngs=noise) for name in models}
        return sum(jnp.sum(jnp.sin(context)) for context, _ in found.values()), found

    keys = {"params": jax.random.key(0), **noise}
    shapes = {name: jax.eval_shape(nn.init(glance, models[name]), keys, VALUES, query) for name in models}
    random = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: np.float32(random.normal(0, 0.5, leaf.shape)), shapes)
    gradients, found = quick(jax.grad(every, (0, 1, 2), has_aux=True))(params, VALUES, query)
    for leaf in jax.tree.leaves((gradients, found)):
        assert np.isfinite(leaf).all()
    assert not np.asarray(gradients[1])[~MASK].any() and np.asarray(gradients[1])[MASK].any()
    for context, looked in found.values():
        weights = np.asarray(looked.weights[:, 0])
        assert not weights[~MASK].any() and not np.any(context[2])
        assert np.all(weights.sum(-1)[:2] < 1 + 1e-5) and np.all(weights[:2].sum(-1) > 0.01)

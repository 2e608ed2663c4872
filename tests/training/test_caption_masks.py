"""Locations that a batch hides: no objective learns from them, no search and no judge sees them."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.data.vocabulary import Words
from attention_zoo.training.caption_losses import Sampling, likelihood, reinforce, variational
from attention_zoo.training.captioning import CaptionJudge
from attention_zoo.training.objectives import shifted
from tests.models.captioners import MASK, B, N, Q, R, T, V, by_hand, captioner, close, inputs, parameters, soft
from tests.quick import quick

IMAGES, TOKENS = inputs()
LENGTHS = np.array([T, 4, 1], np.int32)
BATCH = {"images": IMAGES, "target": TOKENS, "target_lengths": LENGTHS, "mask": MASK}
KEY = jax.random.key(3)
# What is hidden is something else.
OTHERS = np.where(MASK.reshape(B, R, Q, 1), IMAGES, 7.0).astype(np.float32)
ESTIMATES = ["soft", "self_critical", "leave_one_out"]


def objective(kind, options):
    model = captioner(kind)
    if kind == "hard":
        return partial(reinforce(model, Sampling(2, options, 0.0)), carry=jnp.zeros(()))
    return variational(model, options) if kind == "variational" else likelihood(model, doubly_stochastic=options)


KINDS = [
    ("soft", 0.7),
    ("marginal", 0.0),
    ("variational", 0),
    ("variational", 2),
    *(("hard", one) for one in ESTIMATES),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_is_hidden_moves_neither_loss_nor_gradient(kind, options):
    params = parameters(captioner(kind), IMAGES, TOKENS)
    work = quick(jax.value_and_grad(objective(kind, options), has_aux=True))
    (loss, _), gradient = work(params, BATCH, KEY)
    (same, _), again = work(params, {**BATCH, "images": OTHERS}, KEY)
    close((same, again), (loss, gradient))
    seen = {**BATCH, "mask": np.ones_like(MASK)}
    assert np.abs(work(params, seen, KEY)[0][0] - loss) > 1e-3


def test_the_penalty_asks_only_for_what_may_be_seen():
    params = parameters(captioner(), IMAGES, TOKENS)
    weights = by_hand(params, IMAGES, np.asarray(shifted(TOKENS)), soft(MASK), MASK).weights
    missing = [
        np.square(1 - weights[row, : LENGTHS[row]].sum(0))[MASK[row]].sum() for row in range(2)
    ]  # the third: none
    found = quick(objective("soft", 0.7))(params, BATCH, KEY)[1]["doubly_stochastic"]
    close(found, np.mean(missing), rtol=1e-4)


def judge_of(images, mask=MASK):
    batch = {"images": images, "target": TOKENS, "target_lengths": LENGTHS, "valid": np.ones(B, bool)}
    batch |= {} if mask is None else {"mask": mask}
    data = SimpleNamespace(
        shape=(R, Q, V),
        max_target=T,
        target=Words([str(number) for number in range(N - 4)]),
        split=lambda name: [batch],
        encode_batch=lambda paths: {name: batch[name][:1] for name in ("images", "mask")},
    )
    return CaptionJudge(captioner(), data)


COMPILED = judge_of(IMAGES)  # what all judges here compile alike


@pytest.mark.parametrize("width", [1, 2])
def test_searches_and_judges_are_blind_to_it(width):
    shown = []

    def judge(*case):
        def search(*inputs, width):
            shown.append(inputs[2])
            return COMPILED.search(*inputs, width=width)

        made = judge_of(*case)
        made.__dict__.update(search=search, judge=COMPILED.judge)
        return made

    params = parameters(captioner(), IMAGES, TOKENS)
    found, other, all_seen = (
        judge(*case).evaluate(params, beam_size=width) for case in ((IMAGES,), (OTHERS,), (IMAGES, None))
    )
    assert found == pytest.approx(other, rel=1e-5) and all_seen["perplexity"] != pytest.approx(
        found["perplexity"], rel=1e-3
    )
    assert all_seen["alignment_entropy"] != pytest.approx(found["alignment_entropy"], rel=1e-3)
    next(judge(IMAGES).predict(params, ["a.png"], width))
    judge(IMAGES).draw(params, None, count=0)
    assert [mask is not None for mask in shown] == [True, True, False, True, True]

"""Feed-forward layers that leave rows out give for the others what they give anyway."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeCollectionNotFound

from attention_zoo.functional import ragged
from attention_zoo.modules import FeedForward, MultiHeadAttention, Sight, Stack, TransformerBlock
from tests.quick import quick

B, T, D, WIDTH = 3, 7, 8, 5
DRAW = np.random.default_rng(0)
INPUTS = jnp.float32(DRAW.normal(size=(B, T, D)))
LENGTHS = jnp.array([7, 4, 0])
REAL = jnp.arange(T)[None] < LENGTHS[:, None]


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    """Small layers too leave rows out."""
    monkeypatch.setattr(ragged, "LEAST", (0, 0))
    monkeypatch.setattr(ragged, "SIZES", (8, 2))


def drawn(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.float32(DRAW.normal(0, 0.5, leaf.shape)), shapes)


def loops(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments)).count("while[")


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_equals_the_layer_of_all_rows(activation):
    module = FeedForward(11, WIDTH, activation)
    variables, by = drawn(module, INPUTS), jnp.float32(DRAW.normal(size=(B, T, WIDTH)))

    def pulled(real, variables, inputs):
        work = lambda *a: jnp.where(REAL[..., None], module.apply(*a, real=real), 0)  # noqa: E731
        results, pull_back = jax.vjp(work, variables, inputs)
        return results, pull_back(by)

    some, whole = (quick(partial(pulled, real))(variables, INPUTS) for real in (REAL, None))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), some, whole)
    assert loops(partial(module.apply, variables, real=REAL), INPUTS) == 2
    assert loops(partial(module.apply, variables), INPUTS) == 0


def test_no_parameters_is_what_flax_says_it_is():
    for real in (None, REAL):
        with pytest.raises(ScopeCollectionNotFound, match="params"):
            FeedForward(11, WIDTH).apply({}, INPUTS, real=real)


def test_a_small_layer_takes_all_rows(monkeypatch):
    module = FeedForward(11, WIDTH)
    variables = drawn(module, INPUTS)
    number, size = B * T, D * 11
    for least, expected in (((number, size), 2), ((number + 1, size), 0), ((number, size + 1), 0)):
        monkeypatch.setattr(ragged, "LEAST", least)
        assert loops(partial(module.apply, variables, real=REAL), INPUTS) == expected


def test_dropout_of_each_row_is_its_own_and_follows_the_key():
    """Rows that are all the same differ by what is dropped: units that each reach one of the outputs."""
    module, real = FeedForward(64, 64, use_bias=False, dropout=0.25), jnp.ones((B, T), bool)
    variables = {"params": {name: {"kernel": jnp.eye(64)} for name in ("enter", "leave")}}

    @quick
    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, jnp.ones((B, T, 64)), deterministic=False, real=real, rngs=rngs)

    first, again, other = (np.asarray(dropped(seed)).reshape(-1, 64) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(np.unique(first)) == {np.float32(0), np.float32(4 / 3)}
    assert abs((first == 0).mean() - 0.25) < 4 * (0.25 * 0.75 / first.size) ** 0.5
    assert len(np.unique(first, axis=0)) == B * T and not (first == other).all()


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("rematerialise", [False, True])
def test_a_stack_is_the_same_at_real_positions(scan, rematerialise):
    feed, attention = partial(FeedForward, 11, D), partial(MultiHeadAttention, 2, D)
    block = partial(TransformerBlock, attention, feed, nn.LayerNorm)
    stack = Stack(2, block, nn.LayerNorm, rematerialise, scan)
    variables = drawn(stack, INPUTS)

    def loss(real, variables, inputs):
        outputs = stack.apply(variables, inputs, Sight(lengths=LENGTHS), real=real)[0]
        return jnp.square(jnp.where(REAL[..., None], outputs, 0)).sum()

    some, whole = (quick(jax.value_and_grad(partial(loss, real), (0, 1)))(variables, INPUTS) for real in (REAL, None))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), some, whole)

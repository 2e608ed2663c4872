"""Heads, feed-forward layers and stacks: by hand, against their own definition, and scanned against unrolled."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from attention_zoo.models.mechanisms import SCORES
from attention_zoo.modules import Additive, FeedForward, MultiHeadAttention, Sight, Stack, TransformerBlock
from attention_zoo.modules.multihead import Heads, append
from tests.quick import quick

B, T, E = 2, 5, 8
INPUTS = jnp.float32(np.random.default_rng(0).normal(size=(B, T, E)))
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def over(module, inputs=INPUTS, **options):
    """Self-attention of the inputs."""
    return module(inputs, module.remember(inputs), **options)[0]


def made(module, seed=0):
    shapes = jax.eval_shape(partial(module.init, method=over), jax.random.key(0))
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.float32(generator.normal(0, 0.5, leaf.shape)), shapes)


def test_one_head_is_softmax_attention_by_the_formula() -> None:
    module = MultiHeadAttention(1, E)
    variables = made(module)
    params = jax.tree.map(np.asarray, variables["params"])
    queries, keys, values = (
        np.asarray(np.asarray(INPUTS) @ params[name]["kernel"] + params[name]["bias"])
        for name in ("query", "key", "value")
    )
    weights = np.asarray(jax.nn.softmax(queries @ keys.swapaxes(1, 2) / np.sqrt(E)))
    expected = weights @ values @ params["output"]["kernel"] + params["output"]["bias"]
    np.testing.assert_allclose(quick(partial(module.apply, method=over))(variables), expected, **TOLERANCE)


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_heads_are_heads_with_repeated_keys_and_values(groups: int) -> None:
    grouped, full = MultiHeadAttention(4, E, groups=groups), MultiHeadAttention(4, E)
    variables = made(grouped)

    def repeated(leaf):
        parts = leaf.reshape(*leaf.shape[:-1], groups, -1)
        return jnp.repeat(parts, 4 // groups, axis=-2).reshape(*leaf.shape[:-1], E)

    params = {
        name: jax.tree.map(repeated, part) if name in ("key", "value") else part
        for name, part in variables["params"].items()
    }

    def both(one, other):
        return grouped.apply(one, method=over), full.apply(other, method=over)

    np.testing.assert_allclose(*quick(both)(variables, {"params": params}), **TOLERANCE)


@pytest.mark.parametrize("score", sorted(set(SCORES) - {"location"}))
def test_every_score_stands_in_a_head_with_weights_of_its_own(score: str) -> None:
    """Two heads equal two modules of one head each, whose parameters are theirs."""
    sizes = SimpleNamespace(decoder_units=4, score_units=None, dtype=None)
    make = partial(SCORES[score], sizes, 4)
    two, one = (MultiHeadAttention(heads, 4 * heads, use_bias=False, score=make) for heads in (2, 1))
    variables = made(two)
    kernels = {name: part["kernel"] for name, part in variables["params"].items() if name != "relevance"}

    def head(number):
        own = slice(4 * number, 4 * number + 4)
        params = {name: {"kernel": kernels[name][:, own]} for name in ("query", "key", "value")}
        params["output"] = {"kernel": jnp.eye(4)}
        if "relevance" in variables["params"]:
            params["relevance"] = jax.tree.map(lambda leaf: leaf[number : number + 1], variables["params"]["relevance"])
        return {"params": params}

    def both(variables, first, second):
        parts = jnp.concatenate([one.apply(params, method=over) for params in (first, second)], -1)
        return two.apply(variables, method=over), parts @ kernels["output"]

    np.testing.assert_allclose(*quick(both)(variables, head(0), head(1)), **TOLERANCE)


def test_swiglu_by_its_formula() -> None:
    module = FeedForward(7, E, "swiglu", use_bias=False)
    shapes = jax.eval_shape(module.init, jax.random.key(0), INPUTS)
    normal = np.random.default_rng(0).normal
    variables = jax.tree.map(lambda leaf: np.float32(normal(0, 0.5, leaf.shape)), shapes)
    enter, gate, leave = (np.asarray(variables["params"][name]["kernel"]) for name in ("enter", "gate", "leave"))
    hidden = np.asarray(INPUTS) @ enter
    expected = (hidden / (1 + np.exp(-hidden)) * (np.asarray(INPUTS) @ gate)) @ leave
    np.testing.assert_allclose(module.apply(variables, INPUTS), expected, **TOLERANCE)


def test_what_does_not_fit_into_a_cache_is_left_out() -> None:
    cache = Heads(*(jnp.arange(12.0).reshape(2, 1, 6, 1) for _ in range(2)))
    new = Heads(*(jnp.array([[40.0, 50.0, -1.0], [70.0, 80.0, 90.0]]).reshape(2, 1, 3, 1) for _ in range(2)))
    rows = append(cache, new, jnp.array([[4, 5, 6], [1, 2, 3]])).keys.reshape(2, 6).tolist()
    assert rows == [[0, 1, 2, 3, 40, 50], [6, 70, 80, 90, 10, 11]]


def stack(**options) -> Stack:
    attention = partial(MultiHeadAttention, 2, E, dropout=0.3)
    feed = partial(FeedForward, 7, E, dropout=0.3)
    return Stack(3, partial(TransformerBlock, attention, feed, nn.LayerNorm, dropout=0.3), nn.LayerNorm, **options)


def loss(module, variables, seed=None):
    """With dropout where there is a seed."""
    rngs = None if seed is None else {"dropout": jax.random.key(seed)}
    return jnp.square(module.apply(variables, INPUTS, deterministic=seed is None, rngs=rngs)[0]).sum() / 7


@cache
def unrolled():
    """Variables, and the loss and its gradient of layers written out; parameters as scanned layers have them."""
    plain, generator = stack(), np.random.default_rng(0)
    shapes = jax.eval_shape(plain.init, jax.random.key(0), INPUTS)
    variables = jax.tree.map(lambda leaf: np.float32(generator.normal(0, 0.5, leaf.shape)), shapes)

    def stacked(tree):
        each = [tree["params"][f"each_{number}"] for number in range(3)]
        together = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        return {"params": {"together": together, "last_norm": tree["params"]["last_norm"]}}

    value, gradient = quick(jax.value_and_grad(partial(loss, plain)))(variables)
    return stacked(variables), value, stacked(gradient)


@pytest.mark.parametrize("rematerialise", [False, True])
def test_scanned_and_rematerialised_layers_equal_unrolled_ones(rematerialise: bool) -> None:
    """In value and in gradient, with the same parameters."""
    variables, value, gradient = unrolled()
    scanned = partial(loss, stack(scan=True, rematerialise=rematerialise))
    found, gradients = quick(jax.value_and_grad(scanned))(variables)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), gradients, gradient)


def test_dropout_under_scan_and_rematerialisation_differs_from_none_and_follows_its_key() -> None:
    module = stack(scan=True, rematerialise=True)
    variables, _, none = unrolled()
    slopes = quick(lambda seed: jax.grad(partial(loss, module, seed=seed))(variables))
    found = slopes(1), slopes(1), slopes(2), none
    first, again, other, none = (np.asarray(jax.tree.leaves(tree)[0]) for tree in found)
    assert np.array_equal(first, again) and np.isfinite(first).all()
    assert not np.allclose(first, other) and not np.allclose(first, none)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheme": "relative"}, "needs its bias, from modules.RelativeBias"),
        ({"scheme": "learned"}, "scheme is one of"),
        ({"groups": 3}, "heads is a multiple of groups; got 2 and 3"),
        ({"dropout": 1.0}, r"dropout lies in \[0, 1\); got 1.0"),
        ({"score": partial(Additive, 4), "soft_cap": 2.0}, "takes no soft_cap"),
        ({"alignment": len}, "needs a score"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(MultiHeadAttention(2, E, **fields))


def test_a_mask_hides_and_an_empty_row_is_zero() -> None:
    module = MultiHeadAttention(2, E, use_bias=False)
    variables = made(module)
    mask = jnp.array([[True, True, False, False, False], [False] * 5])[:, None, None]

    look = quick(lambda inputs: module.apply(variables, method=lambda m: m(INPUTS, m.remember(inputs), Sight(mask))[0]))
    changed = np.array(INPUTS)
    changed[0, 2:] = 9
    first, other = np.asarray(look(INPUTS)), look(changed)
    np.testing.assert_allclose(first, other, rtol=1e-6)
    assert (first[1] == 0).all() and np.abs(first[0]).max() > 0

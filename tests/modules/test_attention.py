"""Attention as a module: against the plain functions, memory, masks, dtypes, errors."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from attention_zoo.functional import scores
from attention_zoo.functional.attend import attend
from attention_zoo.modules import (
    Additive,
    Attention,
    Concat,
    Cosine,
    Dot,
    General,
    Location,
    Memory,
    ScaledDot,
)

B, T, S, Q, V, D, L = 2, 3, 7, 5, 11, 13, 17
MASK = np.arange(S) < np.array([[4], [0]])
# These learn to compare queries and values of different widths; the others need equal ones.
PROJECTING = {
    "general": General(Q),
    "additive": Additive(D),
    "normalised": Additive(D, normalised=True),
    "concat": Concat(D),
    "location": Location(L),
    "cosine": Cosine(V),
}
SCORES = {"dot": Dot(), "scaled_dot": ScaledDot()} | PROJECTING
every_score = pytest.mark.parametrize("name", SCORES)


def draw(*shape: int) -> np.ndarray:
    return np.float32(np.random.default_rng(shape).normal(size=shape))


def sources(name: str) -> tuple[np.ndarray, np.ndarray]:
    return draw(B, T, Q if name in PROJECTING else V), draw(B, S, V)


def initialise(name: str) -> dict:
    return Attention(SCORES[name]).init(jax.random.key(0), *sources(name), method="over")


@cache
def drawn(name: str) -> dict:
    """Variables that no initialiser chose, whose programs would take longer to compile; none is zero."""
    return jax.tree.map(lambda leaf: 0.5 * draw(*leaf.shape), jax.eval_shape(partial(initialise, name)))


@cache
def compiled(name: str) -> Callable:
    """(variables, queries, values, mask) -> context, alignment, state."""
    attention = Attention(SCORES[name])
    return jax.jit(lambda variables, *arguments: attention.apply(variables, *arguments, method="over"))


def plain_score(name: str, parameters: dict) -> Callable:
    """The same score as a function of unprojected queries and keys."""
    score = jax.tree.map(np.asarray, parameters.get("params", {}).get("score", {}))
    if name == "general":
        return lambda q, k: scores.general(q, k, score["key"]["kernel"].T)
    if name in ("additive", "normalised"):
        energy = scores.normalised_energy(score["energy"], score["gain"]) if name == "normalised" else score["energy"]
        bias = score["key"]["bias"][None, None]
        return lambda q, k: scores.additive(q @ score["query"]["kernel"], k @ score["key"]["kernel"] + bias, energy)
    if name == "concat":
        halves = [score["additive"][half]["kernel"] for half in ("query", "key")]
        return lambda q, k: scores.concat(q, k, np.concatenate(halves).T, score["additive"]["energy"])
    if name == "location":
        return lambda q, k: scores.location(q, score["weight"], k.shape[-2])
    if name == "cosine":
        return lambda q, k: scores.cosine(q @ score["query"]["kernel"], k, score["sharpness"])
    return {"dot": scores.dot, "scaled_dot": scores.scaled_dot}[name]


@every_score
def test_module_equals_function(name):
    queries, values = sources(name)
    variables = drawn(name)
    context, alignment, _ = compiled(name)(variables, queries, values, MASK)
    run = jax.jit(lambda q, v: attend(q, v, v, MASK[:, None], score=plain_score(name, variables)))
    expected, expected_alignment = run(queries, values)
    np.testing.assert_allclose(context, expected, atol=2e-5)
    np.testing.assert_allclose(alignment.weights, expected_alignment.weights, atol=1e-5)


@every_score
def test_remembered_once_equals_at_once(name):
    queries, values = sources(name)
    attention, variables = Attention(SCORES[name]), drawn(name)

    @jax.jit
    def by_step(variables):
        memory = attention.apply(variables, values, MASK, method="remember")
        return memory, [attention.apply(variables, queries[:, t : t + 1], memory)[0] for t in range(T)]

    memory, steps = by_step(variables)
    assert isinstance(memory, Memory) and len(jax.tree.leaves(memory)) == 3
    whole = compiled(name)(variables, queries, values, MASK)[0]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, atol=1e-5)


@every_score
def test_nothing_is_kept_on_the_module(name):
    run = partial(Attention(SCORES[name]).apply, method="over", mutable=True)
    changed = jax.jit(lambda variables: run(variables, *sources(name))[1])(drawn(name))
    assert set(changed) <= {"params"}
    jax.tree.map(np.testing.assert_array_equal, changed.get("params", {}), drawn(name).get("params", {}))


@every_score
def test_padding_changes_nothing_and_receives_no_gradient(name):
    queries, values = sources(name)
    variables = drawn(name)
    run = compiled(name)

    @jax.jit
    def gradient(variables, queries, values):
        return jax.grad(lambda *arguments: jnp.sum(run(*arguments, MASK)[0] ** 2), argnums=(0, 1, 2))(
            variables, queries, values
        )

    garbage = np.where(MASK[..., None], values, np.float32(1e4))
    jax.tree.map(
        np.testing.assert_array_equal, run(variables, queries, values, MASK), run(variables, queries, garbage, MASK)
    )
    clean, dirty = (jax.device_get(gradient(variables, queries, source)) for source in (values, garbage))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    np.testing.assert_array_equal(clean[2][~MASK], 0)
    assert np.all(clean[2][MASK] != 0)
    # The second source is empty: nothing to read there, and nothing to learn from it.
    np.testing.assert_array_equal(run(variables, queries, values, MASK)[0][1], 0)
    np.testing.assert_array_equal(clean[1][1], 0)


@every_score
def test_every_parameter_learns(name):
    queries, values = sources(name)
    weighting = draw(B, T, V)
    total = lambda variables: jnp.sum(weighting * compiled(name)(variables, queries, values, None)[0])  # noqa: E731
    gradients = jax.jit(jax.grad(total))(drawn(name))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(np.abs(gradient) > 1e-6), jax.tree_util.keystr(path)


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
@every_score
def test_computes_in_bfloat16_with_parameters_in_float32(name, given):
    queries, values = (jnp.asarray(array, given) for array in sources(name))
    attention = Attention(SCORES[name].clone(dtype=jnp.bfloat16))
    variables = jax.eval_shape(lambda: attention.init(jax.random.key(0), queries, values, method="over"))
    context, alignment, _ = jax.eval_shape(lambda v: attention.apply(v, queries, values, method="over"), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} <= {jnp.dtype("float32")}
    assert context.dtype == alignment.weights.dtype == jnp.bfloat16
    memory = jax.eval_shape(lambda v: attention.apply(v, values, method="remember"), variables)
    assert memory.keys.dtype == memory.values.dtype == jnp.bfloat16


def test_cosine_remembers_keys_of_length_one():
    remember = jax.jit(partial(Attention(Cosine(V)).apply, method="remember"))
    keys = remember(drawn("cosine"), draw(B, S, V)).keys
    np.testing.assert_allclose(np.linalg.norm(keys, axis=-1), 1, rtol=1e-6)


@every_score
def test_batched_equals_vmap_of_the_single_example(name):
    queries, values = sources(name)
    attention = Attention(SCORES[name])
    one = jax.vmap(lambda v, q, s, m: attention.apply(v, q, s, m, method="over")[0], in_axes=(None, 0, 0, 0))
    expected = compiled(name)(drawn(name), queries, values, MASK)[0]
    np.testing.assert_allclose(jax.jit(one)(drawn(name), queries, values, MASK), expected, atol=1e-5)


def test_the_normalised_energy_starts_with_the_length_of_the_paper():
    score = jax.jit(partial(initialise, "normalised"))()["params"]["score"]
    np.testing.assert_allclose(score["gain"], np.sqrt(1 / D), rtol=1e-6)


def test_no_mask_means_that_all_is_real():
    queries, values = sources("dot")
    found, _, _ = compiled("dot")({}, queries, values, None)
    np.testing.assert_array_equal(found, compiled("dot")({}, queries, values, np.ones((B, S), bool))[0])


def test_the_alignment_and_its_state_are_exchangeable():
    def first(scores: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.zeros_like(scores).at[..., 0].set(1)

    queries, values = sources("dot")
    attention = Attention(Dot(), alignment=first)
    memory = attention.apply({}, values, method="remember")
    context, _, state = attention.apply({}, queries, memory, "the state goes through")
    np.testing.assert_array_equal(context, np.broadcast_to(values[:, :1], context.shape))
    assert state == "the state goes through"
    assert attention.apply({}, memory, method="start") is None


def test_a_mask_of_a_wrong_shape_is_an_error_that_names_it():
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        Attention(Dot()).apply({}, draw(B, S, V), np.ones((B, T), bool), method="remember")


def test_queries_without_an_axis_of_steps_are_an_error_that_names_them():
    memory = Attention(Dot()).apply({}, draw(B, S, V), method="remember")
    with pytest.raises(TypeCheckError, match="parameter 'queries'"):
        Attention(Dot()).apply({}, draw(V), memory)


def test_scaled_dot_with_softmax_has_fused_paths_and_no_other_score():
    queries, values = sources("scaled_dot")
    plain, _, _ = compiled("scaled_dot")({}, queries, values, MASK)
    fused = jax.jit(partial(Attention(ScaledDot(), implementation="chunked").apply, method="over"))
    context, alignment, _ = fused({}, queries, values, MASK)
    assert alignment is None
    np.testing.assert_allclose(context, plain, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="is for scaled_dot with softmax alone"):
        Attention(Dot(), implementation="chunked").apply({}, queries, values, MASK, method="over")


def test_unknown_implementation_is_refused():
    queries, values = sources("dot")
    with pytest.raises(ValueError, match="implementation is one of"):
        Attention(Dot(), implementation="fast").apply({}, queries, values, method="over")

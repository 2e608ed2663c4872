"""The whole attention step: by hand, against JoeyNMT, OpenNMT-py and jax.nn, gradients and options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from attention_zoo.functional import masks, scores
from attention_zoo.functional.attend import attend, read

B, T, S, D, V, H = 2, 3, 7, 5, 11, 13


compiled = jax.jit(attend, static_argnames="implementation")


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def test_read_by_hand():
    weights, values = jnp.array([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]), jnp.array([[4.0, 8.0], [0.0, -8.0], [9.0, 9.0]])
    np.testing.assert_array_equal(read(weights, values), [[1, -4], [0, 0]])


def test_attention_step_by_hand():
    # Scores ln 1, ln 2, ln 5 after the scale of 1/2; the third position is hidden from the second query.
    queries, keys = np.array([[2.0, 0, 0, 0]] * 2), np.log([[1.0, 1, 1, 1], [2, 1, 1, 1], [5, 1, 1, 1]])
    values = np.array([[8.0, 0.0], [0.0, 8.0], [16.0, 24.0]])
    context, alignment = compiled(queries, keys, values, np.array([[True, True, True], [True, True, False]]))
    np.testing.assert_allclose(alignment.weights, [[0.125, 0.25, 0.625], [1 / 3, 2 / 3, 0]], rtol=1e-6)
    np.testing.assert_allclose(context, [[11, 17], [8 / 3, 16 / 3]], rtol=1e-6)
    assert alignment.log_prob is None and alignment.entropy is None


def test_bahdanau_step_by_hand():
    # tanh(ln 2) = 3/5, and v = ln(3) * 5/3: scores ln 3 and -ln 3, so weights 9/10 and 1/10.
    def score(queries, keys):
        return scores.additive(queries, keys, jnp.array([np.log(3) * 5 / 3]))

    keys, values = jnp.array([[np.log(2)], [-np.log(2)]]), jnp.array([[10.0], [-30.0]])
    context, alignment = attend(jnp.zeros((1, 1)), keys, values, score=score)
    np.testing.assert_allclose(alignment.weights, [[0.9, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(context, [[6]], rtol=1e-6)


def test_the_alignment_is_exchangeable():
    def hardest(scores, mask):
        return jax.nn.one_hot(jnp.argmax(jnp.where(mask, scores, -jnp.inf), axis=-1), scores.shape[-1])

    keys, values = jnp.array([[1.0], [3.0], [2.0]]), jnp.array([[10.0], [30.0], [20.0]])
    mask = jnp.array([[True, True, True], [True, False, True]])
    context, alignment = attend(jnp.ones((2, 1)), keys, values, mask, align=hardest)
    np.testing.assert_array_equal(context, [[30], [20]])
    np.testing.assert_array_equal(alignment.weights, [[0, 1, 0], [0, 0, 1]])


def test_default_equals_jax_nn():
    queries, keys, values = map(np.float32, (draw(B, T, H, D), draw(B, S, H, D), draw(B, S, H, D, seed=1)))
    mask = np.random.default_rng(0).random((B, H, T, S)) < 0.5
    mask[..., 0] = True
    expected = jax.jit(jax.nn.dot_product_attention)(queries, keys, values, mask=mask)
    heads_first = [np.swapaxes(array, 1, 2) for array in (queries, keys, values)]
    np.testing.assert_allclose(np.swapaxes(compiled(*heads_first, mask)[0], 1, 2), expected, atol=1e-6)


def compare(case: dict[str, np.ndarray], forward, names: tuple[str, str]) -> None:
    """`forward(arrays) -> results` gives the golden results and, by their cotangents, the golden gradients."""
    differentiated = {name: case[name] for name in case if f"gradients/{name}" in case}
    results, pull_back = jax.vjp(jax.jit(forward), differentiated)
    (gradients,) = pull_back(tuple(jnp.asarray(case[f"cotangents/{name}"]) for name in names))
    assert {f"gradients/{name}" for name in gradients} == {name for name in case if name.startswith("gradients/")}
    for name, result in zip(names, results, strict=True):
        np.testing.assert_allclose(result, case[name], rtol=1e-10, atol=1e-10, err_msg=name)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, case[f"gradients/{name}"], rtol=1e-10, atol=1e-10, err_msg=name)


def test_bahdanau_equals_joeynmt(golden, float64):
    case = golden("joeynmt_attention", "bahdanau")

    def forward(arrays):
        queries = arrays["queries"] @ arrays["weights/query_layer.weight"].T
        keys = arrays["values"] @ arrays["weights/key_layer.weight"].T
        energy = arrays["weights/energy_layer.weight"][0]
        score = lambda q, k: scores.additive(q, k, energy)  # noqa: E731
        context, alignment = attend(queries, keys, arrays["values"], case["mask"][:, None], score=score)
        return context, alignment.weights

    compare(case, forward, ("context", "alignment"))


def test_luong_equals_joeynmt(golden, float64):
    case = golden("joeynmt_attention", "luong")

    def forward(arrays):
        score = lambda q, k: scores.general(q, k, arrays["weights/key_layer.weight"])  # noqa: E731
        values = arrays["values"]
        context, alignment = attend(arrays["queries"], values, values, case["mask"][:, None], score=score)
        return context, alignment.weights

    compare(case, forward, ("context", "alignment"))


def onmt_score(kind: str, arrays: dict[str, jax.Array]):
    if kind == "dot":
        return scores.dot
    if kind == "general":
        return lambda q, k: scores.general(q, k, arrays["weights/linear_in.weight"].T)

    def additive(queries, keys):
        projected = queries @ arrays["weights/linear_query.weight"].T + arrays["weights/linear_query.bias"][None, None]
        return scores.additive(
            projected, keys @ arrays["weights/linear_context.weight"].T, arrays["weights/v.weight"][0]
        )

    return additive


@pytest.mark.parametrize("kind", ["dot", "general", "mlp"])
def test_every_score_equals_opennmt(kind, golden, float64):
    case = golden("onmt_attention", kind)
    mask = masks.padding(jnp.asarray(case["lengths"]), case["values"].shape[1])

    def forward(arrays):
        queries, values = arrays["queries"], arrays["values"]
        context, alignment = attend(queries, values, values, mask, score=onmt_score(kind, arrays))
        joined = jnp.concatenate([context, queries], -1) @ arrays["weights/linear_out.weight"].T
        if kind == "mlp":
            return joined + arrays["weights/linear_out.bias"][None, None], alignment.weights
        return jnp.tanh(joined), alignment.weights

    compare(case, forward, ("attentional", "alignment"))


def test_gradient_equals_finite_differences(float64):
    mask = masks.combine(masks.padding(jnp.array([5, 0]), S), masks.causal(T, S, 1))
    step = jax.jit(lambda queries, keys, values: attend(queries, keys, values, mask))
    check_grads(step, (draw(B, T, D), draw(B, S, D), draw(B, S, V)), order=1, atol=1e-6, rtol=1e-6)


def test_keys_and_values_may_serve_all_heads():
    queries, keys, values = draw(B, H, T, D), draw(B, 1, S, D), draw(B, 1, S, V)
    context, alignment = compiled(queries, keys, values, np.arange(S) < np.array([4, 7])[:, None, None, None])
    assert alignment.weights.shape == (B, H, T, S)
    single, _ = compiled(queries[0, 2], keys[0, 0, :4], values[0, 0, :4])
    np.testing.assert_allclose(np.asarray(context)[0, 2], single, atol=1e-5)


def test_the_fused_path_gives_the_same_context_and_no_weights():
    queries, keys, values, mask = draw(B, T, D), draw(1, S, D), draw(B, S, V), np.arange(S) < 3
    expected, alignment = compiled(queries, keys, values, mask[None, None])
    context, none = compiled(queries, keys, values, mask[None, None], implementation="chunked")
    np.testing.assert_allclose(context, expected, rtol=1e-5, atol=1e-6)
    assert alignment is not None and none is None


def test_what_no_implementation_does_is_refused():
    arrays = draw(T, D), draw(S, D), draw(S, V)
    with pytest.raises(ValueError, match="implementation is one of plain, chunked, cudnn, tokamax; got 'fast'"):
        attend(*arrays, implementation="fast")
    with pytest.raises(ValueError, match="'chunked' is for scaled_dot with softmax alone"):
        attend(*arrays, score=scores.dot, implementation="chunked")

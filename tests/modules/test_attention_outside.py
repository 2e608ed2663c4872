"""Attention as a module against JoeyNMT, OpenNMT-py and torch: results and gradients, from golden files."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from attention_zoo.functional import masks
from attention_zoo.modules import Additive, Attention, Concat, Cosine, Dot, General, Location


def compare(case: dict[str, np.ndarray], forward: Callable, parts: tuple[str, str]) -> None:
    """`forward(arrays) -> results` gives the golden results and, by their cotangents, the golden gradients."""
    differentiated = {name: case[name] for name in case if f"gradients/{name}" in case}
    results, pull_back = jax.vjp(jax.jit(forward), differentiated)
    (gradients,) = pull_back(tuple(jnp.asarray(case[f"cotangents/{part}"]) for part in parts))
    found = dict(zip(parts, results, strict=True)) | {f"gradients/{name}": g for name, g in gradients.items()}
    for name, value in found.items():
        np.testing.assert_allclose(value, case[name], rtol=1e-10, atol=1e-10, err_msg=name)


def attend_by(score: nn.Module, parameters: dict, queries: jax.Array, values: jax.Array, mask: np.ndarray):
    """The context and weights of `Attention(score)`, its source remembered first."""
    attention, variables = Attention(score), {"params": {"score": parameters}}
    memory = attention.apply(variables, values, mask, method="remember")
    context, alignment, state = attention.apply(variables, queries, memory)
    assert state is None
    return context, alignment.weights


def test_bahdanau_equals_joeynmt(golden, float64):
    case = golden("joeynmt_attention", "bahdanau")

    def forward(arrays):
        parameters = {
            "query": {"kernel": arrays["weights/query_layer.weight"].T},
            "key": {"kernel": arrays["weights/key_layer.weight"].T},
            "energy": arrays["weights/energy_layer.weight"][0],
        }
        score = Additive(11, use_bias=False)
        return attend_by(score, parameters, arrays["queries"], arrays["values"], case["mask"])

    compare(case, forward, ("context", "alignment"))


def test_luong_equals_joeynmt(golden, float64):
    case = golden("joeynmt_attention", "luong")

    def forward(arrays):
        parameters = {"key": {"kernel": arrays["weights/key_layer.weight"].T}}
        return attend_by(General(11), parameters, arrays["queries"], arrays["values"], case["mask"])

    compare(case, forward, ("context", "alignment"))


def onmt_score(kind: str, arrays: dict[str, jax.Array]) -> tuple[nn.Module, dict]:
    if kind == "dot":
        return Dot(), {}
    if kind == "general":  # OpenNMT-py projects the query: the keys' kernel is its transpose, twice transposed
        return General(5), {"key": {"kernel": arrays["weights/linear_in.weight"]}}
    query = {"kernel": arrays["weights/linear_query.weight"].T}
    key = {"kernel": arrays["weights/linear_context.weight"].T, "bias": arrays["weights/linear_query.bias"]}
    return Additive(5), {"query": query, "key": key, "energy": arrays["weights/v.weight"][0]}


@pytest.mark.parametrize("kind", ["dot", "general", "mlp"])
def test_attentional_vector_equals_opennmt(kind, golden, float64):
    case = golden("onmt_attention", kind)
    mask = masks.within(case["lengths"], 7)

    def forward(arrays):
        queries = arrays["queries"]
        context, weights = attend_by(*onmt_score(kind, arrays), queries, arrays["values"], mask)
        joined = jnp.concatenate([context, queries], -1) @ arrays["weights/linear_out.weight"].T
        if kind == "mlp":
            return joined + arrays["weights/linear_out.bias"][None, None], weights
        return jnp.tanh(joined), weights

    compare(case, forward, ("attentional", "alignment"))


def torch_score(name: str, arrays: dict[str, jax.Array]) -> tuple[nn.Module, dict]:
    weights = {key.removeprefix("weights/"): value for key, value in arrays.items() if key.startswith("weights/")}
    if name == "cosine":
        return Cosine(11), {"query": {"kernel": weights["query.weight"].T}, "sharpness": weights["sharpness"]}
    if name == "normalised":
        layers = {
            "query": {"kernel": weights["query.weight"].T},
            "key": {"kernel": weights["key.weight"].T, "bias": weights["query.bias"]},
        }
        energy = {"energy": weights["energy.original1"][0], "gain": weights["energy.original0"]}
        return Additive(13, normalised=True), layers | energy
    if name == "concat":
        query, key = (half.T for half in jnp.split(weights["joint.weight"], [5], axis=1))
        halves = {"query": {"kernel": query}, "key": {"kernel": key}}
        return Concat(13), {"additive": halves | {"energy": weights["energy.weight"][0]}}
    return Location(7), {"weight": weights["positions.weight"].T}


@pytest.mark.parametrize("name", ["cosine", "normalised", "concat", "location"])
def test_equals_the_same_score_of_torchs_parts(name, golden, float64):
    case = golden("torch_scores", name)

    def forward(arrays):
        return attend_by(*torch_score(name, arrays), arrays["queries"], arrays["values"], case["mask"])

    compare(case, forward, ("context", "alignment"))

"""The transformer benchmark at its smallest size: equal training steps, their needs, and a peer that is wrong."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from attention_zoo.training.errors import UserError
from benchmarks import harness, transformer, transformer_peers


@pytest.fixture
def quick(monkeypatch):
    """One layer a stack: what differs between layers is nothing but their number."""
    monkeypatch.setitem(transformer.SIZES["small"], "layers", 1)


def test_both_models_agree_with_their_peers(quick):
    rows = transformer.benchmark("small", repetitions=1, peers=["flax wmt", "PyTorch"])
    half = len(rows) // 2
    for number, case in enumerate(("encoder, B5 S7 D6 N97", "encoder-decoder, B5 S7 T11 D6 N97")):
        ours, flax, *others = rows[number * half : (number + 1) * half]
        assert (ours.implementation, flax.implementation) == ("attention_zoo", "flax wmt")
        assert {row.implementation for row in others} <= {"PyTorch"}
        assert {row.case for row in (ours, flax, *others)} == {case}
    assert all(row.error_vs_reference < 1e-5 and np.isfinite(row.ratio) for row in rows)
    assert {(row.benchmark, row.direction, row.roof) for row in rows} == {
        ("transformer", "forward+gradient", "matmul_gflops")
    }


@pytest.mark.parametrize("prepare", [transformer._translation, transformer._classification])
def test_needs_are_the_operations_of_the_matrix_products(prepare, quick):
    """Counted in the jaxpr of the flax model, where every product stands as one."""
    _, work = prepare(SimpleNamespace(**transformer.SIZES["small"]))
    if work.translates:
        model, given = transformer_peers.PlainTransformer(work.sizes), (work.batch[0], *work.batch[2:4])
    else:
        model, given = transformer_peers.PlainClassifier(work.sizes), work.batch[:1]
    params = transformer_peers._to_flax(work.params, work.sizes.heads)
    traced = jax.make_jaxpr(lambda params: model.apply({"params": params}, *given))(params)
    assert transformer._products(work) == sum(map(_operations, traced.eqns))


def _operations(equation):
    """Of a matrix product, alone or within functions that are called."""
    if equation.primitive.name != "dot_general":
        inner = (part for value in equation.params.values() for part in [getattr(value, "jaxpr", None)] if part)
        return sum(_operations(part) for jaxpr in inner for part in jaxpr.eqns)
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * np.prod(result) * np.prod([left[axis] for axis in contracted])


def test_a_peer_with_other_weights_is_not_timed(quick, monkeypatch):
    def wrong(name, work):
        return transformer_peers.flax_wmt(
            name, work._replace(params=jax.tree.map(lambda leaf: 1.01 * leaf, work.params))
        )

    def timed(*arguments):
        raise AssertionError("timed")

    monkeypatch.setattr(harness, "seconds", timed)
    monkeypatch.setattr(transformer, "PEERS", {"wrong": lambda: wrong})
    with pytest.raises(UserError, match=r"encoder, .* wrong differs from attention_zoo by .* not timed"):
        transformer.benchmark("small", repetitions=1)

"""The transformer benchmark at its smallest size: equal training steps, their needs, and a peer that is wrong."""

from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.training.errors import UserError
from benchmarks import harness, training, transformer, transformer_peers, transformer_pytorch
from benchmarks.rows import Row


@pytest.fixture
def quick(monkeypatch):
    """One layer a stack: what differs between layers is nothing but their number."""
    monkeypatch.setitem(transformer.SIZES["small"], "layers", 1)


def test_both_models_agree_with_their_peers(quick):
    rows = [*transformer.benchmark("small", repetitions=1, peers=["flax wmt", "PyTorch"])]
    half = len(rows) // 2
    for number, case in enumerate(("encoder, B5 S7 D6 N97", "encoder-decoder, B5 S7 T11 D6 N97")):
        ours, flax, *others = rows[number * half : (number + 1) * half]
        assert (ours.implementation, flax.implementation) == ("attention_zoo", "flax wmt")
        assert {row.implementation for row in others} <= {"PyTorch"}
        assert {row.case for row in (ours, flax, *others)} == {case}
    assert all(row.error_vs_reference < 1e-5 and np.isfinite(row.ratio) for row in rows)
    assert {(row.benchmark, row.direction, row.dtype, row.roof) for row in rows} == {
        ("transformer", "forward+gradient", "float32", "matmul_gflops")
    }


@pytest.mark.parametrize("prepare", [transformer._translation, transformer._classification])
def test_in_bfloat16_the_losses_agree(prepare, quick):
    loss, work = prepare(_small("bfloat16"))
    found = [jax.jit(loss)(work.params, *work.batch)]
    plain = transformer_peers.flax_wmt("flax wmt", work)
    found.append(jax.jit(lambda *given: plain.work(*given)[0]["loss"])(*plain.arguments))
    if find_spec("torch"):
        half, single = (work._replace(sizes=_small(dtype)) for dtype in ("bfloat16", "float32"))
        theirs = [transformer_pytorch.torch_peer(compiled=False)("PyTorch", each) for each in (half, single)]
        rounded, exact = (each.compared(each.work(*each.arguments))["loss"] for each in theirs)
        assert rounded != exact
        found.append(rounded)
    np.testing.assert_allclose(found[1:], found[0], rtol=transformer.TOLERANCES["bfloat16"])


def test_vaswanis_base_model_is_left_to_accelerators(capsys):
    assert [*transformer.benchmark("long")] == []
    assert "transformer: its size long is for accelerators, and left out" in capsys.readouterr().err


@pytest.mark.parametrize("prepare", [transformer._translation, transformer._classification])
@pytest.mark.parametrize("peer", [None, transformer_peers.flax_wmt])
def test_in_bfloat16_every_product_with_weights_takes_bfloat16(prepare, peer, quick):
    """Forward and backward; on a GPU the kernels of attention take what they are given, bfloat16 too."""
    loss, work = prepare(_small("bfloat16"))
    ours = training.training_step("ours", loss, work.params, work.batch)
    contestant = ours if peer is None else peer("flax wmt", work)
    traced = jax.make_jaxpr(contestant.work)(*contestant.arguments)
    products = [[part.aval for part in equation.invars] for equation in _products(traced.jaxpr)]
    with_weights = [both for both in products if min(part.ndim for part in both) <= 2]
    # Our layer norm's sums, float32 as all of it is, are products with a vector on a CPU; nothing else is.
    sums = [both for both in with_weights if peer is None and [part.ndim for part in both] == [2, 1]]
    assert all(part.dtype == jnp.float32 for both in sums for part in both)
    dtypes = [{str(part.dtype) for part in both} for both in with_weights if both not in sums]
    assert dtypes and all(dtype == {"bfloat16"} for dtype in dtypes)
    norms = sum(leaf.ndim == 1 and path[-1].key == "scale" for path, leaf in jax.tree.leaves_with_path(work.params))
    assert len(sums) == (2 * norms if peer is None else 0)


def test_the_share_of_the_peak_is_that_of_the_data_sheet(monkeypatch, capsys):
    device, row = (
        SimpleNamespace(device_kind="NVIDIA H200"),
        {"benchmark": "transformer", "direction": "", "ratio": 1.0},
    )
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(transformer, "roofs", {"bfloat16": {"matmul_gflops": 494_700.0}}.__getitem__)
    numbers = {"median_ms": 1.0, "low_ms": 1.0, "high_ms": 1.0, "roof_fraction": 0.9}
    half, single = (
        Row(case="base", implementation="ours", dtype=dtype, **row, **numbers) for dtype in ("bfloat16", "float32")
    )
    transformer.show([half])
    assert "base, ours: 45.0% model FLOP utilisation (NVIDIA H200, " in capsys.readouterr().out
    transformer.show([single])
    assert "utilisation" not in capsys.readouterr().out


@pytest.mark.parametrize("prepare", [transformer._translation, transformer._classification])
def test_needs_are_the_operations_of_the_matrix_products(prepare, quick):
    """Counted in the jaxpr of the flax model, where every product stands as one."""
    _, work = prepare(_small("float32"))
    if work.translates:
        model, given = transformer_peers.PlainTransformer(work.sizes), (work.batch[0], *work.batch[2:4])
    else:
        model, given = transformer_peers.PlainClassifier(work.sizes), work.batch[:1]
    params = transformer_peers._to_flax(work.params, work.sizes.heads)
    traced = jax.make_jaxpr(lambda params: model.apply({"params": params}, *given))(params)
    assert transformer._products(work) == sum(map(_operations, _products(traced.jaxpr)))


def _small(dtype):
    return SimpleNamespace(**transformer.SIZES["small"], dtype=jnp.dtype(dtype))


def _products(jaxpr):
    """The matrix products, alone or within functions that are called."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from _products(value.jaxpr)


def _operations(equation):
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
        [*transformer.benchmark("small", repetitions=1)]

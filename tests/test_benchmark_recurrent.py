"""The recurrent benchmark at its smallest size: everyone agrees in every case; a wrong peer is refused."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.training.errors import UserError
from benchmarks import recurrent
from benchmarks.harness import compare


def test_everyone_agrees_in_every_case():
    rows = [*recurrent.benchmark("small", repetitions=1)]
    cases = [f"{cell}, {way}directional, {lengths}, B3 S5 I7 D11"
             for cell, way, lengths in product(("lstm", "gru"), ("uni", "bi"), ("full", "padded"))]  # fmt: skip
    expected = list(product(cases, ("forward", "forward+gradient"), ("attention_zoo", "flax.linen")))
    found = [(row.case, row.direction, row.implementation) for row in rows if row.implementation != "PyTorch"]
    assert found == expected and {row.implementation for row in rows} <= {"attention_zoo", "flax.linen", "PyTorch"}
    assert all(row.error_vs_reference < 2e-6 for row in rows)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_parameters_go_to_flax_and_back(cell):
    layer = recurrent._problem(cell, False, False, (3, 5, 7, 11))[0][recurrent.LAYERS[0]]
    there = recurrent._to_flax(cell, layer)
    jax.tree.map(np.testing.assert_array_equal, recurrent._from_flax(cell, there), layer)
    moved = recurrent._from_flax(cell, jax.tree.map(lambda leaf: leaf + 1, there))
    gates = moved["recurrent_bias"] - layer["recurrent_bias"]
    np.testing.assert_allclose(gates, np.repeat([1] * 4 if cell == "lstm" else [0, 0, 1], 11), rtol=1e-6)


def test_padding_is_not_compared_and_its_cotangents_are_zero():
    *_, lengths, cotangents = recurrent._problem("lstm", False, True, (3, 5, 7, 11))
    padding = np.arange(5) >= np.asarray(lengths)[:, None]
    assert padding.any() and not cotangents[padding].any() and cotangents[~padding].all()
    outputs = recurrent._compared("lstm", lengths, lambda params: params)((np.ones((3, 5, 11)), ()))
    np.testing.assert_array_equal(outputs, np.broadcast_to(~padding[..., None], outputs.shape))


def test_a_peer_that_reads_on_into_padding_is_refused():
    params, inputs, lengths, cotangents = recurrent._problem("lstm", True, True, (3, 5, 7, 11))
    ours = recurrent._ours("lstm", False, params, inputs, lengths, cotangents)
    whole = jnp.full_like(lengths, inputs.shape[1])
    careless = replace(ours, implementation="careless", arguments=(params, inputs, whole, cotangents))
    with pytest.raises(UserError, match=r"careless differs from attention_zoo by .* not timed"):
        compare("recurrent", "padded", "forward", [ours, careless], tolerance=recurrent.TOLERANCES["float32"])

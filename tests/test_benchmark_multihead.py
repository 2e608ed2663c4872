"""The multi-head benchmark at its smallest size: everyone agrees; a layer that ignores its mask is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.training.errors import UserError
from benchmarks import multihead
from benchmarks.harness import compare


def test_everyone_agrees_in_every_case():
    rows = [*multihead.benchmark("small", repetitions=1)]
    found = {row.case.split()[-1]: [] for row in rows}
    for row in rows:
        found[row.case.split()[-1]].append(row.implementation)
        assert (row.benchmark, row.direction) == ("multihead", "forward+gradient") and row.error_vs_reference < 2e-6
    assert list(found) == list(multihead.CASES) and len({tuple(names) for names in found.values()}) == 1
    assert found["plain"][:2] == ["attention_zoo", "flax.linen"]
    assert set(found["plain"][2:]) <= {"keras", "PyTorch", "x-transformers"}


def test_the_output_is_that_of_the_formula():
    work = multihead._work(3, 5, 14, 2, "masked")
    contestant = multihead._ours("ours", work)
    outputs, *_ = contestant.compared(jax.jit(contestant.work)(*contestant.arguments))
    queries, keys, values = (
        np.stack(np.split(np.asarray(work.inputs @ work.kernels[name]), 2, -1), 1) for name in multihead.PARTS[:3]
    )
    scores = np.where(np.asarray(work.real)[:, None, None], queries @ keys.swapaxes(2, 3) / 7**0.5, -np.inf)
    heads = np.asarray(jax.nn.softmax(scores)) @ values
    expected = np.concatenate(list(heads.swapaxes(0, 1)), -1) @ np.asarray(work.kernels["output"])
    np.testing.assert_allclose(outputs, np.where(np.asarray(work.real)[..., None], expected, 0), atol=1e-5)


def test_padding_gets_no_cotangent_and_what_is_left_to_multiply_is_counted():
    masked, plain, causal = (multihead._work(3, 5, 14, 2, case) for case in ("masked", "plain", "causal"))
    assert 0 < int(masked.real.sum()) < 15 and not jnp.where(masked.real[..., None], 0, masked.cotangent).any()
    projections, pairs = 4 * 15 * 14**2, 2 * 3 * 5 * 5 * 14
    assert multihead._multiplications(plain) == projections + pairs
    assert multihead._multiplications(causal) == projections + pairs / 2
    assert projections < multihead._multiplications(masked) < projections + pairs


@pytest.mark.parametrize("case", ["causal", "masked"])
def test_a_layer_that_ignores_its_mask_is_refused(case):
    work = multihead._work(3, 5, 14, 2, case)
    careless = multihead._ours("careless", work._replace(case="plain"))
    with pytest.raises(UserError, match=r"careless differs from attention_zoo by .* not timed"):
        compare("multihead", case, "forward+gradient", [multihead._ours("attention_zoo", work), careless],
                tolerance=multihead.TOLERANCES["float32"], repetitions=1)  # fmt: skip

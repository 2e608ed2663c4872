"""The key functions cost what was recorded: a rise is a regression, a great fall is to be recorded.

After a change that is meant: `JAX_PLATFORMS=cpu python -m tests.compiled_costs --record`, under each supported jax.
"""

import json

import jax
import jax.numpy as jnp
import pytest

from tests import compiled_costs
from tests.compiled_costs import WORKS, complaints, cost, floats, main, measured, recorded, release


@pytest.mark.parametrize("name", WORKS)
def test_a_key_function_costs_what_was_recorded(name):
    assert release() in recorded(), f"python -m tests.compiled_costs --record keeps the costs under jax {release()}"
    assert not complaints(measured(name), recorded()[release()][name])


@pytest.mark.parametrize("version", ["0.10", "0.11"])
def test_every_function_is_recorded_for_every_supported_jax(version):
    kept = recorded()[version]
    assert kept.keys() == WORKS.keys()
    assert all(min(costs.values()) > 0 for costs in kept.values())


def test_a_matrix_that_is_kept_in_whole_is_seen():
    """By hand: the scores [T, S] are temporaries; two products of 2 T S D; all inputs are read."""

    def plain(queries, keys, values):
        return jax.nn.softmax(queries @ keys.T) @ values

    found = cost(plain, (floats(256, 64), floats(512, 64), floats(512, 64)))
    assert 4 * 256 * 512 <= found["temporaries"] <= 4 * 4 * 256 * 512
    assert 4 * 256 * 512 * 64 <= found["flops"] <= 1.2 * 4 * 256 * 512 * 64
    assert found["bytes"] >= 4 * 64 * (256 + 512 + 512)


def test_a_rise_of_5_percent_and_a_fall_of_20_are_told():
    kept = {"flops": 100, "bytes": 1000, "temporaries": 10_000}
    assert complaints({"flops": 105, "bytes": 800, "temporaries": 10_000}, kept) == []
    assert complaints({"flops": 106, "bytes": 799, "temporaries": 12_345}, kept) == [
        "flops rose from 100 to 106",
        "bytes fell from 1,000 to 799: record it, so that it stays there",
        "temporaries rose from 10,000 to 12,345",
    ]


def test_recording_keeps_the_other_versions(tmp_path, monkeypatch, capsys):
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"0.9": {"old": {}}}))
    monkeypatch.setattr(compiled_costs, "RECORD", file)
    monkeypatch.setattr(compiled_costs, "WORKS", {"sum": lambda: (jnp.sum, (floats(7),))})
    monkeypatch.setattr("sys.argv", ["compiled_costs"])
    assert main() == 0 and json.loads(capsys.readouterr().out).keys() == {"sum"} and recorded().keys() == {"0.9"}
    monkeypatch.setattr("sys.argv", ["compiled_costs", "--record"])
    assert main() == 0
    assert recorded().keys() == {"0.9", release()} and recorded()[release()]["sum"].keys() == {
        "flops",
        "bytes",
        "temporaries",
    }

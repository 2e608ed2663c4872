"""The decode benchmark at its smallest size: all write the same, and what a wrong peer writes is refused."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention_zoo.training.checkpoint import Checkpoints, Progress
from attention_zoo.training.step import KEYS, TrainState
from benchmarks import decode
from benchmarks.harness import Contestant
from experiments.dates_bahdanau import experiment


def test_all_write_the_same():
    rows = [*decode.benchmark("small", repetitions=1)]
    cases = "greedy B3 S7", "beam 2 B3 S7"
    found = [(row.case, row.implementation) for row in rows]
    peers = ["attention_zoo", "plain JAX", *(["JoeyNMT"] if (cases[0], "JoeyNMT") in found else [])]
    assert found == [(case, peer) for case in cases for peer in peers]
    assert all(row.error_vs_reference < 1e-5 and np.isfinite(row.ratio) for row in rows)
    # Nobody writes END: five symbols for each of three sources.
    assert all(row.tokens_per_second == round(3 * 5 * 1e3 / row.median_ms) for row in rows)


@pytest.mark.parametrize("width", [1, 2])
def test_the_loop_in_python_is_the_library_search_where_hypotheses_end(width):
    task = decode.random_task(5, end=1.0)
    ours, plain = decode.measure(task, width, 1, {"plain JAX": decode._plain})
    assert plain.error_vs_reference < 1e-5
    tokens, _ = decode._plain(task, width).work(*decode._arguments(task))
    lengths = [[*row, decode.END].index(decode.END) + 1 for row in tokens[:, :-1].tolist()]
    assert len(set(lengths)) > 2
    assert ours.tokens_per_second == round(1e3 * sum(lengths) / ours.median_ms)


def careless(task, width):
    """A search that leaves the penalty of length out."""
    plain = decode._plain(task, width)
    return replace(plain, implementation="careless", compared=lambda found: (found[0], found[1] * decode.PENALTY(5)))


def test_other_scores_are_refused():
    with pytest.raises(ValueError, match=r"decode, beam 2 B3 S7: careless differs from attention_zoo by .* not timed"):
        decode.measure(decode.random_task(3), 2, 1, {"careless": careless})


def test_what_comes_after_end_is_not_compared():
    tokens, scores = np.array([[5, decode.END, 7], [5, 6, 7]]), np.array([[-1.0, -2.0, -4.0]] * 2)
    counts = {}
    by_token = decode._counting(Contestant("by token", lambda: None, ()), 4, counts).compared((tokens, scores))
    np.testing.assert_array_equal(by_token["tokens"], [[5, decode.END, 0, 0], [5, 6, 7, 0]])
    np.testing.assert_array_equal(by_token["scores"], [-3, -7])
    whole = decode._counting(Contestant("whole", lambda: None, ()), 4, counts).compared((tokens, scores[:, :1]))
    np.testing.assert_array_equal(whole["scores"], [-1, -1])
    assert counts == {"by token": 5, "whole": 5}


def test_without_a_trained_run_one_sentence_says_how_to_make_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(decode, "RUN", tmp_path / "none")
    assert [*decode.benchmark("paper", repetitions=1)] == []
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "python -m experiments train dates_bahdanau" in said


def test_a_run_gives_its_model_and_its_weights(tmp_path):
    sizes = {"embedding": 5, "encoder_units": 7, "decoder_units": 6}
    run = experiment(**sizes, batch_size=13, train_examples=11, held_out_examples=7)
    batches = iter(run.data.train(0))
    params = jax.jit(run.init)(jax.random.key(0), next(batches))
    state = TrainState(jnp.int32(0), params, run.optimizer.init(params), jax.random.key(0, impl=KEYS))
    run.data.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"experiment": run.name, "flags": sizes}))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, batches, Progress(step=1, best_step=1))
    task = decode.trained_task(tmp_path, 17)
    jax.tree.map(np.testing.assert_array_equal, task.params, params)
    assert task.max_length == 11 and task.source.shape == (17, task.lengths[0])
    assert (jnp.diff(task.lengths) <= 0).all() and (jnp.sum(task.source != decode.PAD, 1) == task.lengths).all()

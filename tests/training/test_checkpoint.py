"""What a checkpoint brings back, which are kept, and what is done about damaged ones."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from attention_zoo.training import UserError, load_parameters, shard_batch
from attention_zoo.training.checkpoint import Checkpoints, Progress
from attention_zoo.training.sharding import make_mesh
from attention_zoo.training.step import Steps, evaluation_parameters
from tests.training.tiny import Copies, experiment

RUN = experiment(Copies((5,)))


def bits(state):
    """All numbers of a state, the key's too."""
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture(scope="module")
def steps():
    made = Steps(RUN, make_mesh())
    made.compile_ahead(RUN.data.shapes()[:1])
    return made


@pytest.fixture(scope="module")
def saved(steps, tmp_path_factory):
    """A work folder with the checkpoints of steps 2 (the best), 4 and 5, and the states and batches behind them."""
    workdir = tmp_path_factory.mktemp("saved")
    iterator, state, states, following = iter(RUN.data.train(0)), steps.initial(), {}, {}
    with Checkpoints(workdir) as checkpoints:
        for step in range(1, 6):
            state, _ = steps(state, shard_batch(next(iterator), steps.mesh))
            if step != 3:
                progress = Progress(step=step, best=0.5, best_step=min(step, 2), seconds=step / 7)
                checkpoints.save(state, iterator, progress)
                states[step] = bits(state), jax.device_get(evaluation_parameters(state))
                position = iterator.get_state()
                following[step] = next(iterator)
                iterator.set_state(position)
    return workdir, states, following


@pytest.fixture
def copy(saved, tmp_path):
    """A copy to do damage to."""
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def restore(workdir, steps):
    """What is restored, the iterator, what is told and the steps that are left."""
    told, iterator = [], iter(RUN.data.train(0))
    with Checkpoints(workdir) as checkpoints:
        found = checkpoints.restore(steps.state_shapes, iterator, told.append)
        return found, iterator, told, checkpoints.steps()


def template():
    return jax.eval_shape(RUN.init, jax.random.key(0), RUN.data.shapes()[0])


def test_all_comes_back_to_the_last_bit(saved, steps):
    workdir, states, following = saved
    (state, progress), iterator, told, _ = restore(workdir, steps)
    assert same(bits(state), states[5][0]) and not same(bits(state), states[4][0])
    assert progress == Progress(step=5, best=0.5, best_step=2, seconds=5 / 7)
    assert same(next(iterator).values(), following[5].values())
    assert told == []
    assert state.key.dtype == steps.initial().key.dtype


def test_the_newest_two_and_the_best_are_kept(saved, steps):
    assert restore(saved[0], steps)[3] == [5, 4, 2]


def test_the_best_parameters_are_loaded_and_they_are_the_average(saved, steps):
    workdir, states, _ = saved
    loaded = load_parameters(workdir, template())
    assert same(jax.tree.leaves(loaded), jax.tree.leaves(states[2][1]))
    trained = states[2][0][1 : 1 + len(jax.tree.leaves(loaded))]
    assert not same(jax.tree.leaves(loaded), trained)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def change(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replaced(text):
    return lambda path: path.write_text(text)


# JSON, but no list of files: each pattern finds the same one.
WRONG = {"files.json": "[]", "file?.json": "{}", "file*.json": '{"progress/metadata": 3}'}
DAMAGE = [
    ("parameters/d/*", truncate, "has"),
    ("training/d/*", change, "has been changed"),
    ("training/_METADATA", lambda path: path.unlink(), "training/_METADATA is missing"),
    ("iterator", shutil.rmtree, "iterator/process_0-of-1.json is missing"),
    ("progress/metadata", truncate, "progress/metadata has"),
    ("files.json", truncate, "files.json is missing or damaged"),
    *[(name, replaced(text), "files.json is missing or damaged") for name, text in WRONG.items()],
]


@pytest.mark.parametrize("pattern, harm, reason", DAMAGE, ids=[pattern for pattern, _, _ in DAMAGE])
def test_the_checkpoint_before_a_damaged_one_is_used_and_said_so(saved, copy, steps, pattern, harm, reason):
    newest = copy / "checkpoints" / "5"
    harm(next(newest.glob(pattern)))
    (state, progress), iterator, (sentence,), left = restore(copy, steps)
    assert progress.step == 4 and same(bits(state), saved[1][4][0])
    assert same(next(iterator).values(), saved[2][4].values())
    assert sentence.startswith(f"{newest} is damaged (") and sentence.endswith("the checkpoint of step 4 is used.")
    assert reason in sentence
    assert left == [4, 2]


def test_without_a_whole_checkpoint_the_error_names_what_is_missing(copy, steps):
    for step in ("2", "4", "5"):
        (copy / "checkpoints" / step / "parameters" / "_METADATA").unlink()
    with pytest.raises(UserError) as error:
        restore(copy, steps)
    assert str(error.value).count("parameters/_METADATA is missing") == 3
    assert str(error.value).endswith("and there is no other checkpoint")
    with pytest.raises(UserError, match="parameters/_METADATA is missing"):
        load_parameters(copy, template())


def test_a_damaged_best_checkpoint_gives_way_to_the_newest(saved, copy):
    told = []
    truncate(next((copy / "checkpoints" / "2").glob("parameters/d/*")))
    loaded = load_parameters(copy, template(), told.append)
    assert same(jax.tree.leaves(loaded), jax.tree.leaves(saved[1][5][1]))
    assert len(told) == 1 and told[0].endswith("the checkpoint of step 5 is used.")


def test_a_half_written_checkpoint_is_never_taken(copy, steps):
    half = copy / "checkpoints" / "9.orbax-checkpoint-tmp"
    shutil.copytree(copy / "checkpoints" / "5", half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    (_, progress), _, told, left = restore(copy, steps)
    assert progress.step == 5 and left == [5, 4, 2] and told == []
    assert not half.exists()


def test_the_parameters_of_another_model_are_refused(saved):
    wide = experiment(Copies((5,)), width=17)
    shapes = jax.eval_shape(wide.init, jax.random.key(0), RUN.data.shapes()[0])
    with pytest.raises(UserError, match=r"of another model: parameter Dense_0/bias is \(13,\) there and \(17,\) here"):
        load_parameters(saved[0], shapes)
    with pytest.raises(UserError, match=r"parameter Dense_9 is missing there and \(2,\) here"):
        load_parameters(saved[0], {**template(), "Dense_9": np.zeros(2)})


def test_a_folder_without_checkpoints_is_refused(tmp_path, steps):
    with pytest.raises(UserError, match="holds no checkpoints; train first"):
        load_parameters(tmp_path, template())
    assert not list(tmp_path.iterdir())
    assert restore(tmp_path, steps)[0] is None
    with pytest.raises(UserError, match="holds no whole checkpoint; train first"):
        load_parameters(tmp_path, template())

"""The seq2seq benchmark at its smallest size: PyTorch's translator gives the same loss, and what the work needs."""

import jax
import pytest

from attention_zoo.models import seq2seq as preset
from attention_zoo.training.errors import UserError
from benchmarks import captioner, seq2seq, seq2seq_pytorch, transformer


@pytest.mark.parametrize("name, compiled", [("PyTorch", []), ("torch.compile", ["sin", "decode"])])
def test_pytorch_agrees_and_its_weights_go_on(monkeypatch, name, compiled):
    torch = pytest.importorskip("torch")
    found, asked = [], []
    monkeypatch.setattr(seq2seq_pytorch, "accelerated", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda function: asked.append(function.__name__) or function)
    monkeypatch.setattr(seq2seq, "compare", lambda *given, **options: found.extend(given[3]))
    seq2seq.benchmark("small", 1, peers=[name])
    ours, theirs = found
    assert [one.implementation for one in found] == ["attention_zoo", name] and not theirs.jitted
    assert asked == compiled
    expected = ours.compared(jax.jit(ours.work)(*ours.arguments))
    losses = []
    for _ in range(3):
        result = theirs.work(*theirs.arguments)
        losses.append(float(result["loss"]))
        compared = theirs.compared(result)
        assert compared.keys() == expected.keys() == {"loss", "gradient_norm"}
        assert all(compared[name] == pytest.approx(float(expected[name]), rel=1e-5) for name in expected)
    assert losses[0] > losses[1] > losses[2]


def test_a_pytorch_model_of_other_weights_is_not_timed(monkeypatch):
    pytest.importorskip("torch")
    right = seq2seq_pytorch._lstm
    monkeypatch.setattr(seq2seq_pytorch, "_lstm", lambda layer, kernel: right(layer, 1.01 * kernel))
    with pytest.raises(UserError, match="PyTorch differs from attention_zoo"):
        seq2seq.benchmark("small", 1, peers=["PyTorch"])


def test_a_training_step_is_timed_on_the_wall(monkeypatch):
    asked = []
    for module in (seq2seq, transformer, captioner):
        monkeypatch.setattr(module, "compare", lambda *given, **options: asked.append(options["timed_by"]) or [])
        assert not [*module.benchmark("small", 1, peers=[])]
    assert asked == ["wall"] * 5  # gaps between kernels are a part of it


def test_nothing_is_compiled_by_pytorch_for_a_cpu(monkeypatch):
    monkeypatch.setattr(seq2seq_pytorch.pytorch, "load", lambda: None)
    with pytest.raises(ImportError, match="takes part on accelerators"):
        seq2seq_pytorch.torch_peer(compiled=True)


def test_the_operations_are_those_of_every_kernel_and_real_row():
    model = preset("translator", **seq2seq.SIZES["small"]["fields"])
    arguments = [jax.ShapeDtypeStruct(shape, "int32") for shape in ((2, 3), (2,), (2, 3))]
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    once = {"source_embedding", "target_embedding", "bridges_0"}  # looked up, or used once a sequence
    kernels = {"source": 0, "target": 0}
    for path, leaf in jax.tree.leaves_with_path({name: layer for name, layer in shapes.items() if name not in once}):
        names = jax.tree_util.keystr(path)
        kernels["source" if "encoder" in names or "'key'" in names else "target"] += leaf.size * (leaf.ndim == 2)
    assert seq2seq._products(model, source=7, target=5) == 2 * (7 * kernels["source"] + 5 * kernels["target"])

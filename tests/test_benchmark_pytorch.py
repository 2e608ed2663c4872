"""PyTorch where JAX has a GPU, with a stand-in for it; and arrays there and back."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pytorch
from benchmarks.peers import bring


@pytest.fixture
def torch(monkeypatch):
    """A stand-in whose tensors remember where they were sent."""
    calls = []
    made = SimpleNamespace(
        calls=calls,
        bfloat16="bfloat16",
        from_numpy=lambda array: SimpleNamespace(to=lambda *where: (str(array.dtype), *where)),
        cuda=SimpleNamespace(is_available=lambda: True, synchronize=lambda: calls.append("synchronized")),
        backends=SimpleNamespace(
            cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)), cudnn=SimpleNamespace(allow_tf32=True)
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", made)
    return made


def test_tensors_are_where_jax_computes(torch, monkeypatch):
    tree = {"wide": jnp.ones(3), "narrow": jnp.ones(2, jnp.bfloat16), "causal": True}
    assert pytorch.device() == "cpu" and torch.backends.cudnn.allow_tf32
    assert pytorch.tensors(tree)["wide"] == ("float32", "cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = pytorch.tensors(tree)
    assert found == {"wide": ("float32", "cuda"), "narrow": ("float32", "cuda", "bfloat16"), "causal": True}
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is False


def test_a_call_on_a_gpu_has_ended_when_it_was_waited_for(torch, monkeypatch):
    one = pytorch.contestant("PyTorch", lambda: "result", ())
    assert one.wait(one.work()) == "result" and torch.calls == []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert one.wait(one.work()) == "result" and torch.calls == ["synchronized"]


def test_without_cuda_beside_a_gpu_it_is_named_and_left_out(torch, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bring({"PyTorch": pytorch.load}) == {"PyTorch": torch}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert bring({"PyTorch": pytorch.load}) == {}
    assert capsys.readouterr().err == "PyTorch is missing, and left out: JAX runs on a GPU, and PyTorch has no CUDA\n"


def test_arrays_go_there_and_back():
    pytest.importorskip("torch")
    tree = {"wide": jnp.linspace(0.0, 1.0, 5), "narrow": jnp.linspace(0.0, 1.0, 3, dtype=jnp.bfloat16)}
    back = pytorch.arrays(pytorch.tensors(tree))
    assert {name: str(array.dtype) for name, array in back.items()} == {"wide": "float32", "narrow": "float32"}
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, np.asarray(other, np.float32)), back, tree)

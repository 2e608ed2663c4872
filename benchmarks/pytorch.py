"""PyTorch as a peer: arrays to tensors and back, on the device that JAX has, and contestants that call it."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Contestant


def load() -> Any:
    """The package, its float32 products in full float32; raises ImportError where there is none, or none for JAX's GPU.

    JAX's side of a comparison has its products in full float32 too (`harness.compare`).
    """
    torch = import_module("torch")
    if jax.default_backend() == "gpu":
        if not torch.cuda.is_available():
            raise ImportError("JAX runs on a GPU, and PyTorch has no CUDA")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch


def device() -> str:
    """Where tensors are, and modules have to be: "cuda" beside JAX on a GPU, else "cpu"."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def tensors(tree: Any) -> Any:
    """Every array of a tree as a tensor of its own memory; bfloat16 stays bfloat16, and what is no array as it is."""
    torch = load()

    def one(array: Any) -> Any:
        if not hasattr(array, "dtype"):
            return array
        if array.dtype == jax.numpy.bfloat16:
            return torch.from_numpy(np.array(array, np.float32)).to(device(), torch.bfloat16)
        return torch.from_numpy(np.array(array)).to(device())

    return jax.tree.map(one, tree)


def arrays(tree: Any) -> Any:
    """Every tensor of a tree as an array; bfloat16 becomes float32, which holds it exactly."""
    torch = load()

    def one(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    return jax.tree.map(one, tree)


def wait(result: Any) -> Any:
    """The result, once the GPU has it; a CPU has it at once."""
    if device() == "cuda":
        load().cuda.synchronize()
    return result


def contestant(name: str, work: Callable[..., Any], arguments: tuple[Any, ...], compared: Any = arrays) -> Contestant:
    """One that calls `work`, a function of PyTorch, eager or compiled by it, with tensors of the arguments' arrays."""
    return Contestant(name, work, tensors(arguments), compared, jitted=False, wait=wait)

"""PyTorch as a peer: arrays to tensors and back, and contestants that call it."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Contestant


def load() -> Any:
    """The package; raises ImportError where there is none."""
    return import_module("torch")


def tensors(tree: Any) -> Any:
    """Every array of a tree as a tensor of its own memory; bfloat16 stays bfloat16, and what is no array as it is."""
    torch = load()

    def one(array: Any) -> Any:
        if not hasattr(array, "dtype"):
            return array
        if array.dtype == jax.numpy.bfloat16:
            return torch.from_numpy(np.array(array, np.float32)).to(torch.bfloat16)
        return torch.from_numpy(np.array(array))

    return jax.tree.map(one, tree)


def arrays(tree: Any) -> Any:
    """Every tensor of a tree as an array; bfloat16 becomes float32, which holds it exactly."""
    torch = load()

    def one(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    return jax.tree.map(one, tree)


def contestant(name: str, work: Callable[..., Any], arguments: tuple[Any, ...], compared: Any = arrays) -> Contestant:
    """One that calls `work`, a function of PyTorch, eager or compiled by it, with tensors of the arguments' arrays."""
    return Contestant(name, work, tensors(arguments), compared, jitted=False)

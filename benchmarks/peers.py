"""Who takes part beside attention_zoo: peers by name, those that were asked for, and those that cannot be imported."""

import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from attention_zoo.training.errors import UserError

OURS = "attention_zoo"
# A peer's name (without commas), and what imports it and gives what it offers, or raises.
Peers = Mapping[str, Callable[[], Any]]


def bring(peers: Peers, names: Collection[str] | None = None) -> dict[str, Any]:
    """What the named peers offer, by default all; one that cannot be imported is named on stderr and left out."""
    brought = {}
    for name, load in peers.items():
        if names is not None and name not in names:
            continue
        try:
            brought[name] = load()
        except Exception as error:  # Beside another jax than its own, a package fails at import in any way.
            print(f"{name} is missing, and left out: {str(error) or type(error).__name__}", file=sys.stderr)
    return brought


def keras_layers() -> Any:
    """Keras's layers on its JAX backend; ImportError where there are none, or with another backend."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = import_module("keras")
    if keras.config.backend() != "jax":
        raise ImportError(f"its backend is {keras.config.backend()}; set KERAS_BACKEND=jax")
    return keras.layers


def asked(names: str | None, benchmarks: Mapping[str, Peers]) -> list[str] | None:
    """The peers of `--peers`; None where there is no choice.

    Raises:
        UserError: no benchmark has such a peer.
    """
    if names is None:
        return None
    there = list(dict.fromkeys(peer for peers in benchmarks.values() for peer in peers))
    for name in (chosen := names.split(",")):
        if name not in there:
            hint = f"there are {', '.join(there)}." if there else "it has none to choose from."
            raise UserError(f"there is no peer {name!r} in {', '.join(benchmarks)}; {hint}")
    return chosen


def check_guest(name: str, peers: Peers) -> None:
    """Raises UserError where a guest's name is that of another contestant."""
    if name in (OURS, *peers):
        raise UserError(f"there is a contestant {name!r} already; others are called {', '.join((OURS, *peers))}")


def known(name: str, names: Iterable[str], kind: str) -> str:
    """The name; raises UserError, with the nearest or, of few, all there are, where it is none of the names."""
    names = list(names)
    if name not in names:
        near = get_close_matches(name, names, 1) if len(names) > 3 else []
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}."
        raise UserError(f"there is no {kind} {name!r}; {hint}")
    return name

"""Floor 0: pure functions of arrays, a file for each part of a mechanism and of its training."""

from attention_zoo.functional import (
    alignment,
    alignment_losses,
    attend,
    coverage,
    local,
    losses,
    masks,
    metrics,
    mocha,
    monotonic,
    recurrent,
    relaxed,
    scores,
    search,
    sparse,
)

__all__ = [
    "alignment",
    "alignment_losses",
    "attend",
    "coverage",
    "local",
    "losses",
    "masks",
    "metrics",
    "mocha",
    "monotonic",
    "recurrent",
    "relaxed",
    "scores",
    "search",
    "sparse",
]

"""Floor 0: pure functions of arrays, a file for each part of a mechanism and of its training."""

from attention_zoo.functional import alignment, attend, losses, masks, metrics, recurrent, scores, search

__all__ = ["alignment", "attend", "losses", "masks", "metrics", "recurrent", "scores", "search"]

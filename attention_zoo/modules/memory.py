"""What attention remembers of a source."""

from typing import Any, NamedTuple

import jax


class Memory(NamedTuple):
    """Keys [..., S, K], values [..., S, V], mask [..., S] (True = real), and what the alignment keeps for itself."""

    keys: jax.Array
    values: jax.Array
    mask: jax.Array
    extra: Any = None

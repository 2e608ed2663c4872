"""Small Transformers for the tests: one of every kind of layer, by name."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.quick import quick

B, S, T, N_SOURCE, N_TARGET = 3, 7, 5, 13, 11
LENGTHS = (S, 4, 0)
SIZES = {"width": 8, "layers": 1, "heads": 2, "hidden": 7, "longest": 9}
POSITIONS = ("sinusoidal", "sinusoidal_halves", "learned", "rotary", "alibi", "relative", "none")
KINDS = {
    "post_norm": {"norm_first": False, "positions": "learned"},
    "modern": {"positions": "rotary", "width": 8, "heads": 4, "groups": 2, "norm": "rms", "activation": "swiglu",
               "qk_norm": True, "use_bias": False},
    "window": {"positions": "alibi", "window": (1, 2), "soft_cap": 3.0, "groups": 1, "implementation": "chunked"},
    "scanned": {"positions": "relative", "layers": 2, "scan": True},
    "additive": {"positions": "relative", "score": "additive", "alignment": "sparsemax", "rematerialise": True},
}  # fmt: skip


def tokens(seed=0):
    """Sources [B, S] (the last one empty), their lengths, and targets [B, T]."""
    generator = np.random.default_rng(seed)
    source, target = generator.integers(4, N_SOURCE, (B, S)), generator.integers(4, N_TARGET, (B, T))
    return tuple(map(jnp.int32, (source, LENGTHS, target)))


def drawn(model, *inputs, seed=0):
    """Variables for the model, larger than first values usually are, so that mistakes are visible; none is zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    generator = np.random.default_rng(seed)

    def one(leaf):
        return jnp.float32(generator.normal(0, leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.5, leaf.shape))

    return jax.tree.map(one, shapes)


def run(function, *arguments):
    """The function's result, compiled without optimisation: these tests are mostly compiling."""
    return quick(function)(*arguments)

"""Compiling quickly, not well: it is most of the time of the tests."""

from functools import partial

import jax

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

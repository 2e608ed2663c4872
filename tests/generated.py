"""No NaN and no infinity, in value or gradient: every mechanism on generated cases.

`python -m tests.generated --cases 10000` runs as many for every alignment and every score, in float32 and in bfloat16;
the suite runs a sample (tests/test_generated.py). A case has lengths, holes in its mask (some masks are empty) and
scores up to +-1e4: given ones for alignments, and made from queries and keys that are large enough for scores.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention_zoo.models import Seq2Seq
from attention_zoo.models.mechanisms import ALIGNMENTS, SCORES
from attention_zoo.modules import Aligner, Attention, Dot
from attention_zoo.modules.past import Coverage, LocationSensitive
from attention_zoo.training.step import KEYS
from tests.quick import quick

B, T, S, D = 50, 3, 7, 6  # examples at once, queries, source, width
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Given(Dot):
    """The scores are given: query t is one-hot at t, and key s holds the scores of position s."""


def mechanisms(dtype: Any) -> Iterator[tuple[str, Attention, bool]]:
    """Every alignment over given scores, every score with softmax; name, attention, whether scores are given."""
    model = Seq2Seq(5, 5, encoder_units=D // 2, decoder_units=D, positions=S, window=2, temperature=0.5, dtype=dtype)
    for name, make in ALIGNMENTS.items():
        yield f"alignment {name}", Attention(Given(dtype=dtype), make(model, D)), True
    for name, make in SCORES.items():
        yield f"score {name}", Attention(make(model, D)), False
    pasts = {"location": LocationSensitive, "coverage": Coverage, "fertility": partial(Coverage, fertility=2.0)}
    for name, past in pasts.items():
        yield f"past {name}", Attention(past(SCORES["additive"](model, D))), False


def cases(generator: np.random.Generator, given: bool) -> dict[str, np.ndarray]:
    """One batch of cases: queries, values and masks, as large as scores of +-1e4 make them."""
    size = 10.0 ** generator.uniform(-2, 4, (B, 1, 1))
    kind = generator.integers(3, size=(B, 1, 1))  # spread, all at the largest, or only -size, 0 and size
    values = np.where(kind == 0, generator.uniform(-1, 1, (B, S, D)), generator.integers(-1, 2, (B, S, D)))
    values = np.where(kind == 1, 1.0, values)
    mask = (np.arange(S) < generator.integers(0, S + 1, (B, 1))) & (generator.random((B, S)) < 0.8)
    if given:
        queries = np.broadcast_to(np.eye(T, D), (B, T, D))
        return {"queries": queries, "values": size * values, "mask": mask}
    root = np.sqrt(size)
    return {"queries": root * generator.uniform(-1, 1, (B, T, D)), "values": root * values, "mask": mask}


def check(attention: Attention, dtype: Any, deterministic: bool) -> Callable[..., Any]:
    """`(variables, queries, values, mask, key) -> bad [B]`: examples with a value or gradient that is not finite."""

    def run(variables: Any, queries: Any, values: Any, mask: Any, key: Any) -> Any:
        memory = attention.apply(variables, values, mask, method="remember")
        state = attention.apply(variables, memory, method="start")
        rngs = None if deterministic else {"alignment": key}
        context, alignment, _ = attention.apply(variables, queries, memory, state, deterministic, rngs=rngs)
        return context, alignment.weights

    def one(variables: Any, queries: Any, values: Any, mask: Any, key: Any) -> jax.Array:
        (context, weights), pull_back = jax.vjp(lambda *inputs: run(*inputs, mask, key), variables, queries, values)
        slopes = jnp.broadcast_to(jnp.linspace(-1, 1, S)[None], weights.shape).astype(weights.dtype)
        gradients = pull_back((jnp.ones_like(context) / D, slopes))
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((context, weights, gradients))]
        whole = (weights >= 0).all() & (weights.astype(jnp.float32).sum(-1) < 1.02).all()
        return ~(jnp.stack(finite).all() & whole & ((weights == 0) | mask[None]).all())

    inputs = (None, 0, 0, 0, 0)
    return quick(jax.vmap(one, in_axes=inputs))


def initial(attentions: list[Attention], seed: int) -> list[Any]:
    """The variables of each, by one program."""

    def draw(key: jax.Array) -> list[Any]:
        return [one.init(key, jnp.zeros((1, D)), jnp.zeros((S, D)), method="over") for one in attentions]

    return jax.jit(draw)(jax.random.key(seed, impl=KEYS))


def failures(number: int, seed: int = 0, dtypes: Sequence[str] = tuple(DTYPES)) -> dict[str, int]:
    """How many of `number` cases (whole batches of 50) go wrong, for every mechanism, dtype and mode."""
    found = {}
    for dtype_name in dtypes:
        dtype = DTYPES[dtype_name]
        every = list(mechanisms(dtype))
        for (name, attention, given), variables in zip(every, initial([one for _, one, _ in every], seed), strict=True):
            generator = np.random.default_rng(seed)
            # Only an `Aligner` does otherwise in training.
            for deterministic in (True, False) if isinstance(attention.alignment, Aligner) else (True,):
                bad, run = 0, check(attention, dtype, deterministic)
                for batch in range(-(-number // B)):
                    arrays = cases(generator, given)
                    mask, keys = arrays.pop("mask"), jax.random.split(jax.random.key(batch, impl=KEYS), B)
                    inputs = [jnp.asarray(array, dtype) for array in arrays.values()]
                    bad += int(run(variables, *inputs, mask, keys).sum())
                found[f"{name}, {dtype_name}, {'inference' if deterministic else 'training'}"] = bad
    return found


def main() -> int:
    """The command; 1 where a case went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = failures(options.cases, options.seed)
    for name, bad in found.items():
        print(f"{name}: {bad} of {-(-options.cases // B) * B} cases went wrong")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())

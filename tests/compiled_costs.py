"""What the compiler plans for the key functions: operations, bytes and temporary memory, the same on a noisy machine.

`python -m tests.compiled_costs --record` keeps them for the version of jax that is installed, in compiled_costs.json,
which the suite compares with (tests/test_compiled_costs.py); without `--record` it prints them. Nothing runs: the
functions are compiled for shapes alone, on a CPU. A loop's body counts once, however long, in operations and bytes.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import optax

from attention_zoo.functional import blocks, chunked
from attention_zoo.functional.additive_attention import additive_attention
from attention_zoo.functional.dot_product import dot_product_attention
from attention_zoo.functional.loop import scan
from attention_zoo.functional.losses import projected_cross_entropy
from attention_zoo.functional.masks import within
from attention_zoo.functional.products import project
from attention_zoo.functional.scores import additive as additive_score
from attention_zoo.functional.search import beam
from attention_zoo.models import Captioner, Seq2Seq, Transformer
from attention_zoo.modules import FeedForward, RecurrentEncoder, RecurrentLayer
from attention_zoo.training.caption_losses import likelihood
from attention_zoo.training.reporting import write_whole
from attention_zoo.training.step import TrainState, train_step

# Machine code is made quickly, not well: it is never run, and what XLA plans before it does not change.
OPTIONS: dict[str, bool | int] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if version("jaxlib").startswith("0.10."):  # As the suite does (tests/conftest.py): they compile slowly.
    OPTIONS |= {"xla_cpu_use_fusion_emitters": False}
RECORD = Path(__file__).with_suffix(".json")
Costs = dict[str, dict[str, int]]
Work = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, and the shapes of its arguments


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """An array of float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    """An array of int32."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def with_gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The value and the gradient of its sum by all arguments."""

    def work(*arguments: Any) -> Any:
        value, pull_back = jax.vjp(function, *arguments)
        return value, pull_back(jnp.ones_like(value))

    return work


def dot_product() -> Work:
    """Chunked, causal: 4 heads of width 64, 1024 positions, two heads at a time going backward."""
    step = with_gradient(partial(dot_product_attention, causal=True, implementation="chunked"))

    def work(*arrays: Any) -> Any:
        # Else as many as fit the caches of this machine, and as it has cores.
        with patch.object(chunked, "few", lambda: 2**19), patch.object(blocks, "cores", lambda: 2):
            return step(*arrays)

    return work, (floats(1, 4, 1024, 64),) * 3


def additive() -> Work:
    """Whole sequences of 50 steps."""
    return with_gradient(additive_attention), (*(floats(16, 50, 128),) * 3, floats(128))


def bidirectional_lstm() -> Work:
    """One layer of 128 units over 30 steps, lengths and all."""
    return _reading(RecurrentEncoder(128), floats(16, 30, 128), integers(16))


def padded_lstm() -> Work:
    """One layer of 512 units over 7 steps of 64 rows, whose large products take the real rows (`functional.rows`)."""
    return _reading(RecurrentLayer(512), floats(7, 64, 256), integers(64))


def additive_loop() -> Work:
    """Steps that ask 60 keys each: what goes back to a query is summed once, for its product and to be collected."""

    def step(constants: Any, hidden: Any, x: Any) -> Any:
        keys, energy, kernel = constants
        scores = additive_score(project(hidden, kernel)[:, None], keys, energy)
        return hidden + x + scores.sum((1, 2))[:, None], None

    def last(constants: Any, hidden: Any, xs: Any) -> jax.Array:
        return scan(step, constants, hidden, xs)[0].sum()

    constants = floats(16, 60, 64), floats(64), floats(3, 64)
    return jax.value_and_grad(last, (0, 1)), (constants, floats(16, 3), floats(7, 16, 3))


def padded_feed_forward() -> Work:
    """A layer for 2,048 rows, 256 to 512 and back, that computes the real ones part by part (`functional.ragged`)."""
    layer, rows = FeedForward(512, 256), floats(16, 128, 256)

    def change(params: Any, rows: Any, real: Any) -> jax.Array:
        return layer.apply({"params": params}, rows, real=real).sum()

    real = jax.ShapeDtypeStruct(rows.shape[:2], bool)
    return jax.value_and_grad(change, (0, 1)), (_parameters(layer, rows), rows, real)


def large_vocabulary_loss() -> Work:
    """2048 rows of features over 4,000 words."""
    mask = jax.ShapeDtypeStruct((32, 64), bool)

    def loss(features: Any, kernel: Any, bias: Any, targets: Any, mask: Any) -> jax.Array:
        return projected_cross_entropy(features, kernel, bias, targets, mask)[0]

    arrays = floats(32, 64, 128), floats(128, 4000), floats(4000), integers(32, 64), mask
    return jax.value_and_grad(loss, (0, 1, 2)), arrays


def translator(**fields: Any) -> Seq2Seq:
    """Bahdanau's translator, small."""
    return Seq2Seq(1000, 1000, embedding=64, encoder_units=64, decoder_units=128, **fields)


def translator_step() -> Work:
    """Loss, gradient and Adam's update: 16 pairs of 30 tokens."""
    return _text_step(translator(), 16, 30)


def transformer_step() -> Work:
    """The same of a Transformer of 1 + 1 layers: 16 pairs of 64 tokens."""
    return _text_step(
        Transformer(source_vocabulary=1000, target_vocabulary=1000, width=128, layers=1, heads=4, hidden=256), 16, 64
    )


def captioner_step() -> Work:
    """A training step of soft attention over given annotations, a grid of 10 x 10."""
    model = Captioner(100, None, "soft", embedding=32, units=64, attention_units=32)
    batch = {"images": floats(16, 10, 10, 64), "target": integers(16, 7), "target_lengths": integers(16)}
    params, optimizer = _parameters(model, batch["images"], batch["target"]), optax.adam(1e-3)
    key = jax.eval_shape(lambda: jax.random.key(0, impl="unsafe_rbg"))
    state = TrainState(integers(), params, jax.eval_shape(optimizer.init, params), key, None)
    return train_step(likelihood(model), optimizer), (state, batch)


def beam_search() -> Work:
    """A beam of 5 for 8 sources of 30 tokens, and what the translator remembers of them."""
    model = translator()

    def search(params: Any, source: Any, lengths: Any) -> Any:
        def step(cache: Any, tokens: jax.Array) -> Any:
            return model.apply({"params": params}, cache, tokens, method="step")

        cache = model.apply({"params": params}, source, lengths, method="start")
        return beam(step, cache, jnp.ones(8, jnp.int32), end=2, max_length=30, width=5)

    arrays = integers(8, 30), integers(8)
    return search, (_parameters(model, *arrays, integers(8, 1)), *arrays)


WORKS: dict[str, Callable[[], Work]] = {
    "chunked dot-product attention": dot_product,
    "additive attention": additive,
    "bidirectional LSTM": bidirectional_lstm,
    "LSTM with padding": padded_lstm,
    "additive scores in a loop": additive_loop,
    "feed-forward layer with padding": padded_feed_forward,
    "large-vocabulary loss": large_vocabulary_loss,
    "translator's training step": translator_step,
    "Transformer's training step": transformer_step,
    "captioner's training step": captioner_step,
    "beam search": beam_search,
}


def _reading(module: Any, inputs: Any, lengths: Any) -> Work:
    def read(params: Any, inputs: Any, lengths: Any) -> jax.Array:
        return module.apply({"params": params}, inputs, lengths)[0].sum()

    return jax.value_and_grad(read, (0, 1)), (_parameters(module, inputs, lengths), inputs, lengths)


def _text_step(model: Any, batch: int, steps: int) -> Work:
    optimizer, tokens, lengths = optax.adam(1e-3), integers(batch, steps), integers(batch)

    def loss(params: Any, source: Any, lengths: Any, inputs: Any, targets: Any) -> jax.Array:
        mask = within(lengths, steps)
        return model.apply({"params": params}, source, lengths, inputs, targets, mask, method="loss")[0]

    def step(params: Any, state: Any, *texts: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, *texts)
        updates, state = optimizer.update(gradient, state)
        return value, optax.apply_updates(params, updates), state

    params = _parameters(model, tokens, lengths, tokens)
    return step, (params, jax.eval_shape(optimizer.init, params), tokens, lengths, tokens, tokens)


def _parameters(module: Any, *arrays: Any) -> Any:
    return jax.eval_shape(module.init, jax.random.key(0), *arrays)["params"]


def cost(work: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, int]:
    """What the compiler counts and plans; whatever flags the process has, of the suite for instance."""
    compiled = jax.jit(work).lower(*arguments).compile(compiler_options=OPTIONS)
    counted: Any = compiled.cost_analysis()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return {"flops": int(counted["flops"]), "bytes": int(counted["bytes accessed"]), "temporaries": int(temporary)}


def measured(name: str) -> dict[str, int]:
    """The costs of a function."""
    return cost(*WORKS[name]())


def release() -> str:
    """The minor version of jax, "0.10": what is compiled changes with it."""
    return ".".join(jax.__version__.split(".")[:2])


def recorded() -> dict[str, Costs]:
    """The costs that were kept, by the version of jax."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def complaints(found: Mapping[str, int], kept: Mapping[str, int]) -> list[str]:
    """Which costs are more than 5 % above those kept, or so far below them (20 %) that they should be kept anew."""
    wrong = []
    for what, value in found.items():
        if value > 1.05 * kept[what]:
            wrong.append(f"{what} rose from {kept[what]:,} to {value:,}")
        elif value < 0.8 * kept[what]:
            wrong.append(f"{what} fell from {kept[what]:,} to {value:,}: record it, so that it stays there")
    return wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep what is found, for this version of jax")
    options = parser.parse_args()
    found = {name: measured(name) for name in WORKS}
    print(json.dumps(found, indent=2))
    if options.record:
        kept = (recorded() if RECORD.exists() else {}) | {release(): found}
        write_whole(RECORD, json.dumps(dict(sorted(kept.items())), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

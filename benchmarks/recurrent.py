"""How fast is a recurrent layer, LSTM or GRU, in one or both directions, against flax.linen and PyTorch?

Batch first, float32, from states of zeros; the cases "full" (all steps are real) and "padded" (lengths from half to all
steps), forward and with the gradient of inputs and weights. flax.linen is `nn.RNN`, in `nn.Bidirectional`, of
`OptimizedLSTMCell` or `GRUCell`; PyTorch is eager `nn.LSTM` or `nn.GRU`, on packed sequences where lengths differ. All
have the same weights, and their results in real steps and gradients must be equal before anything is timed
(`TOLERANCES`, relative to the largest value). What a peer gives in padding counts for nothing, and PyTorch's second
bias of an LSTM stays zero. Every GRU resets after its product.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from attention_zoo.functional.masks import within
from attention_zoo.modules import RecurrentEncoder
from benchmarks import pytorch
from benchmarks.harness import Contestant, compare
from benchmarks.peers import OURS, Peers, bring, known
from benchmarks.rows import Row

SIZES = {"small": (3, 5, 7, 11), "paper": (64, 30, 512, 512), "long": (16, 256, 512, 512)}  # B, S, I, D
TOLERANCES = {"float32": 1e-4}
GATES = {"lstm": "ifgo", "gru": "rzn"}  # in the order of our weights, and of torch
LAYERS = ("forward_layers_0", "backward_layers_0")
Forward = Callable[[Any, jax.Array, jax.Array | None], jax.Array]


def benchmark(size: str = "paper", repetitions: int = 15, *, peers: Collection[str] | None = None) -> Iterator[Row]:
    """Rows for every cell, direction of reading and lengths, forward and with the gradient; `peers`: all by default."""
    batch, steps, width, units = SIZES[known(size, SIZES, "size")]
    entrants = {OURS: _ours, **bring(PEERS, peers)}
    timed = partial(compare, tolerance=TOLERANCES["float32"], repetitions=repetitions)
    for cell, both, padded in product(GATES, (False, True), (False, True)):
        problem = _problem(cell, both, padded, SIZES[size])
        real = batch * steps if problem[2] is None else int(problem[2].sum())
        name = f"{cell}, {'bi' if both else 'uni'}directional, {'padded' if padded else 'full'}"
        operations = (1 + both) * 2 * real * (width + units) * len(GATES[cell]) * units
        for direction, products in (("forward", 1), ("forward+gradient", 3)):
            contestants = [enter(cell, products == 3, *problem) for enter in entrants.values()]
            case = f"{name}, B{batch} S{steps} I{width} D{units}"
            yield from timed("recurrent", case, direction, contestants, needs={"matmul_gflops": products * operations})


def _problem(cell: str, both: bool, padded: bool, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    """The encoder's parameters, inputs [B, S, I], lengths, and the outputs' cotangents, zero in padding."""
    batch, steps, width, units = sizes
    generator = np.random.default_rng(0)
    lengths = jnp.asarray(generator.integers(steps // 2, steps + 1, batch)) if padded else None

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape), "float32")

    params = {}
    for layer in LAYERS[: 1 + both]:
        gates = len(GATES[cell]) * units
        linear = {"kernel": normal(width, gates) / width**0.5} | ({"bias": normal(gates)} if cell == "gru" else {})
        params[layer] = {"input": linear, "recurrent": normal(units, gates) / units**0.5}
        # Flax's GRU has a second bias for the candidate alone.
        params[layer]["recurrent_bias"] = normal(gates).at[: 0 if cell == "lstm" else 2 * units].set(0)
    cotangents = normal(batch, steps, (1 + both) * units)
    real = True if lengths is None else within(lengths, steps)[..., None]
    return params, normal(batch, steps, width), lengths, jnp.where(real, cotangents, 0)


def _ours(cell: str, gradient: bool, params: Any, inputs: Any, lengths: Any, cotangents: Any) -> Contestant:
    units, whole = params[LAYERS[0]]["recurrent"].shape[0], jnp.full(len(inputs), inputs.shape[1])
    encoder = RecurrentEncoder(units, cell=cell, bidirectional=len(params) == 2)

    def forward(params: Any, inputs: Any, lengths: Any) -> jax.Array:
        return encoder.apply({"params": params}, inputs, whole if lengths is None else lengths)[0]

    arguments = params, inputs, lengths, cotangents
    return Contestant(OURS, _work(forward, gradient), arguments, _compared(cell, lengths, lambda params: params))


def _flax_linen(cell: str, gradient: bool, params: Any, inputs: Any, lengths: Any, cotangents: Any) -> Contestant:
    units = params[LAYERS[0]]["recurrent"].shape[0]
    layers = [nn.RNN({"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[cell](units)) for _ in params]
    module = nn.Bidirectional(*layers) if len(layers) == 2 else layers[0]
    cells = [_to_flax(cell, layer) for layer in params.values()]
    variables = {"forward_rnn": cells[0], "backward_rnn": cells[1]} if len(layers) == 2 else cells[0]

    def forward(params: Any, inputs: Any, lengths: Any) -> jax.Array:
        return module.apply({"params": params}, inputs, seq_lengths=lengths)

    def ours(params: Any) -> Any:
        found = [params["forward_rnn"], params["backward_rnn"]] if len(layers) == 2 else [params]
        return {name: _from_flax(cell, one) for name, one in zip(LAYERS, found, strict=False)}

    arguments = variables, inputs, lengths, cotangents
    return Contestant("flax.linen", _work(forward, gradient), arguments, _compared(cell, lengths, ours))


def _work(forward: Forward, gradient: bool) -> Callable[..., Any]:
    """The outputs, and the gradients of parameters and inputs where they are asked for."""

    def work(params: Any, inputs: Any, lengths: Any, cotangents: Any) -> Any:
        if not gradient:
            return forward(params, inputs, lengths), ()
        outputs, pull_back = jax.vjp(partial(forward, lengths=lengths), params, inputs)
        return outputs, pull_back(cotangents)

    return work


def _to_flax(cell: str, layer: Any) -> Any:
    """The parameters of a layer of ours under the names of flax.linen's cells, one matrix for every gate."""
    names = GATES[cell]
    inputs, recurrent = (jnp.split(kernel, len(names), -1) for kernel in (layer["input"]["kernel"], layer["recurrent"]))
    biases = {
        f"h{gate}": bias for gate, bias in zip(names, jnp.split(layer["recurrent_bias"], len(names)), strict=True)
    }
    if cell == "gru":
        own = jnp.split(layer["input"]["bias"], len(names))
        biases = {f"i{gate}": bias for gate, bias in zip(names, own, strict=True)} | {"hn": biases["hn"]}
    kernels = {f"i{gate}": kernel for gate, kernel in zip(names, inputs, strict=True)}
    kernels |= {f"h{gate}": kernel for gate, kernel in zip(names, recurrent, strict=True)}
    linear = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    return {"cell": {name: one | ({"bias": biases[name]} if name in biases else {}) for name, one in linear.items()}}


def _from_flax(cell: str, layer: Any) -> Any:
    """The way back; biases that flax.linen does not have are zeros."""
    found = layer["cell"]

    def joined(side: str, leaf: str) -> jax.Array:
        parts = [found[f"{side}{gate}"] for gate in GATES[cell]]
        return jnp.concatenate([part.get(leaf, jnp.zeros(part["kernel"].shape[-1])) for part in parts], -1)

    linear = {"kernel": joined("i", "kernel")} | ({"bias": joined("i", "bias")} if cell == "gru" else {})
    return {"input": linear, "recurrent": joined("h", "kernel"), "recurrent_bias": joined("h", "bias")}


def _compared(cell: str, lengths: Any, ours: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What must be equal: outputs of real steps, and gradients under our names, without biases that not all have."""

    def compared(results: Any) -> Any:
        outputs, gradients = results
        if lengths is not None:
            outputs = np.where(within(lengths, outputs.shape[1])[..., None], outputs, 0)
        if not gradients:
            return outputs
        layers = {name: dict(layer) for name, layer in ours(gradients[0]).items()}
        if cell == "gru":
            for layer in layers.values():
                layer["recurrent_bias"] = layer["recurrent_bias"][2 * len(layer["recurrent"]) :]
        return outputs, layers, gradients[1]

    return compared


def _pytorch(cell: str, gradient: bool, params: Any, inputs: Any, lengths: Any, cotangents: Any) -> Contestant:
    torch = pytorch.load()
    width, units = inputs.shape[-1], params[LAYERS[0]]["recurrent"].shape[0]
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    module = kind(width, units, batch_first=True, bidirectional=len(params) == 2).to(pytorch.device())
    suffixes = ("l0", "l0_reverse")[: len(params)]
    weights = {f"{name}_{suffix}": value for suffix, layer in zip(suffixes, params.values(), strict=True)
               for name, value in _to_torch(layer).items()}  # fmt: skip
    module.load_state_dict(pytorch.tensors(weights))
    pack = partial(torch.nn.utils.rnn.pack_padded_sequence, batch_first=True, enforce_sorted=False)

    rows = None if lengths is None else pytorch.tensors(lengths).cpu()  # where packing wants them

    def forward(inputs: Any) -> Any:
        if rows is None:
            return module(inputs)[0]
        packed = module(pack(inputs, rows))[0]
        return torch.nn.utils.rnn.pad_packed_sequence(packed, True, total_length=inputs.shape[1])[0]

    def work(inputs: Any, cotangents: Any) -> Any:
        if not gradient:
            with torch.no_grad():
                return forward(inputs), ()
        inputs = inputs.detach().requires_grad_()
        outputs = forward(inputs)
        found = torch.autograd.grad(outputs, (inputs, *module.parameters()), cotangents)
        names = (name for name, _ in module.named_parameters())
        return outputs, (dict(zip(names, found[1:], strict=True)), found[0])

    def ours(gradients: Any) -> Any:
        return {layer: _from_torch(cell, gradients, suffix) for layer, suffix in zip(LAYERS, suffixes, strict=False)}

    compared = _compared(cell, lengths, ours)
    return pytorch.contestant("PyTorch", work, (inputs, cotangents), lambda r: compared(pytorch.arrays(r)))


def _to_torch(layer: Any) -> Any:
    """The parameters of a layer of ours under torch's names."""
    bias = layer["input"].get("bias", jnp.zeros_like(layer["recurrent_bias"]))
    kernels = {"weight_ih": layer["input"]["kernel"].T, "weight_hh": layer["recurrent"].T}
    return kernels | {"bias_ih": bias, "bias_hh": layer["recurrent_bias"]}


def _from_torch(cell: str, found: Any, suffix: str) -> Any:
    linear = {"kernel": found[f"weight_ih_{suffix}"].T} | (
        {"bias": found[f"bias_ih_{suffix}"]} if cell == "gru" else {}
    )
    return {"input": linear, "recurrent": found[f"weight_hh_{suffix}"].T, "recurrent_bias": found[f"bias_hh_{suffix}"]}


PEERS: Peers = {"flax.linen": lambda: _flax_linen, "PyTorch": lambda: pytorch.load() and _pytorch}

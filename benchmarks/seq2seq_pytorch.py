"""The translator of the seq2seq benchmark in PyTorch, eager or its decoder compiled, with the weights of ours."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import pytorch
from benchmarks.harness import Contestant
from benchmarks.machine import accelerated


def torch_peer(compiled: bool) -> Callable[..., Contestant]:
    """Makes PyTorch's training step; `torch.compile` takes all that follows the encoder, which is a kernel already.

    Raises:
        ImportError: there is no PyTorch, or it shall be compiled for a CPU.
        Exception: `torch.compile` does not run on this machine.
    """
    torch = pytorch.load()
    if compiled:
        if not accelerated():
            raise ImportError("on a CPU it compiles the decoder's steps for minutes; it takes part on accelerators")
        torch.compile(torch.sin)(pytorch.tensors(np.ones(2)))
    return partial(_contestant, torch, compiled)


def _contestant(
    torch: Any, compiled: bool, name: str, params: Any, batch: tuple[Any, ...], learning_rate: float
) -> Contestant:
    """A training step, compared by the loss and the gradient's norm of its first call: its weights go on from there."""
    net = _translator(torch, params).to(pytorch.tensors(batch[0]).device)
    if compiled:
        net.decode = torch.compile(net.decode)
    lengths = torch.from_numpy(np.array(batch[1]))  # packing wants them on the CPU, where a loader has them
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, learning_rate, fused=True)
    first: dict[str, Any] = {}
    norm = torch.nn.utils.get_total_norm

    def step(*batch: Any) -> dict[str, Any]:
        optimizer.zero_grad()
        loss = net(lengths, *batch)
        loss.backward()
        gradients = [weight.grad for weight in trained]
        if not first:  # In one go over millions of squares, float32 would lose digits.
            first.update(loss=loss, gradient_norm=norm([gradient.double() for gradient in gradients]))
        found = {"loss": loss.detach(), "gradient_norm": norm(gradients)}
        optimizer.step()
        return found

    return pytorch.contestant(name, step, batch, lambda result: pytorch.arrays(first))


def _translator(torch: Any, params: Any) -> Any:
    """`nn.LSTM` over packed sources, `nn.LSTMCell` in a loop, and an output layer after it: (batch) -> loss."""
    nn, functional = torch.nn, torch.nn.functional
    decoder, score = params["decoder"], params["decoder"]["attention"]["score"]
    units, vocabulary = params["output"]["kernel"].shape[0] * 2, params["output"]["kernel"].shape[1]

    class Translator(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.source, self.target = (_embedding(torch, params[f"{side}_embedding"]) for side in ("source", "target"))
            self.encoder = _encoder(torch, params["encoder"])
            self.keys, self.query = _linear(torch, score["key"]), _linear(torch, score["query"])
            self.energy = _linear(torch, {"kernel": score["energy"][:, None]})
            self.bridge = _linear(torch, params["bridges_0"])
            self.cell = _cell(torch, decoder)
            self.pairs, self.output = _linear(torch, decoder["combine"]), _linear(torch, params["output"])

        def forward(self, sizes: Any, source: Any, lengths: Any, *target: Any) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(self.source(source), sizes, True, enforce_sorted=False)
            annotations, (last, _) = self.encoder(packed)
            values, _ = nn.utils.rnn.pad_packed_sequence(annotations, batch_first=True, total_length=source.shape[1])
            return self.decode(values, last, lengths, *target)

        def decode(self, values: Any, last: Any, lengths: Any, inputs: Any, target: Any, target_lengths: Any) -> Any:
            keys, outside = self.keys(values), _after(torch, lengths, values.shape[1])
            hidden, memory = torch.tanh(self.bridge(torch.cat([*last], -1))).chunk(2, -1)
            embedded, readouts = self.target(inputs), []
            for token in embedded.unbind(1):
                energies = self.energy(torch.tanh(self.query(hidden)[:, None] + keys))[..., 0]
                weights = energies.masked_fill(outside, -torch.inf).softmax(-1)
                context = torch.bmm(weights[:, None], values)[:, 0]
                readouts.append(torch.cat([hidden, token, context], -1))
                hidden, memory = self.cell(torch.cat([token, context], -1), (hidden, memory))
            one, other = self.pairs(torch.stack(readouts, 1)).split(units // 2, -1)
            logits = self.output(torch.maximum(one, other)).reshape(-1, vocabulary)
            wanted = target.long().masked_fill(_after(torch, target_lengths, target.shape[1]), -100)
            return functional.cross_entropy(logits, wanted.reshape(-1))

    return Translator()


def _after(torch: Any, lengths: Any, steps: int) -> Any:
    """Which steps are padding, [B, steps]."""
    return torch.arange(steps, device=lengths.device)[None] >= lengths[:, None]


def _embedding(torch: Any, layer: Any) -> Any:
    return torch.nn.Embedding.from_pretrained(pytorch.tensors(layer["embedding"]), freeze=False)


def _linear(torch: Any, layer: Any) -> Any:
    made = torch.nn.Linear(*layer["kernel"].shape, bias="bias" in layer)
    _copy(torch, made, {"weight": layer["kernel"].T, **({"bias": layer["bias"]} if "bias" in layer else {})})
    return made


def _encoder(torch: Any, encoder: Any) -> Any:
    directions = {"": encoder["forward_layers_0"], "_reverse": encoder["backward_layers_0"]}
    width, gates = directions[""]["input"]["kernel"].shape
    made = torch.nn.LSTM(width, gates // 4, batch_first=True, bidirectional=True)
    for name, layer in directions.items():
        weights = _lstm(layer, layer["input"]["kernel"])
        _copy(torch, made, {f"{part}_l0{name}": array for part, array in weights.items()})
    return made


def _cell(torch: Any, decoder: Any) -> Any:
    first = decoder["stack_0"]
    kernel = np.concatenate([first["input"]["kernel"], decoder["enter"]["kernel"]])
    made = torch.nn.LSTMCell(kernel.shape[0], kernel.shape[1] // 4)
    _copy(torch, made, _lstm(first, kernel))
    return made


def _lstm(layer: Any, kernel: Any) -> dict[str, Any]:
    """PyTorch has two biases, of which only the sum counts: one is zero, and not trained."""
    bias = layer["recurrent_bias"]
    return {"weight_ih": kernel.T, "weight_hh": layer["recurrent"].T, "bias_ih": 0 * bias, "bias_hh": bias}


def _copy(torch: Any, module: Any, arrays: dict[str, Any]) -> None:
    """Gives a module its weights by name, and no gradient to `bias_ih`."""
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(module, name).copy_(pytorch.tensors(array))
            getattr(module, name).requires_grad_(not name.startswith("bias_ih"))

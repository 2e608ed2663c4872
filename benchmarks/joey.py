"""JoeyNMT as a peer: its search, over its modules with the weights of this library's translator.

Importing this file needs PyTorch and JoeyNMT 2.3, which pins old versions of what it needs: it is installed by
`pip install --no-deps joeynmt` and what its import then misses.

JoeyNMT's own decoder asks with the new state and feeds attentional vectors back (Luong 2015). `PreviousDecoder` is that
decoder with Bahdanau's step, so that the same hypothesis has the same score in both libraries, and what they write can
be compared. Encoder, attention, the loop over steps and the search are JoeyNMT's as they are; in each of its search's
steps the decoder projects all keys again.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from joeynmt.batch import Batch
from joeynmt.decoders import RecurrentDecoder
from joeynmt.embeddings import Embeddings
from joeynmt.encoders import RecurrentEncoder
from joeynmt.model import Model
from joeynmt.search import search

from attention_zoo.data.vocabulary import END, PAD, START, UNKNOWN
from benchmarks.pytorch import tensors
from benchmarks.seq2seq import plain_additive

ALPHA = 0.6  # of the penalty ((5 + length) / 6)^alpha, as in this library's beam search by default
VOCABULARY = SimpleNamespace(
    pad_index=PAD, bos_index=START, eos_index=END, unk_index=UNKNOWN, sep_index=None, specials=[], lang_tags=[]
)


class PreviousDecoder(RecurrentDecoder):
    """Bahdanau's step: the previous state asks, the context enters the LSTM, and pairs are maxed for the output layer.

    The bridge gives the first state and memory apart, and where JoeyNMT leaves out a bias there is one.
    """

    def __init__(self, embedding: int, units: int, encoder: RecurrentEncoder, vocabulary: int) -> None:
        super().__init__("lstm", embedding, units, encoder, vocab_size=vocabulary)
        annotation = encoder.output_size
        self.rnn = torch.nn.LSTM(embedding + annotation, units, batch_first=True)
        self.attention.query_layer = torch.nn.Linear(units, units)
        self.att_vector_layer = torch.nn.Linear(units + embedding + annotation, units)
        self.bridge_layer = torch.nn.Linear(annotation, 2 * units)
        self.output_layer = torch.nn.Linear(units // 2, vocabulary)

    def _init_hidden(self, encoder_final: Any = None) -> tuple[Any, Any]:
        hidden, memory = torch.tanh(self.bridge_layer(encoder_final)).unsqueeze(0).chunk(2, -1)
        return hidden.contiguous(), memory.contiguous()

    def _check_shapes_input_forward(self, **arrays: Any) -> None:
        """JoeyNMT's check wants features as wide as the state."""

    def _forward_step(
        self, prev_embed: Any, prev_att_vector: Any, encoder_output: Any, src_mask: Any, hidden: Any
    ) -> tuple[Any, Any, Any]:
        before = hidden[0][-1].unsqueeze(1)
        context, weights = self.attention(query=before, values=encoder_output, mask=src_mask)
        _, hidden = self.rnn(torch.cat([prev_embed, context], 2), hidden)
        pairs = self.att_vector_layer(torch.cat([before, prev_embed, context], 2))
        return torch.maximum(*pairs.chunk(2, -1)), hidden, weights


def searching(params: Any, width: int, max_length: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A search, greedy where `width` is 1: (source [B, S], lengths [B], longest first) -> what JoeyNMT's gives."""
    model = translator(params)

    def work(source: Any, lengths: Any) -> tuple[Any, Any]:
        batch = Batch(source, lengths, None, None, None, lengths, source.device, PAD, END, is_train=False)
        tokens, scores, _ = search(model, batch, max_length, width, ALPHA, return_prob="hyp")
        return tokens, scores

    return work


def translator(params: Any) -> Model:
    """JoeyNMT's model of a translator's sizes, with its weights."""
    sizes = {side: np.shape(params[f"{side}_embedding"]["embedding"]) for side in ("source", "target")}
    embeddings = [Embeddings(width, vocab_size=number, padding_idx=PAD) for number, width in sizes.values()]
    encoder = RecurrentEncoder("lstm", len(params["encoder"]["forward_layers_0"]["recurrent"]), sizes["source"][1])
    units = len(params["decoder"]["stack_0"]["recurrent"])
    decoder = PreviousDecoder(sizes["target"][1], units, encoder, sizes["target"][0])
    model = Model(encoder, decoder, *embeddings, VOCABULARY, VOCABULARY)
    model.load_state_dict(tensors(_weights(params)))
    return model.eval().requires_grad_(False)


def _weights(params: Any) -> dict[str, jax.Array]:
    """The parameters under JoeyNMT's names."""
    encoder, decoder = params["encoder"], params["decoder"]
    score, first = decoder["attention"]["score"], decoder["stack_0"]
    keys, query = plain_additive(score)
    kernel = jnp.concatenate([first["input"]["kernel"], decoder["enter"]["kernel"]])
    return {
        "src_embed.lut.weight": params["source_embedding"]["embedding"],
        "trg_embed.lut.weight": params["target_embedding"]["embedding"],
        **_lstm("encoder.rnn", "", encoder["forward_layers_0"]),
        **_lstm("encoder.rnn", "_reverse", encoder["backward_layers_0"]),
        **_lstm("decoder.rnn", "", {**first, "input": {"kernel": kernel}}),
        **_linear("decoder.attention.key_layer", keys),
        **_linear("decoder.attention.query_layer", query),
        **_linear("decoder.attention.energy_layer", {"kernel": score["energy"][:, None]}),
        **_linear("decoder.att_vector_layer", decoder["combine"]),
        **_linear("decoder.bridge_layer", params["bridges_0"]),
        **_linear("decoder.output_layer", params["output"]),
    }


def _linear(name: str, layer: Any) -> dict[str, jax.Array]:
    bias = {f"{name}.bias": layer["bias"]} if "bias" in layer else {}
    return {f"{name}.weight": layer["kernel"].T, **bias}


def _lstm(name: str, direction: str, layer: Any) -> dict[str, jax.Array]:
    bias = layer["recurrent_bias"]
    return {
        f"{name}.weight_ih_l0{direction}": layer["input"]["kernel"].T,
        f"{name}.weight_hh_l0{direction}": layer["recurrent"].T,
        f"{name}.bias_ih_l0{direction}": jnp.zeros_like(bias),
        f"{name}.bias_hh_l0{direction}": bias,
    }

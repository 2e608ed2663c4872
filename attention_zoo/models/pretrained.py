"""Weights that others have trained: folders of Hugging Face's transformers, as models of the zoo."""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from attention_zoo.models.huggingface import ARCHITECTURES, Architecture, read_json

Tensors = dict[str, np.ndarray]


def from_huggingface(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """A model with its variables, from a folder that `save_pretrained` of Hugging Face's transformers wrote.

    Reads config.json and safetensors files, and nothing else. By the class that config.json names:

        BertModel: `Encoder` (without the pooler); `SentenceEmbedding` if modules.json asks for the mean, as MiniLM does
        BertForMaskedLM: `MaskedLM`; BertForSequenceClassification: `Classifier`
        ViTForImageClassification: `ViT`, whose images are [B, height, width, channels]
        MarianMTModel: `Transformer`; its decoder starts with config.json's `decoder_start_token_id`

    Args:
        folder: of config.json and model.safetensors, or of the parts that model.safetensors.index.json lists.

    Returns:
        the model and its variables `{"params": ...}`, float32. `model.clone(dtype=...)` changes a field.

    Raises:
        ValueError: a file is missing or damaged, the class or a setting is not known here, or a tensor is missing,
            left over or of another shape; the message says which.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    architecture = _architecture(config, folder)
    try:
        model, inputs = architecture.make(config, folder), architecture.inputs(config)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'}: {error} is missing") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'}: a setting is of another type; {error}") from None
    tensors = _tidy(_read(folder), architecture, folder)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return model, {"params": _fill(flatten_dict(shapes, sep="/"), tensors, architecture, folder)}


def read_tokenizer(folder: str | Path) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """The folder's tokenizer.json as a function from texts to what `Encoder` reads: tokens [B, S], lengths [B].

    Texts are cut where the model ends: at sentence_bert_config.json's `max_seq_length`, or else at config.json's
    `max_position_embeddings`.

    Raises:
        ValueError: a file is missing or damaged.
        ImportError: the package `tokenizers` is not installed.
    """
    try:
        package = import_module("tokenizers")
    except ImportError as error:
        raise ImportError("read_tokenizer: the package tokenizers is wanted: pip install tokenizers") from error
    folder = Path(folder)
    try:
        tokenizer = package.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the package raises no narrower kind
        raise ValueError(f"{folder / 'tokenizer.json'}: wanted a tokenizer; {error}") from None
    tokenizer.enable_truncation(_longest(folder))
    tokenizer.no_padding()

    def read(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), lengths.max(initial=1)), np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths

    return read


def _longest(folder: Path) -> int:
    """The most tokens that the model reads."""
    places = {"sentence_bert_config.json": "max_seq_length", "config.json": "max_position_embeddings"}
    for file, name in places.items():
        if (folder / file).exists() and name in (settings := read_json(folder / file)):
            return settings[name]
    raise ValueError(f"{folder / 'config.json'}: 'max_position_embeddings' is missing")


def _architecture(config: Any, folder: Path) -> Architecture:
    found = config.get("architectures") if isinstance(config, Mapping) else None
    name = found[0] if isinstance(found, list) and len(found) == 1 else found
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{folder / 'config.json'}: architectures is one of {known}; got {name!r}")
    return ARCHITECTURES[name]


def _read(folder: Path) -> Tensors:
    """All tensors of a folder."""
    index, parts = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.exists():
        if "weight_map" not in (listed := read_json(index)):
            raise ValueError(f"{index}: 'weight_map' is missing")
        parts = sorted(set(listed["weight_map"].values()))
    tensors: Tensors = {}
    for part in parts:
        try:
            tensors |= load_file(folder / part)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / part}: wanted a safetensors file; {error}") from None
    return tensors


def _tidy(tensors: Tensors, architecture: Architecture, folder: Path) -> Tensors:
    """Without the tensors that our models do without, and those of old names by their new ones."""
    new = {re.sub("LayerNorm.gamma$", "LayerNorm.weight", name): tensor for name, tensor in tensors.items()}
    new = {re.sub("LayerNorm.beta$", "LayerNorm.bias", name): tensor for name, tensor in new.items()}
    for copy, original in architecture.copies.items():
        if copy in new and not np.array_equal(new.setdefault(original, new[copy]), new.pop(copy)):
            raise ValueError(f"{folder}: tensor {copy} is wanted to be equal to {original}; it is not")
    return {name: new[name] for name in new if not any(re.fullmatch(p, name) for p in architecture.unused)}


def _fill(shapes: Mapping[str, Any], tensors: Tensors, architecture: Architecture, folder: Path) -> dict[str, Any]:
    """The parameters of these shapes, by path, each from its tensor."""
    names = {path: _their_name(path, architecture.names) for path in shapes}
    for trouble, which in {
        "are missing": set(names.values()) - set(tensors),
        "have no place in the model": set(tensors) - set(names.values()),
    }.items():
        if which:
            raise ValueError(f"{folder}: {len(which)} tensors {trouble}, such as {min(which)}")
    parameters = {}
    for path, wanted in shapes.items():
        tensor = tensors[names[path]]
        parameters[path] = _turned(tensor, path.rpartition("/")[2], len(wanted.shape))
        if parameters[path].shape != wanted.shape or not jnp.issubdtype(tensor.dtype, jnp.floating):
            given = f"{tensor.dtype} {tensor.shape}"
            raise ValueError(f"{folder}: tensor {names[path]} does not fit {path} {wanted.shape}; got {given}")
    return unflatten_dict({path: jnp.asarray(value, jnp.float32) for path, value in parameters.items()}, sep="/")


def _their_name(path: str, names: Mapping[str, str]) -> str:
    """The tensor of one of our parameters, such as blocks/each_3/made/own/query/kernel."""
    number = re.search(r"(?<=/each_)\d+", path)
    general = re.sub(r"(?<=/each_)\d+", "*", path)
    module, _, leaf = general.rpartition("/")
    name = names[general] if general in names else names[module] + (".bias" if leaf == "bias" else ".weight")
    return name if number is None else name.replace("*", number[0])


def _turned(tensor: np.ndarray, leaf: str, rank: int) -> np.ndarray:
    """Kernels are [in, out] here and [out, in] there, or [out, channels, y, x]; leading axes of one are dropped."""
    if leaf == "kernel":
        last = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        return last.reshape(-1, last.shape[-1]) if tensor.ndim == 4 else last
    while tensor.ndim > rank and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor

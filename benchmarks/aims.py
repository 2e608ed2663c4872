"""What this library is meant to reach beside its peers, and what every machine measured of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import OURS

Rows = Sequence[dict[str, Any]]
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Aim:
    """One line of the table: the least ratio (a peer's time over ours) in float32, against the fastest of some peers.

    `cases`, `peers`: regular expressions of whole names. `temporaries`: the largest share of the peer's temporary
    memory that ours may be.
    """

    work: str
    against: str
    least: float
    benchmark: str
    cases: tuple[str, ...]
    peers: str
    temporaries: float | None = None
    direction: str = r"forward\+gradient|step"

    @property
    def goal(self) -> str:
        """At least what, to be read."""
        share = "" if self.temporaries is None else f" with at most 1/{1 / self.temporaries:.0f} of the temporaries"
        return f"{self.least:g}{share}"

    def reached(self, rows: Rows) -> str:
        """What a machine's rows say, case by case."""
        found = [self._one(rows, case) for case in self.cases]
        return " / ".join(found) if set(found) != {NOT_MEASURED} else NOT_MEASURED

    def _one(self, rows: Rows, case: str) -> str:
        found = [
            row
            for row in rows
            if (row["benchmark"], row["dtype"]) == (self.benchmark, "float32")
            and re.fullmatch(case, row["case"])
            and re.fullmatch(self.direction, row["direction"])
        ]
        peers = [row for row in found if re.fullmatch(self.peers, row["implementation"])]
        if not peers:
            return NOT_MEASURED
        best = min(peers, key=lambda row: row["ratio"])
        reached, words = best["ratio"] >= self.least, f"{best['ratio']:.2f} ({best['implementation']})"
        if self.temporaries is not None:
            ours = next(row for row in found if row["implementation"] == OURS and row["case"] == best["case"])
            share = ours["temporary_bytes"] / best["temporary_bytes"]
            reached, words = reached and share <= self.temporaries, f"{words}, temporaries 1/{1 / share:.0f}"
        return words if reached else f"{words}, missed{_room(best, self.least)}"


def _room(peer: dict[str, Any], least: float) -> str:
    """The peer's share of the roof, where it is so large that the aim lies above the roof."""
    share = peer.get("roof_fraction")
    return f" (the peer is at {share:.0%} of the roof)" if share and share * least > 1 else ""


@dataclass(frozen=True)
class Limit:
    """One line of the table: the most that a field of the rows of an implementation may be."""

    work: str
    most: float
    form: str
    benchmark: str
    case: str
    field: str
    implementation: str = OURS
    against: str = ""

    @property
    def goal(self) -> str:
        """At most what, to be read."""
        return f"at most {self.form.format(self.most)}"

    def reached(self, rows: Rows) -> str:
        """The largest that a machine's rows hold."""
        found = [
            row[self.field]
            for row in rows
            if row["benchmark"] == self.benchmark
            and row["implementation"] == self.implementation
            and re.fullmatch(self.case, row["case"])
            and row.get(self.field) is not None
        ]
        if not found:
            return NOT_MEASURED
        words = self.form.format(max(found))
        return words if max(found) <= self.most else f"{words}, missed"


_MASKS = ("plain", "causal", "masked")
_SHORT, _LONG = (tuple(f"{shape} {mask}" for mask in _MASKS) for shape in ("B8 H8 T512 D64", "B1 H8 T4096 D64"))
_JAX, _TORCH = r"flax\.linen.*|jax\.nn.*|tokamax.*|keras.*", r"(?i)(py)?torch.*"
_T512, _T4096 = (f"dot-product attention, T {steps}: {' / '.join(_MASKS)}" for steps in (512, 4096))
_SIX = (r"encoder-decoder.* S64 T64 .*",)
_BILSTM = r"lstm, bidirectional, full, B64 S30 I\d+ D512"
AIMS: tuple[Aim | Limit, ...] = (
    Aim(_T512, "the best JAX peer", 1.5, "attention", _SHORT, _JAX),
    Aim(_T4096, "the best JAX peer", 1.5, "attention", _LONG, _JAX),
    Aim(_T512, "PyTorch sdpa", 0.5, "attention", _SHORT, _TORCH),
    Aim(_T4096, "PyTorch sdpa", 0.5, "attention", _LONG, _TORCH),
    Aim("additive attention, B32 T50 S50 D256", "plain JAX, keras", 2.0, "additive", ("B32 T50 S50 D256",),
        "plain JAX|keras", 1 / 20),
    Aim("bidirectional LSTM, B64 S30 D512", "flax.linen", 1.5, "recurrent", (_BILSTM,), r"flax\.linen"),
    Aim("bidirectional LSTM, B64 S30 D512", "PyTorch", 1.0, "recurrent", (_BILSTM,), _TORCH),
    Aim("translator's training step", "plain flax.linen", 1.7, "seq2seq", ("B64 S30 T30 N8000",), r"flax\.linen.*"),
    Aim("translator's training step", "eager PyTorch", 1.1, "seq2seq", ("B64 S30 T30 N8000",),
        r"(?i)(py)?torch(?!.*compile).*"),
    Aim("loss over N 8,000 / 32,000", "optax on whole logits", 1.3, "loss", (r".*\bN8000\b.*", r".*\bN32000\b.*"),
        "optax.*", 1 / 5),
    Aim("Transformer's training step", "Flax's wmt example", 1.3, "transformer", _SIX, "flax wmt"),
    Aim("Transformer's training step", "PyTorch", 1.0, "transformer", _SIX, _TORCH),
    Aim("beam of 5, batch 64, `dates_bahdanau`", "JoeyNMT's search", 3.0, "decode", (r".*beam 5.*B64.*",),
        "(?i)joeynmt.*", direction=".*"),
    Limit("import of functional, modules and models, beyond jax and flax", 1500, "{:.0f} ms", "startup", "import",
        "beyond_ms", "attention_zoo.models"),
    Limit("padding of the text pipelines, with the buckets of `attention_zoo.data`", 0.1, "{:.1%}", "input",
        "(dates|reverse|language),.*", "padding_waste"),
)  # fmt: skip

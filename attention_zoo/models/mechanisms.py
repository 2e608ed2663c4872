"""Every mechanism of the zoo by name: the scores and alignments that a model's fields choose from."""

from collections.abc import Callable
from functools import partial
from typing import Any

from attention_zoo.functional.alignment import softmax
from attention_zoo.functional.sparse import entmax15, sparsemax, tempered, top_k
from attention_zoo.modules.alignment import GumbelSoftmax, LocalM, LocalP, MoChA, Monotonic, StraightThrough
from attention_zoo.modules.attention import Attention
from attention_zoo.modules.past import Coverage, LocationSensitive
from attention_zoo.modules.scores import Additive, Concat, Cosine, Dot, General, Location, ScaledDot


def _units(model: Any) -> int:
    """Of the hidden layer of a score that has one."""
    return model.score_units or model.decoder_units


def _walk(model: Any) -> dict[str, Any]:
    """Where what is learnt of a monotonic walk's scores starts."""
    return {"bias": model.score_bias, "gain": model.score_gain}


# From the model's fields and the width of the annotations.
SCORES: dict[str, Callable[[Any, int], Any]] = {
    "additive": lambda model, width: Additive(_units(model), dtype=model.dtype),
    "additive_normalised": lambda model, width: Additive(_units(model), normalised=True, dtype=model.dtype),
    "concat": lambda model, width: Concat(_units(model), dtype=model.dtype),
    "general": lambda model, width: General(model.decoder_units, dtype=model.dtype),
    "dot": lambda model, width: Dot(dtype=model.dtype),
    "scaled_dot": lambda model, width: ScaledDot(dtype=model.dtype),
    "cosine": lambda model, width: Cosine(width, dtype=model.dtype),
    "location": lambda model, width: Location(model.positions, dtype=model.dtype),
}
# From the same.
ALIGNMENTS: dict[str, Callable[[Any, int], Any]] = {
    "softmax": lambda model, width: softmax,
    "tempered": lambda model, width: partial(tempered, temperature=model.temperature),
    "sparsemax": lambda model, width: sparsemax,
    "entmax15": lambda model, width: entmax15,
    "top_k": lambda model, width: partial(top_k, k=model.kept),
    "local_m": lambda model, width: LocalM(model.window),
    "local_p": lambda model, width: LocalP(model.window, dtype=model.dtype),
    "local_p_renormalised": lambda model, width: LocalP(model.window, renormalise=True, dtype=model.dtype),
    "monotonic": lambda model, width: Monotonic(**_walk(model)),
    "mocha": lambda model, width: MoChA(
        width=model.chunk, chunk_score=SCORES[model.chunk_score](model, width), **_walk(model)
    ),
    "gumbel_softmax": lambda model, width: GumbelSoftmax(model.temperature),
    "straight_through": lambda model, width: StraightThrough(model.temperature),
}
PASTS = ("none", "location", "coverage")
COUNTS = ("score_units", "attention_units", "chunk", "kept", "filters", "filter_width", "positions", "annotation_width")


def scores_of(model: Any) -> dict[str, str]:
    """The names of the scores that are made, by field."""
    return {"score": model.score} | ({"chunk_score": model.chunk_score} if model.alignment == "mocha" else {})


def check_mechanism(model: Any) -> None:
    """Refuses a score, a past and their sizes that do not exist or do not fit together.

    Raises:
        ValueError: the field, what it may be, and what it is.
    """
    for field, names in {"score": tuple(SCORES), "past": PASTS, "chunk_score": tuple(SCORES)}.items():
        if getattr(model, field) not in names:
            raise ValueError(f"{field} is one of {', '.join(names)}; got {getattr(model, field)!r}")
    for field in COUNTS:
        count = getattr(model, field, None)  # a model has not all of them, and None where it takes another size
        if count is not None and count < 1:
            raise ValueError(f"{field} is at least 1; got {count}")
    if model.past != "none" and model.score == "location":
        raise ValueError(f"past {model.past!r} enriches keys, and the score 'location' does not look at any")
    if model.fertility and model.past != "coverage":
        raise ValueError(f"fertility divides the past 'coverage'; got {model.fertility} and past {model.past!r}")


def mechanism(model: Any, width: int) -> Attention:
    """The attention that a model's fields name: score, past and alignment; width of the annotations."""
    score = SCORES[model.score](model, width)
    if model.past == "location":
        score = LocationSensitive(score, model.filters, model.filter_width)
    elif model.past == "coverage":
        score = Coverage(score, fertility=model.fertility)
    return Attention(score, ALIGNMENTS[model.alignment](model, width))

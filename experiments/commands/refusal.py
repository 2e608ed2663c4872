"""What is said to someone whose input cannot be used: one sentence, no traceback."""

import difflib
import dis
from collections.abc import Iterable

from attention_zoo.training import UserError

OURS = ("attention_zoo", "experiments")


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """ " (did you mean X or Y?)" with the known words closest to `word` or holding it, or nothing if there are none."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    holding = [name for name in known if len(word) > 2 and word in name]
    meant = [prefix + name for name in dict.fromkeys(close + holding)][:2]
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""


def sentence(error: Exception) -> str | None:
    """The sentence to show for an error of the input's making; None for a bug, whose traceback should be seen.

    A `UserError` and what the operating system refuses are the input's making, and so is a `ValueError` raised by
    our own code; one raised inside a library that we call is a bug of ours.
    """
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename and error.strerror else str(error)
    if isinstance(error, UserError) or (isinstance(error, ValueError) and _raised_by_us(error)):
        return str(error)
    return None


def _raised_by_us(error: Exception) -> bool:
    """Whether a `raise` of ours made the error; jax cuts off its own frames, so the last one alone does not tell."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_globals["__name__"].split(".")[0] not in OURS:
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]

"""Command lines become keyword arguments: tyro parses, and what it refuses is said in one sentence."""

import contextlib
import dataclasses
import inspect
import io
import json
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from beartype.door import is_bearable

from attention_zoo.training import UserError
from experiments.commands.refusal import nearest


def keywords(
    function: Callable[..., Any],
    words: Sequence[str],
    program: str,
    description: str | None = None,
    more: Mapping[str, tuple[Any, Any]] | None = None,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """The keyword arguments that a command line gives to a function: flags by tyro, with underscores or hyphens.

    Args:
        function: its parameters, with their types, defaults and `Args:` of the docstring, are the flags.
        words: the command line after `program`.
        program: what stands before, for `--help` and errors.
        description: what `--help` opens with; the function's docstring if None.
        more: flags beside the parameters: name to (type, default).
        without: parameters that are no flags.

    Raises:
        UserError: an unknown flag (the nearest ones are suggested), a wrong or a missing value.
        SystemExit: `--help` was printed.
    """
    said = io.StringIO()
    kind = _dataclass(function, more or {}, without)
    try:
        with contextlib.redirect_stderr(said):
            values, unknown = tyro.cli(  # type: ignore[var-annotated]
                tyro.conf.configure(tyro.conf.FlagConversionOff, tyro.conf.PositionalMetavarFromFieldName)(kind),
                args=list(words),
                prog=program,
                description=description,
                use_underscores=True,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{program}: {_first_section(said.getvalue())}") from None
    fields = [field.name for field in dataclasses.fields(kind)]
    if unknown:
        raise UserError(f"{program}: {_unknown(unknown[0], fields)}")
    return {name: getattr(values, name) for name in fields}


def _dataclass(function: Callable[..., Any], more: Mapping[str, tuple[Any, Any]], without: Sequence[str]) -> type:
    """The function's parameters as a dataclass: tyro would call a function at once, inside its own error handling."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = {
        name: (hints[name], parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in without
    }
    fields: list[Any] = []
    for name, (hint, default) in {**parameters, **more}.items():
        given = default is not inspect.Parameter.empty
        fields.append((name, hint, dataclasses.field(default=default)) if given else (name, hint))
    return dataclasses.make_dataclass("Flags", fields, namespace={"__doc__": function.__doc__})


def _first_section(box: str) -> str:
    """The message in the box that tyro draws, without its frame, the help below it and the line breaks."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    end = next((number for number, line in enumerate(lines) if re.fullmatch("─+", line)), len(lines))
    return " ".join(" ".join(lines[:end]).split()).rstrip(".") + "."


def _unknown(word: str, known: Iterable[str]) -> str:
    if not word.startswith("--"):
        return f"the word {word!r} is one too many."
    flag = word.split("=")[0]
    close = nearest(flag.lstrip("-").replace("-", "_"), known, prefix="--")
    return f"there is no flag {flag}{close}; --help lists them all."


OPTIONAL = ("warmup", "shift")


def check_numbers(function: Callable[..., Any], flags: Mapping[str, Any]) -> None:
    """Refuses sizes and counts below 1 and rates that are negative or infinite, which no experiment can use.

    A whole number may be 0 where its default is 0, as a seed's is, and where 0 turns something off (`OPTIONAL`).

    Raises:
        UserError: the flag and its value are named.
    """
    for name, value in flags.items():
        least = 0 if name in OPTIONAL or inspect.signature(function).parameters[name].default == 0 else 1
        if type(value) is int and value < least:
            raise UserError(f"--{name} is {value}: it must be at least {least}.")
        if isinstance(value, float) and not (value >= 0 and math.isfinite(value)):
            raise UserError(f"--{name} is {value}: it must be finite and not negative.")


def to_json(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as JSON can hold them; paths become absolute, so that a run can be read from any folder."""
    return {
        name: str(value.expanduser().absolute()) if isinstance(value, Path) else value for name, value in flags.items()
    }


def from_json(function: Callable[..., Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `to_json`, by the types of the function's parameters.

    Raises:
        UserError: the function has no such parameters, as when another version made the run, or a value is of
            another type.
    """
    hints = typing.get_type_hints(function)
    strange = [f"--{name}" for name in flags if name not in hints]
    if strange:
        raise UserError(f"The run was made with flags that this version does not have: {', '.join(strange)}.")
    paths = {name for name, hint in hints.items() if hint is Path or Path in typing.get_args(hint)}
    values = {name: Path(value) if name in paths and isinstance(value, str) else value for name, value in flags.items()}
    for name, value in values.items():
        hint: Any = float | int if hints[name] is float else hints[name]
        if not is_bearable(value, hint):
            said = json.dumps(value, ensure_ascii=False)
            raise UserError(f"The run's config.json is damaged: --{name} is {said}, which it cannot be.")
    return values

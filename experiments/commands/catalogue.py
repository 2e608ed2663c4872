"""Which experiments there are, what they claim, and their functions."""

import ast
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import experiments
from attention_zoo.training import Experiment, UserError
from experiments.commands.refusal import nearest

# A parameter that is no flag: the work folder whose vocabularies to use instead of reading the data set.
SAVED = "saved"


def names() -> list[str]:
    """The experiments' names: the modules beside this folder, in alphabetical order."""
    found = pkgutil.iter_modules(experiments.__path__)
    return sorted(module.name for module in found if not module.ispkg and not module.name.startswith("_"))


def docstring(name: str) -> str:
    """The docstring of an experiment's file, read without importing it."""
    paths = [Path(folder) / f"{name}.py" for folder in experiments.__path__]
    source = next(path for path in paths if path.exists()).read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def first_paragraph(text: str) -> str:
    """The claim an experiment's docstring opens with, on one line."""
    return " ".join(text.split("\n\n")[0].split())


def function(name: str) -> Callable[..., Experiment]:
    """The function `experiment` of the file called `name`.

    Raises:
        UserError: there is no such experiment; the nearest names are suggested.
    """
    if name not in names():
        raise UserError(f"There is no experiment {name!r}{nearest(name, names())}; there are: {', '.join(names())}.")
    return importlib.import_module(f"experiments.{name}").experiment

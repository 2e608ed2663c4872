"""The work folder of a run: whose it is, and what can be read back from it."""

import inspect
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

import attention_zoo
from attention_zoo.training import Experiment, UserError, load_parameters
from experiments.commands.catalogue import SAVED, function
from experiments.commands.flags import from_json, to_json

START = "start_from"  # the flag for a work folder whose parameters are the first


def check(folder: Path, name: str, flags: dict[str, Any]) -> None:
    """Refuses a folder that this run cannot have, before anything is computed or written.

    Raises:
        UserError: the folder holds another run (the differing flags are named with both values) or something else,
            or cannot be written.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    writable(existing)
    if (folder / "config.json").exists():
        _check_same(folder, name, to_json(flags))
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no config.json of a run: name a new folder with --workdir.")


def _check_same(folder: Path, name: str, new: dict[str, Any]) -> None:
    there = read_config(folder)
    if there["experiment"] != name:
        raise UserError(
            f"{folder} holds a run of {there['experiment']}, not of {name}: name another folder with --workdir."
        )
    differing = _differing(there, new, there["flags"])
    if differing:
        raise UserError(
            f"{folder} holds a run with other flags: {differing}. "
            "Give the same flags to go on with it, or another folder with --workdir."
        )


def check_start(folder: Path, flags: dict[str, Any]) -> None:
    """Refuses to start from a run with any of these flags otherwise: its parameters may fit, and mean something else.

    A folder without config.json is none of the command's runs, and not judged.

    Raises:
        UserError: a flag differs; or the config.json there is damaged.
    """
    if not (folder / "config.json").exists():
        return
    differing = _differing(read_config(folder), to_json(flags))
    if differing:
        raise UserError(
            f"--{START} {folder} holds a run of another attention: {differing}. "
            "Give the same flags, or start from another folder."
        )


def _differing(config: dict[str, Any], new: dict[str, Any], more: Collection[str] = ()) -> str:
    """What flags are in a folder's run and here, where they are not the same; of `more` flags than the new ones too."""
    # A flag that is younger than the run counts as what it is when it is not given.
    build = inspect.signature(function(config["experiment"])).parameters
    old = to_json({flag: build[flag].default for flag in new if flag in build}) | config["flags"]
    return "; ".join(
        f"--{flag} is {_shown(old, flag)} there and {_shown(new, flag)} here"
        for flag in dict.fromkeys([*new, *more])
        if _shown(old, flag) != _shown(new, flag)
    )


def _shown(flags: dict[str, Any], flag: str) -> str:
    return json.dumps(flags[flag], ensure_ascii=False) if flag in flags else "not known"


def claim(folder: Path, name: str, flags: dict[str, Any], experiment: Experiment) -> None:
    """Writes config.json, whole or not at all, where there is none; else checks that the data are still the same.

    Raises:
        UserError: the folder cannot be made, or the run there was made with other data.
    """
    if (folder / "config.json").exists():
        check_data(folder, experiment)
        return
    config = {
        "experiment": name,
        "flags": to_json(flags),
        "version": attention_zoo.__version__,
        "data": _digest(experiment),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / "config.json.part"
        draft.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(folder / "config.json")
    except OSError as error:
        raise UserError(f"The work folder {folder} cannot be written: {error.strerror}.") from error


def check_data(folder: Path, experiment: Experiment) -> None:
    """Refuses data that are not those of the run: its files, or what they are made from, have changed since."""
    there, here = read_config(folder)["data"], _digest(experiment)
    if there != here:
        raise UserError(
            f"The data of the run in {folder} have changed since it began (their digest was {there} and "
            f"is {here}): restore the files, or train in another folder."
        )


def _digest(experiment: Experiment) -> str | None:
    return getattr(experiment.data, "digest", None)


def writable(folder: Path) -> None:
    """Refuses a folder that cannot be written to."""
    if not folder.exists():
        raise UserError(f"There is no folder {folder} to write into.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, where a folder to write into is needed.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"The folder {folder} cannot be written to.")


def read_config(folder: Path) -> dict[str, Any]:
    """The experiment's name, its flags and the digest of its data, from config.json.

    Raises:
        UserError: there is no such folder, it holds no run, or its config.json cannot be read.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"There is no work folder {folder}.")
    if not path.exists():
        raise UserError(f"{folder} holds no run: its config.json is missing.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {"experiment": str(config["experiment"]), "flags": dict(config["flags"]), "data": config["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: it should hold the experiment's name and its flags as JSON.") from error


def trained(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags of what is already trained: the run whose parameters it started from may be gone."""
    return {**flags, START: None} if START in flags else flags


def open_run(folder: Path, pairs: bool = True) -> tuple[Experiment, Any]:
    """The experiment of a work folder, built from its flags, and the parameters of its best checkpoint.

    Args:
        pairs: read the data set too; without, the vocabularies in the folder do where the experiment can use them.

    Raises:
        UserError: there is no such folder, it holds no run or no checkpoint that can be read, or the data changed.
    """
    config = read_config(folder)
    build = function(config["experiment"])
    flags = trained(from_json(build, config["flags"]))
    if not pairs and SAVED in inspect.signature(build).parameters:
        experiment = build(**flags, **{SAVED: folder})
    else:
        experiment = build(**flags)
        check_data(folder, experiment)
    template = jax.eval_shape(experiment.init, jax.random.key(0), next(iter(experiment.data.shapes())))
    return experiment, load_parameters(folder, template)

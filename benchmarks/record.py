"""The results of a machine, in one file: what a command measured goes to `benchmarks/results/DEVICE.json`.

A file holds `{machine, device, runs{}, rows[]}`. A row is one of `--json`, with `run`: the run that measured it, whose
`commit`, `versions` and `roofs` stand in `runs` under the time it ended at, in UTC.
"""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import processor
from typing import Any

import jax

from attention_zoo.training.errors import UserError
from attention_zoo.training.machine import device, versions
from attention_zoo.training.reporting import write_whole
from benchmarks.rows import Row

RESULTS = Path(__file__).with_name("results")
KEY = ("benchmark", "case", "direction", "dtype")  # Rows that agree in these were measured beside each other.
# Packages of peers and of kernels, beside those in `versions`.
PEERS = ("joeynmt", "keras", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "tokamax", "torch", "triton", "x-transformers")
Result = dict[str, Any]


def record(rows: Sequence[Row], roofs: Mapping[str, float], folder: Path | None = None) -> Path:
    """Merges the rows of a run into the file of this machine, which is written whole; and gives its path.

    Raises:
        UserError: the file is there and is no such file, or it cannot be written.
    """
    path = (folder or RESULTS) / f"{slug(machine())}.json"
    there = read(path) if path.exists() else {"machine": machine(), "device": device(), "runs": {}, "rows": []}
    run = {"commit": commit(), "versions": {**versions(), **_peers()}, "roofs": dict(roofs)}
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    whole = merged(there, [asdict(row) for row in rows], ended, run)
    try:
        write_whole(path, json.dumps(whole, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return path


def merged(there: Result, rows: Sequence[Mapping[str, Any]], name: str, run: Mapping[str, Any]) -> Result:
    """The result with new rows: they replace, where they stood, all of the same benchmark, case, direction and dtype.

    A run of which no row is left is forgotten.
    """
    groups = _grouped(there["rows"]) | _grouped([{**row, "run": name} for row in rows])
    kept = [row for group in groups.values() for row in group]
    left = {row["run"] for row in kept}
    runs = {one: found for one, found in {**there["runs"], name: run}.items() if one in left}
    return {**there, "runs": runs, "rows": kept}


def read(path: Path) -> Result:
    """The results of a machine.

    Raises:
        UserError: the file is not such a file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = {row["run"] for row in found["rows"]} == found["runs"].keys() and "machine" in found
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no results of a machine: {type(error).__name__}, {error}") from error
    if not whole:
        raise UserError(f"{path} holds no results of a machine: its rows do not belong to its runs")
    return found


def read_all(folder: Path | None = None) -> dict[str, Result]:
    """The results of every machine, by its name, in the order of their files."""
    found = [read(path) for path in sorted((folder or RESULTS).glob("*.json"))]
    return {result["machine"]: result for result in found}


def machine() -> str:
    """The machine in words that tell it from others: "Intel Xeon E5-2686 v4, 2 cores", "NVIDIA H100 80GB HBM3"."""
    words = device()
    if jax.default_backend() != "cpu":
        return words.removeprefix("1 x ")
    return f"{processor_name()}, {words.partition('(')[2].rstrip(')')}"


def processor_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name without trade marks and clock, from Linux or, where that does not tell, from Python.

    A virtual machine may hide which of its maker's processors it has: then Linux's family and model stand behind, which
    tell most generations apart.
    """
    try:
        told = dict(re.findall(r"^(.*?)\s*: (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))
    except OSError:
        told = {}
    name = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@.*", " ", told.get("model name") or processor())
    name = " ".join(name.split()) or "CPU"
    if re.search(r"\d", name) or not {"cpu family", "model"} <= told.keys():
        return name
    return f"{name} (family {told['cpu family']}, model {told['model']})"


def commit(folder: Path = RESULTS) -> str | None:
    """What was measured, as git names it, with a plus where files differ from it; None where there is no git.

    What is kept in the folder itself is no part of it: a record would make the next one differ.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("diff", "--name-only", "HEAD", "--", ":/", ":(exclude).")
        return git("describe", "--always", "--exclude=*") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def slug(name: str) -> str:
    """A name as a file's: lower case, with hyphens for all else than letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[part] for part in KEY), []).append(row)
    return groups


def _peers() -> dict[str, str]:
    """The versions of peers that are installed."""
    found = {}
    for package in PEERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

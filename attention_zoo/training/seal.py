"""A list of a checkpoint's files with their sizes and check sums, so that damage is found and named before reading."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

SEAL = "files.json"
MARK = "commit_success.txt"  # Orbax adds it after everything else.


def seal(checkpoint: Path, parts: Iterable[str]) -> None:
    """Writes the list of the files in these folders of a checkpoint."""
    files = {
        str(path.relative_to(checkpoint)): [path.stat().st_size, check_sum(path)]
        for part in parts
        for path in sorted((checkpoint / part).rglob("*"))
        if path.is_file() and path.name != MARK
    }
    (checkpoint / SEAL).write_text(json.dumps(files), encoding="utf-8")


def damage(checkpoint: Path, parts: Iterable[str]) -> str:
    """What is wrong with the first damaged file of these folders, in a few words; nothing if they are whole."""
    files = _listed(checkpoint)
    if not set(parts) <= {Path(name).parts[0] for name in files}:
        return f"{SEAL} is missing or damaged"
    for name, (size, expected) in files.items():
        path = checkpoint / name
        if Path(name).parts[0] not in parts:
            continue
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if check_sum(path) != expected:
            return f"{name} has been changed"
    return ""


def _listed(checkpoint: Path) -> dict[str, tuple[int, int]]:
    """The size and check sum of every file in the list; nothing where it cannot be read."""
    try:
        files = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        return {name: (int(size), int(expected)) for name, (size, expected) in files.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def check_sum(path: Path) -> int:
    """The CRC-32 of a file, read piece by piece."""
    found = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found = zlib.crc32(piece, found)
    return found

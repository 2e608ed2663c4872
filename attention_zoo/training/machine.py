"""Where a run takes place: the folder, the device, the versions, and how long the process has been running."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path

import jax

import attention_zoo
from attention_zoo.functional.arrays import cores
from attention_zoo.training.errors import UserError

_IMPORTED = time.monotonic()
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def seconds_since_start() -> float:
    """Seconds since the process started; where the system does not tell, since this module was imported."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic() - _IMPORTED


def make_writable(workdir: Path) -> None:
    """Makes the work folder, or refuses it.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{jax.process_index()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the work folder {workdir}: {error.strerror}") from error


def device() -> str:
    """The devices in words, such as "8 x TPU v4" or "1 x cpu (2 cores)"."""
    kinds = [found.device_kind for found in jax.devices()]
    count = cores()
    of_cores = f" ({count} core{'s' * (count != 1)})" if jax.default_backend() == "cpu" else ""
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)) + of_cores


def versions() -> dict[str, str]:
    """The versions of this package, Python and what the numbers of a run depend on."""
    others = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"attention_zoo": attention_zoo.__version__, "python": platform.python_version(), **others}

"""What every test stands on: the CPU, no accidental promotion of ranks, data and caches in a folder that is removed."""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before jax and tensorflow_datasets are imported: both read the environment once. With pytest-xdist the
# controller makes the folder and its workers, which inherit its environment, take their own folders inside.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER")
_SCRATCH = os.environ["ATTENTION_ZOO_TEST_SCRATCH"] if _WORKER else tempfile.mkdtemp(prefix="attention_zoo_tests_")
os.environ["ATTENTION_ZOO_TEST_SCRATCH"] = _SCRATCH
os.environ["TFDS_DATA_DIR"] = os.path.join(_SCRATCH, _WORKER or "main")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The suite compiles thousands of programs and runs each for an instant. So XLA compiles quickly instead of well, and
# what tests, workers and the processes that they start have in common is compiled once. They all inherit this; with
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= in front, pytest tests the code that users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_OLD_EMITTERS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"  # compile in 2/5 of the time
os.environ.setdefault("XLA_FLAGS", f"{_OLD_EMITTERS} --xla_cpu_parallel_codegen_split_count=1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(_SCRATCH, "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes objects in crowds, and each look of the garbage collector at them costs more than it finds.
gc.set_threshold(100_000)
# Compiling makes a property's first example slow, so no deadline; the same examples in every run.
hypothesis.settings.register_profile("zoo", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("zoo")


def pytest_unconfigure() -> None:
    """Removes the scratch folder once, when the controller has ended."""
    if not _WORKER:
        shutil.rmtree(_SCRATCH, ignore_errors=True)


@pytest.fixture
def float64() -> Iterator[None]:
    """Arrays of 64 bits while the test runs, for finite differences and other tight comparisons."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def golden() -> Callable[[str, str], dict[str, np.ndarray]]:
    """Reads `golden/FILE.npz`: the arrays whose names start with `CASE/`, without that start."""

    def read(file: str, case: str) -> dict[str, np.ndarray]:
        with np.load(Path(__file__).with_name("golden") / f"{file}.npz") as arrays:
            return {name.removeprefix(f"{case}/"): arrays[name] for name in arrays if name.startswith(f"{case}/")}

    return read

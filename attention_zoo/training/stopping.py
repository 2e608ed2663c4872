"""Ctrl-C and SIGTERM: the first asks a run to stop after the step it is in, the second ends it at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While it is entered, remembers that one of the signals came; outside the main thread none is caught."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not print: the signal may have come in the middle of another print.
        os.write(2, b"\nStopping after this step and saving; once more to stop at once.\n")

    def asked(self, together: bool) -> bool:
        """Whether to stop. Several processes must agree on the step, so they ask only where all of them do.

        Args:
            together: every process is at this place now.
        """
        if jax.process_count() == 1:
            return self._asked
        return together and bool(multihost_utils.process_allgather(np.asarray(self._asked)).any())

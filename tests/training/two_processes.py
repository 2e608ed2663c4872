"""Run twice by test_sharding.py, as two machines of one run; the second is asked to stop in the middle."""

import os
import signal
import sys

import jax

from attention_zoo.training import Interrupted, fit
from tests.training.tiny import Copies, experiment


def main(address: str, workdir: str, number: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, int(number))
    data = Copies((5,))
    if number == "1":
        data.on_read = lambda count: os.kill(os.getpid(), signal.SIGTERM) if count == 5 else None
    try:
        fit(experiment(data), workdir, log_every=4)
    except Interrupted as stopped:
        print(stopped)


if __name__ == "__main__":
    main(*sys.argv[1:])

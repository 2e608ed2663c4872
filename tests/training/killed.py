"""Run by test_resume.py in a process that it kills: trains until it waits, so that the end comes in the middle."""

import sys
import time

from attention_zoo.training import fit
from tests.training.tiny import Copies, experiment

if __name__ == "__main__":
    fit(experiment(Copies(on_read=lambda count: time.sleep(60.0 if count >= 12 else 0.0))), sys.argv[1])

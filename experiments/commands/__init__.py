"""The commands behind `python -m experiments`: list, train, evaluate, predict, compare."""

from experiments.commands.compare import compare
from experiments.commands.evaluate import evaluate
from experiments.commands.listing import listing
from experiments.commands.predict import predict
from experiments.commands.train import train

__all__ = ["compare", "evaluate", "listing", "predict", "train"]

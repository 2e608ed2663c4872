"""Optimisation: one `fit` for every model, which it knows only as functions."""

from attention_zoo.training.checkpoint import load_parameters
from attention_zoo.training.errors import Interrupted, UserError
from attention_zoo.training.experiment import Batch, Data, Experiment, Metrics, Prediction
from attention_zoo.training.loop import fit
from attention_zoo.training.noise import GradientNoise, gradient_noise
from attention_zoo.training.objectives import next_token, packed_teacher_forcing, shifted, teacher_forcing
from attention_zoo.training.optimizers import learning_rate_schedule, optimizer
from attention_zoo.training.sharding import make_mesh, shard_batch
from attention_zoo.training.step import TrainState, initial_state, train_step

__all__ = [
    "Batch",
    "Data",
    "Experiment",
    "GradientNoise",
    "Interrupted",
    "Metrics",
    "Prediction",
    "TrainState",
    "UserError",
    "fit",
    "gradient_noise",
    "initial_state",
    "learning_rate_schedule",
    "load_parameters",
    "make_mesh",
    "next_token",
    "optimizer",
    "packed_teacher_forcing",
    "shard_batch",
    "shifted",
    "teacher_forcing",
    "train_step",
]

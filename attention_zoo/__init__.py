"""Attention mechanisms as pure functions, Flax modules, trained models and pictures.

Each folder is a door of its own: `functional`, `modules`, `models`, `training`, `data`, `figures`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]

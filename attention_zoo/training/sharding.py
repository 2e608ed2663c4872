"""Devices: one mesh, one table from parameter path to mesh axes, and batches shared out over it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from attention_zoo.training.errors import UserError

# The first pattern that is found in the path wins; the axes are those of the parameter's dimensions, `None` = whole on
# every device. The paths of the optimiser's moments end in their parameter's path, so they are laid out alike.
# All models so far are small: every device holds all parameters, and "data" alone is used.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = ((r"", ()),)


def make_mesh(model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes as a mesh with the axes "data" (the batch is divided) and "model" (of this size).

    Raises:
        UserError: the number of devices is not a multiple of `model`.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % model:
        raise UserError(f"{len(devices)} devices do not divide into groups of {model} for the model axis")
    return Mesh(np.asarray(devices).reshape(-1, model), ("data", "model"))


def tree_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, tuple[str | None, ...]]] = RULES) -> Any:
    """For every leaf the sharding that the table gives its path, such as `params/encoder/forward/kernel`.

    Whole on every device are a dimension that its mesh axis does not divide, and a leaf with another number of
    dimensions than its rule has axes (an optimiser's count, say).
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), ())
        if len(axes) != len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        pairs = zip(axes, leaf.shape, strict=True)
        return NamedSharding(
            mesh, PartitionSpec(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in pairs))
        )

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the "data" axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves this process's rows to its devices; of several processes, the rows together are the batch."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch whose rows the devices cannot share evenly.

    Raises:
        UserError: the batch size is not a multiple of the number of devices on the "data" axis.
    """
    count = mesh.shape["data"]
    if batch_size % count:
        raise UserError(
            f"a batch of {batch_size} examples cannot be shared evenly by {count} devices; "
            f"choose a batch size that is a multiple of {count}"
        )


def on_one_device(tree: Any, mesh: Mesh) -> Any:
    """The tree on this process's first device, so that evaluation needs no other device or process."""
    whole = jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)

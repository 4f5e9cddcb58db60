"""One step over all devices of all hosts: a one-axis mesh, batches split, states replicated."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices (or these) along one axis named "data"."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def split_rows(tree: Any, mesh: Mesh) -> Any:
    """This host's rows of a batch as global arrays whose first axis is split over the mesh.

    Raises ValueError when the rows cannot be dealt out evenly.
    """
    local = len([d for d in mesh.devices.flat if d.process_index == jax.process_index()])
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def place(rows: Any) -> Any:
        if rows.shape[0] % local:
            raise ValueError(
                f"{rows.shape[0]} images do not divide over {local} local devices; "
                "choose a batch size that is a multiple"
            )
        return jax.make_array_from_process_local_data(sharding, rows)

    return jax.tree.map(place, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same values on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))

"""One step over all devices of all hosts, and what hosts have to agree about.

``meshed`` is the engine: ``jit`` over a one-axis mesh, batches split, states replicated; the
compiler adds up gradients, and the step is exactly that of one device with the whole batch.
``pmapped`` is the older style, kept for comparison: every device takes a step of its own on its
rows, and gradients are averaged. The two agree where all rows are real and nothing is drawn.
"""

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree
from orbax.checkpoint import multihost

from wsss_jax.errors import UserError
from wsss_jax.train.state import TrainState, each
from wsss_jax.types import Leaf

AXIS = "data"
"""Name of the axis of devices."""

Metrics = dict[str, Array]
"""Scalars of one step, by name."""

Step = Callable[[PyTree, PyTree, PRNGKeyArray], tuple[PyTree, Metrics]]
"""(state, batch, key) to (state, metrics)."""

T = TypeVar("T")


@runtime_checkable
class Device(Protocol):
    """What is asked of a device of JAX."""

    @property
    def device_kind(self) -> str:
        """Its maker's name for it."""
        ...

    @property
    def process_index(self) -> int:
        """The host that it belongs to."""
        ...


@runtime_checkable
class Compiled(Protocol):
    """A step that jax has compiled, or will at its first call."""

    def __call__(self, state: PyTree, batch: PyTree, key: PRNGKeyArray) -> tuple[PyTree, Metrics]:
        """One step."""
        ...

    def lower(self, *arguments: PyTree) -> jax.stages.Lowered:
        """The program before the compiler changes it."""
        ...


class Engine(NamedTuple):
    """How steps run over the devices.

    put: a state on the host, or on one device, to all devices. split: this host's rows of a batch
    to its devices; ValueError when they cannot be dealt out evenly. step: the compiled step, which
    takes its state over. take: a state back as ``put`` wants it.
    """

    put: Callable[[PyTree], PyTree]
    split: Callable[[PyTree], PyTree]
    step: Compiled
    take: Callable[[PyTree], PyTree]


def meshed(step: Step, devices: Sequence[Device] | None = None) -> Engine:
    """One step of the whole batch, split over a mesh of all devices (or of these)."""
    mesh = data_mesh(devices)
    return Engine(
        put=lambda state: replicate(state, mesh),
        split=lambda batch: split_rows(batch, mesh),
        step=jax.jit(step, donate_argnums=0),
        take=lambda state: state,
    )


def pmapped(step: Step, devices: Sequence[Device] | None = None) -> Engine:
    """A step of each device on its own rows; gradients, metrics and statistics are averaged.

    Every device draws for itself, and has to have as many real rows as the others.
    """
    local = jax.local_devices() if devices is None else devices
    count = len(local)

    def one(state: PyTree, batch: PyTree, key: PRNGKeyArray) -> tuple[PyTree, Metrics]:
        state, metrics = step(state, batch, jax.random.fold_in(key, jax.lax.axis_index(AXIS)))
        return each(state, _mean_statistics), _mean(metrics)

    def put(state: PyTree) -> PyTree:
        inside = each(state, lambda s: replace(s, axis=AXIS))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), inside)

    def split(batch: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(count, _share(x, count), *x.shape[1:]), batch)

    def take(state: PyTree) -> PyTree:
        outside = each(state, lambda s: replace(s, axis=None))
        return jax.tree.map(lambda x: x.addressable_shards[0].data[0], outside)

    run = jax.pmap(
        one, AXIS, in_axes=(0, 0, None), out_axes=(0, None), devices=devices, donate_argnums=0
    )
    return Engine(put, split, run, take)


ENGINES: Mapping[str, Callable[..., Engine]] = MappingProxyType({"mesh": meshed, "pmap": pmapped})
"""Engines by name; called with the step and, unless all are meant, the devices."""


def data_mesh(devices: Sequence[Device] | None = None) -> Mesh:
    """All devices (or these) along one axis named "data"."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def split_rows(tree: T, mesh: Mesh) -> T:
    """This host's rows of a batch as global arrays whose first axis is split over the mesh.

    Raises ValueError when the rows cannot be dealt out evenly.
    """
    local = len([d for d in mesh.devices.flat if d.process_index == jax.process_index()])
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def place(rows: Leaf) -> Array:
        _share(rows, local)
        return jax.make_array_from_process_local_data(sharding, rows)

    return jax.tree.map(place, tree)


def replicate(tree: T, mesh: Mesh) -> T:
    """The same values on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def compiled(step: Compiled, state: PyTree, batch: PyTree, key: PRNGKeyArray) -> Step:
    """The step for arguments of these shapes, once every host has compiled it.

    One host may take minutes longer than another, which the step's collectives would not wait for.
    """
    if jax.process_count() == 1:
        return step
    made = step.lower(state, batch, key).compile()
    _meet()
    return made


def highest(number: int) -> int:
    """The largest of the numbers that the hosts call this with; every host must call it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray(number)).max())


def from_each_host(value: T) -> list[T]:
    """The JSON values that the hosts call this with, by host; every host must call it."""
    if jax.process_count() == 1:
        return [value]
    _meet()
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    padded = np.zeros(highest(own.size), np.uint8)  # an end of zeros is no JSON, and is cut off
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row).rstrip(b"\0")) for row in np.asarray(rows)]


def is_first() -> bool:
    """Whether this is the host that writes what one host has to write; the only one is."""
    return jax.process_index() == 0


@contextmanager
def in_turn() -> Iterator[None]:
    """Work that one host does for all: the first passes the block while the others wait for it.

    Then they pass it, too, and find everything done, as every step skips what is there. Every host
    must come here, in the same order. A signal reaches a host that waits.
    """
    if not is_first():
        _meet()
    yield
    if is_first():
        _meet()


_meetings = itertools.count()


def _meet() -> None:
    """Wait until every host is here, in a thread: the main thread stays open for signals.

    Collectives do not wait that long: Gloo's, between CPUs, fail after 30 seconds.
    """
    name = f"wsss_meeting_{next(_meetings)}"
    meet = multihost.get_barrier_sync_fn()
    failed: list[Exception] = []

    def wait() -> None:
        try:
            meet(key=name, timeout_ms=_LONG)
        except Exception as problem:  # raised below, in the main thread
            failed.append(problem)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join()
    if failed:
        raise failed[0]


_LONG = 30 * 24 * 3600 * 1000
"""Milliseconds of the longest step that others wait for: a month."""


def _share(rows: Array | np.ndarray, devices: int) -> int:
    if rows.shape[0] % devices:
        raise UserError(
            f"{rows.shape[0]} images do not divide over {devices} local devices; "
            "choose a batch size that is a multiple"
        )
    return rows.shape[0] // devices


def _mean_statistics(state: TrainState) -> TrainState:
    return replace(state, stats=_mean(state.stats))


def _mean(tree: T) -> T:
    """The mean over devices of what is a fraction; counts are the same on all of them."""

    def one(x: Array) -> Array:
        return jax.lax.pmean(x, AXIS) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)

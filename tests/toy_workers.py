"""Functions of one image that worker processes can import: well-behaved ones and killers.

They load neither JAX nor numpy, so that a worker starts at once.
"""

import errno
import os
import signal
import time
from pathlib import Path

from wsss_jax.run.executors import ONE_THREAD


def content(id: str) -> bytes:
    return (id * 1000).encode()


def write(id: str, *, folder: Path) -> int:
    """The usual stage: something of the image's own, written whole or not at all."""
    temporary = folder / f".{id}_{os.getpid()}"
    temporary.write_bytes(content(id))
    os.replace(temporary, folder / f"{id}.bin")
    return os.getpid()


def write_or_fail(id: str, *, folder: Path, poison: tuple[str, ...]) -> int:
    if id in poison:
        raise ZeroDivisionError(f"{id} is poison")
    return write(id, folder=folder)


def write_or_die(id: str, *, folder: Path, killers: tuple[str, ...]) -> int:
    if id in killers:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(id, folder=folder)


def die_once(id: str, *, folder: Path, victim: str) -> int:
    if id == victim and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(id, folder=folder)


def write_until_full(id: str, *, folder: Path, room: int) -> int:
    if len(list(folder.glob("*.bin"))) >= room:
        with open("/dev/full", "w") as full:  # the kernel's own "no space left on device"
            full.write("x")
            full.flush()
    return write(id, folder=folder)


def refuse_to_write(id: str, *, number: int = errno.EROFS) -> None:
    raise OSError(number, os.strerror(number), f"{id}.bin")


def surroundings(id: str) -> tuple[dict[str, str | None], bool]:
    """The thread settings, and whether Ctrl-C is left to the parent."""
    seen = {name: os.environ.get(name) for name in ONE_THREAD}
    return seen, signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def xla_pool_threads(id: str) -> int:
    """How many threads XLA computes with here: those that a first computation starts."""
    import jax.numpy as jnp

    x = jnp.ones((512, 512), jnp.float32)
    (x @ x).block_until_ready()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("Eigen" in name for name in names)


def mark_and_sleep(id: str, *, folder: Path) -> None:
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(600)


class Unloadable:
    """Arrives at no worker: unpickling it fails there."""

    def __call__(self, id: str) -> None: ...

    def __reduce__(self):
        return _refuse, ()


def _refuse() -> None:
    raise ImportError("this function cannot be loaded in a worker (the traceback is expected)")


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie has ended; whoever adopted it has not looked yet


def ray_node(id):
    """The node of Ray that this runs on, after a while in which others find one, too."""
    import ray

    time.sleep(0.3)
    return ray.get_runtime_context().get_node_id()

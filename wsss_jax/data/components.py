"""What the channels of a store of frozen features mean: the components that its maps are cut to."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from wsss_jax.data.stores import Store, read_npz
from wsss_jax.errors import BadFileError

KEPT = "components.npz"
"""The file of a store that keeps them."""


class Components(NamedTuple):
    """What the networks' maps, side by side, become features by: ``(maps - centre) @ basis``."""

    centre: Float[np.ndarray, " k"]
    basis: Float[np.ndarray, "k n"]


def digest(store: Store) -> str:
    """Twelve hexadecimal digits of the components that a store of features was made by.

    Stores in which the same channel means the same have the same; "" where none are kept.
    """
    path = store.folder / KEPT
    if not path.is_file():
        return ""
    kept = read(path)
    parts = (np.ascontiguousarray(part, np.float32).tobytes() for part in kept)
    return hashlib.blake2b(b"".join(parts), digest_size=6).hexdigest()


def read(path: Path) -> Components:
    """The components in a file. Raises BadFileError where its arrays do not belong together."""
    arrays = read_npz(path, {"centre": "f", "basis": "f"})
    centre, basis = arrays["centre"], arrays["basis"]
    if centre.ndim != 1 or basis.ndim != 2 or len(centre) != len(basis):
        raise BadFileError(
            f"{path}: centre {centre.shape} and basis {basis.shape} do not belong together; "
            "delete the store and make it again"
        )
    return Components(centre, basis)

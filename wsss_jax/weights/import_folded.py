"""What the names in the public MobileNet files mean, whose BatchNorm is folded into the kernels.

The files hold ``NN_conv/kernel`` (float) or ``NN_conv/kernel_q`` (int8, zero point 0) times
``NN_conv/scale`` (one per output channel), and ``NN_conv/bias``. Kernels are HWIO, depthwise ones
HW1C; 1×1 and depthwise kernels only lose their axes of length one.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from wsss_jax.weights.import_names import Source, Table

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


@runtime_checkable
class Folded(Protocol):
    """A network that knows the names of its layers in files with folded BatchNorm."""

    def file_names(self) -> Mapping[str, str | None]:
        """Layer in the file to our path (``blocks/3/expand``); None for what is not imported."""
        ...


def table(module: Folded, arrays: Arrays) -> Table:
    """The table for files of floats, of int8, or of both."""
    names = module.file_names()
    sources = {
        f"{path}/{part}": _source(layer, part, arrays)
        for layer, path in names.items()
        if path is not None
        for part in ("kernel", "bias")
    }
    gone = {layer for layer, path in names.items() if path is None}
    return Table(sources, ignored=lambda name: name.split("/")[0] in gone)


def _source(layer: str, part: str, arrays: Arrays) -> Source:
    if part == "kernel" and f"{layer}/kernel_q" in arrays:
        return Source((f"{layer}/kernel_q", f"{layer}/scale"), _scaled)
    return Source((f"{layer}/{part}",), _squeezed)


def _scaled(kernel: np.ndarray, scale: np.ndarray, shape: tuple | None) -> np.ndarray:
    return _squeezed(kernel.astype(np.float32) * scale, shape)


def _squeezed(value: np.ndarray, shape: tuple | None) -> np.ndarray:
    """Without the axes of length one that only the file has."""
    if shape is None or value.ndim != 4:
        return value
    if len(shape) == 3 and value.shape == (*shape[:2], 1, shape[2]):  # depthwise: HW1C
        return value.reshape(shape)
    if len(shape) == 2 and value.shape == (1, 1, *shape):  # pointwise: 11IO
        return value.reshape(shape)
    return value

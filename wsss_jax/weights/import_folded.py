"""What the names in the public MobileNet files mean, whose BatchNorm is folded into the kernels.

The files hold ``NN_conv/kernel`` (float) or ``NN_conv/kernel_q`` (int8, zero point 0) times
``NN_conv/scale`` (one per output channel), and ``NN_conv/bias``. Kernels are HWIO, depthwise ones
HW1C; 1×1 and depthwise kernels only lose their axes of length one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped

from wsss_jax.errors import UserError
from wsss_jax.formats import npz
from wsss_jax.weights.import_names import Source, Table

IMAGENET_HEAD = "52_conv"
"""Where the MobileNetV2 files keep their 1001 classes (index 0 is background)."""

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


def imagenet_head(path: Path) -> tuple[Float[np.ndarray, "k n"], Float[np.ndarray, " n"]]:
    """Kernel and bias of the ImageNet classifier that a MobileNetV2 file holds.

    ``features.mean((1, 2)) @ kernel + bias`` are the logits the file was made for.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    found = [name for name in npz.headers(path) if name.startswith(f"{IMAGENET_HEAD}/")]
    arrays = npz.read(path, dict.fromkeys(found, "fi"))
    values = []
    for part in ("kernel", "bias"):
        source = _source(IMAGENET_HEAD, part, arrays)
        values.append(source.convert(*(arrays[name] for name in source.names), None))
    kernel, bias = values
    return kernel.reshape(kernel.shape[-2:]), bias


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

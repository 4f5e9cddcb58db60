"""Pretrained weights into networks: every name used once, every parameter filled, or one error.

The files are npz with ``NN_conv/kernel`` (float) or ``NN_conv/kernel_q`` (int8, zero point 0) times
``NN_conv/scale`` (one per output channel), and ``NN_conv/bias``. Kernels are HWIO, depthwise ones
HW1C. Which name belongs where is said by the network (``file_names``); 1×1 and depthwise kernels
only lose their axes of length one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from wsss_jax import npz
from wsss_jax.models import import_names

IMAGENET_HEAD = "52_conv"
"""Where the MobileNetV2 files keep their 1001 classes (index 0 is background)."""

_KINDS = {"kernel": "f", "kernel_q": "i", "scale": "f", "bias": "f"}

Shape = tuple[int, ...]


@runtime_checkable
class Importable(Protocol):
    """A network that knows the names of its layers in the public files."""

    def file_names(self) -> Mapping[str, str | None]:
        """Layer in the file to our path (``blocks/3/expand``); None for what is not imported."""
        ...


def load(module: nnx.Module, path: Path) -> None:
    """Fill every parameter of an ``Importable`` network from a weight file.

    Networks that name their values singly are filled by ``import_names``, from any layout.
    Raises ValueError that lists all missing, unused and mis-shaped names, the latter with both
    shapes; the network is then unchanged.
    """
    if isinstance(module, import_names.Named):
        return import_names.load(module, path)
    if not isinstance(module, Importable):
        raise ValueError(f"{type(module).__name__} has no public weights; train it from scratch")
    names = module.file_names()
    found = _shapes(path)
    params = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    params = {"/".join(map(str, key)): param for key, param in params.items()}
    wanted = {
        f"{layer}/{part}": params[f"{target}/{part}"].shape
        for layer, target in names.items()
        if target is not None
        for part in ("kernel", "bias")
    }
    problems = _misfits(wanted, found, ignored={k for k, target in names.items() if target is None})
    filled = {f"{target}/{part}" for target in names.values() for part in ("kernel", "bias")}
    problems += [f"{name}: filled by nothing in the table" for name in params if name not in filled]
    if problems:
        raise ValueError(
            f"{path} does not fit {type(module).__name__}:\n  " + "\n  ".join(problems)
        )
    arrays = _arrays(path, [layer for layer, target in names.items() if target is not None], found)
    for name, value in arrays.items():
        layer, part = name.split("/")
        param = params[f"{names[layer]}/{part}"]
        param.set_value(jnp.asarray(value.reshape(param.shape), param.dtype))


def imagenet_head(path: Path) -> tuple[Float[np.ndarray, "k n"], Float[np.ndarray, " n"]]:
    """Kernel and bias of the ImageNet classifier that a MobileNetV2 file holds.

    ``features.mean((1, 2)) @ kernel + bias`` are the logits the file was made for.
    """
    arrays = _arrays(path, [IMAGENET_HEAD], _shapes(path))
    kernel = arrays[f"{IMAGENET_HEAD}/kernel"]
    return kernel.reshape(kernel.shape[-2:]), arrays[f"{IMAGENET_HEAD}/bias"]


def _shapes(path: Path) -> dict[str, Shape]:
    if not path.is_file():
        raise ValueError(f"{path}: no such weight file")
    return {name: shape for name, (shape, _) in npz.headers(path).items()}


def _misfits(wanted: Mapping[str, Shape], found: Mapping[str, Shape], ignored: set) -> list[str]:
    """One line for every name that is missing, unused, or of another shape."""
    problems, used = [], set()
    for name, shape in wanted.items():
        source = f"{name}_q" if f"{name}_q" in found else name
        parts = {source}
        if source != name:
            parts.add(f"{name.split('/')[0]}/scale")
        used |= parts
        problems += [f"{part}: missing" for part in sorted(parts - found.keys())]
        if source in found and not _fits(found[source], shape):
            problems.append(f"{source}: shape {found[source]} in the file, the network has {shape}")
    unused = [name for name in found if name not in used and name.split("/")[0] not in ignored]
    return problems + [f"{name}: in the file, used by nothing" for name in unused]


def _fits(found: Shape, wanted: Shape) -> bool:
    """Whether the shapes agree but for the axes of length one that only the file has."""
    if len(found) == 4 and len(wanted) == 3:  # depthwise: HW1C
        return found == (*wanted[:2], 1, wanted[2])
    if len(found) == 4 and len(wanted) == 2:  # pointwise: 11IO
        return found == (1, 1, *wanted)
    return found == wanted


def _arrays(path: Path, layers: list[str], found: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Float kernel and bias of the layers, quantised kernels times their scale."""
    kinds = {
        f"{layer}/{part}": kind
        for layer in layers
        for part, kind in _KINDS.items()
        if f"{layer}/{part}" in found
    }
    arrays = npz.read(path, kinds)
    for layer in layers:
        if f"{layer}/kernel_q" in arrays:
            kernel, scale = arrays.pop(f"{layer}/kernel_q"), arrays.pop(f"{layer}/scale")
            arrays[f"{layer}/kernel"] = kernel.astype(np.float32) * scale
    return arrays

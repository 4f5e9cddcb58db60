"""Files of other tools, read as score maps: one function per layout.

Not here: where the files lie (the caller finds them) and what is done with the maps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from wsss_jax.config import lookup
from wsss_jax.data.classes import ClassList
from wsss_jax.data.files import MissingFileError, path_of, read_grey
from wsss_jax.types import ScoreMaps, Size

Reader = Callable[[Path, ClassList, Size], ScoreMaps]
"""(file, classes of the data set, (H, W) of the photograph) to score maps on the file's grid."""

SALIENCY = ClassList(("saliency",))
"""What the one class of a saliency map is called."""

SUFFIXES = (".png", ".npz", ".npy")


def saliency_png(path: Path, classes: ClassList, size: Size) -> ScoreMaps:
    """Saliency from an 8-bit grey picture of any size: one class, probabilities in [0, 1].

    The grid is the picture's own (SOD100K writes 224×224); ``size`` is the photograph's. The map
    is class-agnostic, so its class 0 is that of SALIENCY and ``classes`` is not looked at. Raises
    BadFileError for what is no 8-bit grey picture.
    """
    del classes
    scores = read_grey(path).astype(np.float32)[..., np.newaxis] / np.float32(255)
    peak = scores.max(axis=(0, 1))
    return ScoreMaps(scores, np.zeros(1, np.int32), size, peak, "probability")


READERS: Mapping[str, Reader] = MappingProxyType({"saliency_png": saliency_png})
"""Layouts of other tools by name."""


def read_prior(reader: str, folder: Path, id: str, *, classes: ClassList, size: Size) -> ScoreMaps:
    """The score maps that another tool wrote for one image.

    reader: a name of READERS. folder: where one file per image lies, named by id. size: (H, W) of
    the photograph in pixels. Raises BadFileError where the file is missing or damaged, ValueError
    for an unknown reader or an unsafe id.
    """
    read = lookup(READERS, reader, "reader")
    for suffix in SUFFIXES:
        path = path_of(folder, id, suffix)
        if path.is_file():
            return read(path, classes, size)
    raise MissingFileError(f"{folder}: no file of {id} ({', '.join(SUFFIXES)})")

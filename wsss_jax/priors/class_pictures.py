"""Pictures of classes as other tools write them: numbers of classes, or grey levels of one class.

Not here: what their values mean for a photograph (``prior_readers``), and true masks of a data set
(``data.mask_files``).
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wsss_jax.data.files import colours, decode_mask, named_file, read_levels, read_mask
from wsss_jax.data.mask_files import decode_truth
from wsss_jax.data.photographs import decode_image
from wsss_jax.errors import BadFileError


def class_numbers(source: Path | bytes, name: Path | str, mode: str) -> UInt8[np.ndarray, "H W"]:
    """The numbers in a mask: of a palette, or grey of any depth, with alpha or as RGB.

    mode: of the picture, from its header. Raises BadFileError for real colours, which tell no
    numbers.
    """
    if mode not in ("RGB", "RGBA", "P", "L"):
        return decode_truth(source, name)
    if mode in ("P", "L"):
        return read_mask(source) if isinstance(source, Path) else decode_mask(source, str(name))
    pixels = decode_image(source, name, whole=True)
    if (pixels != pixels[..., :1]).any():
        raise BadFileError(f"{name}: {colours(pixels)}")
    return pixels[..., 0]


def levels_or_error(path: Path) -> Any:
    """The grey levels of one class, or why there are none: the other classes go on."""
    try:
        return read_levels(path)
    except BadFileError as problem:
        return problem


def per_class_files(folder: Path, id: str, ending: str, count: int) -> dict[int, Path]:
    """Those of ``<id>_0`` to ``<id>_count`` that are there, by number; with leading zeros too."""
    found: dict[int, Path] = {}
    for number in range(count + 1):
        for digits in (str(number), f"{number:02d}", f"{number:03d}"):
            path = named_file(folder, f"{id}_{digits}", ending)
            if path.is_file():
                found.setdefault(number, path)
    return found

"""A data set whose photographs and masks are resized when they are read."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from wsss_jax.data.classes import ClassList
from wsss_jax.data.photographs import working_size
from wsss_jax.datasets.table import Source
from wsss_jax.types import Size


@dataclass(frozen=True)
class Resized:
    """A ``Source`` like ``source`` in all but size. new_size: from an image's size to the new one.

    Photographs are resized with PIL's bicubic filter, masks to the nearest pixel.
    """

    source: Source
    new_size: Callable[[Size], Size]

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.source.name

    @property
    def classes(self) -> ClassList:
        """Its classes."""
        return self.source.classes

    @property
    def ids(self) -> tuple[str, ...]:
        """Its images."""
        return self.source.ids

    @property
    def has_background(self) -> bool:
        """Whether its masks know a background."""
        return self.source.has_background

    def labels(self, id: str) -> Bool[np.ndarray, " c"]:
        """Which classes the image shows."""
        return self.source.labels(id)

    def image(self, id: str) -> UInt8[np.ndarray, "H W 3"]:
        """The photograph at its new size."""
        return _resized(self.source.image(id), self.size(id), Image.Resampling.BICUBIC)

    def encoded(self, id: str) -> bytes:
        """The photograph at its new size as the bytes of a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(self.image(id)).save(buffer, "PNG")
        return buffer.getvalue()

    def size(self, id: str) -> Size:
        """The new size, at most the working size of a photograph so large."""
        return working_size(self.new_size(self.source.size(id)))

    def mask(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        """The true mask at the new size."""
        mask = self.source.mask(id)
        return None if mask is None else _resized(mask, self.size(id), Image.Resampling.NEAREST)


def long_side(size: Size, wanted: int, *, multiple: int) -> Size:
    """The size with a long side of about ``wanted`` pixels, both sides multiples of ``multiple``.

    Rounded to the nearest multiple, at least one; so the two ratios may differ a little.
    """
    scale = wanted / max(size)
    height, width = (max(1, round(n * scale / multiple)) * multiple for n in size)
    return height, width


def _resized(pixels: np.ndarray, size: Size, how: Image.Resampling) -> np.ndarray:
    if size == pixels.shape[:2]:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), how))

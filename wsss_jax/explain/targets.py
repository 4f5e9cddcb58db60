"""Which classes are explained, from the ways in which people name them; and features on a grid.

Class numbers per image (``[[2], [0, 2]]``) and rows of flags (booleans, or 0 and 1) are both in
use: pytorch-grad-cam and captum take numbers, multi-label training has rows. What can only be
meant one way is understood, what can be meant both ways is refused with both spellings.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wsss_jax.ops.resize import fits
from wsss_jax.types import Scorer, Size

FORMS = (
    "give a list of class numbers for each image, such as [[2]], or a row of booleans, one for each"
    " class"
)


def images_of(images: Any) -> Float[Array, "b h w 3"]:
    """A batch of images in [0, 1]. Raises ValueError with the line that makes one."""
    shape, kind = np.shape(images), np.asarray(images).dtype
    if len(shape) == 3:
        raise ValueError(f"images are {shape}, wanted a batch (b, h, w, 3): images[None]")
    if len(shape) != 4 or (shape[-1] != 3 and shape[1] != 3):
        raise ValueError(f"images are {shape}, wanted (b, h, w, 3)")
    if shape[-1] != 3:
        raise ValueError(
            f"images are {shape}, wanted (b, h, w, 3); channels come last: "
            "np.moveaxis(images, 1, -1)"
        )
    if kind.kind != "f":
        raise ValueError(
            f"images are {kind}, wanted floats in [0, 1]: images.astype(np.float32) / 255"
        )
    return jnp.asarray(images, jnp.float32)


def labels_of(wanted: Any, *, images: int, classes: int) -> Bool[Array, "images classes"]:
    """Labels of a batch from class numbers or from rows of flags.

    wanted: class numbers (from 0) of each image, ``[[2], [0, 2]]``; of one image also ``[2]``; or
    rows of booleans, or of 0 and 1 of any type, one entry for each class. Raises ValueError for
    None, another number of images, a class that is not there, and what can be meant both ways.
    """
    if wanted is None:
        raise ValueError(f"no classes are named; {FORMS}")
    if isinstance(wanted, int | np.integer):
        wanted = [wanted]
    if isinstance(wanted, np.ndarray | jax.Array):
        rows: list[Any] = list(np.atleast_1d(np.asarray(wanted)))
    else:
        rows = list(wanted)
    if rows and all(np.ndim(row) == 0 for row in rows):
        if images != 1:
            raise ValueError(f"one list of classes for a batch of {images} images; {FORMS}")
        rows = [rows]
    if len(rows) != images:
        raise ValueError(
            f"labels of {len(rows)} images for a batch of {images}; give one list of class "
            "numbers per image, an empty one where there is none"
        )
    arrays = [np.asarray(row) for row in rows]
    if _are_flags(arrays, classes):
        return jnp.asarray(np.stack(arrays).astype(bool))
    return jnp.asarray(_from_numbers(arrays, classes))


def on_grid(
    scorer: Scorer, tokens: Float[Array, "b n k"], images: Float[Array, "b H W 3"]
) -> Scorer:
    """A scorer whose features are tokens (b,n,k), with its features on a grid (b,h,w,k).

    The grid is that of square patches. One token more is a class token, which comes first; it is
    put back as these very images gave it, so methods that change the image do not apply. Raises
    ValueError where no grid has so many cells.
    """
    size: Size = (images.shape[1], images.shape[2])
    found = {extra: _grid(tokens.shape[1] - extra, size) for extra in (0, 1)}
    extra = next((extra for extra, grid in found.items() if grid is not None), None)
    if extra is None:
        raise ValueError(
            f"features are {tokens.shape}: {tokens.shape[1]} tokens are no grid of patches of an "
            f"image of {size}; return them as (b, h, w, k), or their last map"
        )
    height, width = found[extra] or (0, 0)
    count, first = tokens.shape[1], tokens[:, :extra]

    def flat(grid: Array) -> Array:
        patches = grid.reshape(grid.shape[0], count - extra, grid.shape[-1])
        return jnp.concatenate([first.astype(grid.dtype), patches], axis=1) if extra else patches

    def folded(values: Array) -> Array:
        return values[:, extra:].reshape(values.shape[0], height, width, values.shape[-1])

    maps = scorer.class_maps
    return Scorer(
        features=lambda x: folded(scorer.features(x)),
        head=lambda grid: scorer.head(flat(grid)),
        class_maps=None if maps is None else lambda grid: folded(maps(flat(grid))),
    )


def check_channels(features: tuple[int, ...], images: tuple[int, ...]) -> None:
    """Raise ValueError where features (b,h,w,k) fit the images with channels first alone.

    features, images: shapes.
    """
    size = images[1:3]
    if not fits(features[1:3], size) and fits(features[2:4], size):
        raise ValueError(
            f"features are {features} of images {images}, wanted (b, h, w, k); channels come last: "
            "jnp.moveaxis(features, 1, -1)"
        )


def check_logits(logits: Array, images: int) -> None:
    """Raise ValueError unless scores are one row per image with one column per class."""
    shape = getattr(logits, "shape", None)
    if shape is None:
        raise ValueError(f"the head gives a {type(logits).__name__}, wanted class scores (b, c)")
    if len(shape) != 2 or shape[0] != images:
        raise ValueError(
            f"the head gives scores of shape {shape} for {images} images, wanted "
            f"({images}, classes); of one class alone return scores[:, None]"
        )


def _are_flags(rows: list[np.ndarray], classes: int) -> bool:
    """Whether rows are flags of classes; ValueError where they are neither or could be both."""
    kinds = {row.dtype.kind for row in rows if row.size}
    fits = all(row.shape == (classes,) for row in rows)
    if kinds & {"b", "f"}:
        if not fits or not all(np.isin(row, (0, 1)).all() for row in rows):
            shapes = sorted({row.shape for row in rows})
            raise ValueError(
                f"labels of type {rows[0].dtype} and rows of shape {shapes}, wanted {classes} "
                f"booleans or 0 and 1 in each row; {FORMS}"
            )
        return True
    if not fits or not all(np.isin(row, (0, 1)).all() for row in rows):
        return False
    if classes == 1:
        return any(row[0] == 1 for row in rows)
    if any(len(set(row.tolist())) < classes for row in rows):
        return True  # no class is named twice, so these are not class numbers
    raise ValueError(
        f"labels {[row.tolist() for row in rows]} of {classes} classes can be class numbers and "
        "can be flags; give booleans if they are flags, and rows of booleans that are True if all "
        "classes are meant"
    )


def _from_numbers(rows: list[np.ndarray], classes: int) -> Bool[np.ndarray, "images classes"]:
    labels = np.zeros((len(rows), classes), bool)
    for index, numbers in enumerate(rows):
        if numbers.size and numbers.dtype.kind not in "iu":
            raise ValueError(f"labels of type {numbers.dtype}; {FORMS}")
        if numbers.ndim != 1:
            raise ValueError(f"labels of image {index} have shape {numbers.shape}; {FORMS}")
        wrong = [number for number in numbers.tolist() if not 0 <= number < classes]
        if wrong:
            raise ValueError(
                f"image {index} is labelled {wrong[0]}; the scorer knows {classes} classes, "
                f"numbered 0 to {classes - 1}"
            )
        if len(set(numbers.tolist())) < numbers.size:
            raise ValueError(f"image {index} is labelled twice with one class: {numbers}; {FORMS}")
        labels[index, numbers.astype(int)] = True
    return labels


def _grid(cells: int, size: Size) -> Size | None:
    """Rows and columns of square patches that an image of this size falls into."""
    for stride in range(1, max(size) + 1):
        for rounded in (math.ceil, math.floor):
            grid = rounded(size[0] / stride), rounded(size[1] / stride)
            if grid[0] * grid[1] == cells:
                return grid
    return None

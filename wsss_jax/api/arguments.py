"""What photographs and score maps may come as, and the advice for what they may not."""

import math
from typing import Any

import numpy as np

from wsss_jax.data import records
from wsss_jax.types import ScoreMaps

SLACK = 1e-3
"""How far above 1 rounding may take a score."""

LAST = "channels come last; move axis 0 to the end: np.moveaxis({name}, 0, -1)"


def photograph(image: object) -> np.ndarray:
    """RGB pixels (H,W,3) uint8. Raises ValueError with the line that makes them."""
    pixels = np.asarray(image)
    if not pixels.ndim:
        raise ValueError(
            f"image is a {type(image).__name__}, wanted pixels (H, W, 3): "
            "np.asarray(PIL.Image.open(path).convert('RGB'))"
        )
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[-1] not in (3, 4):
        raise ValueError(f"image is {pixels.shape}, wanted (H, W, 3); {LAST.format(name='image')}")
    if pixels.ndim == 4:
        raise ValueError(f"image is {pixels.shape}, wanted one photograph (H, W, 3)")
    if pixels.ndim == 2 or pixels.shape[-1] == 1:
        raise ValueError(
            f"image is {pixels.shape}, wanted (H, W, 3); of a grey one: "
            "np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=-1)"
        )
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        alpha = "; without the alpha channel: image[..., :3]" if pixels.shape[-1] == 4 else ""
        raise ValueError(f"image is {pixels.shape}, wanted (H, W, 3){alpha}")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise ValueError(f"image is {pixels.dtype}, wanted uint8; image.astype(np.uint8) if 0..255")
    raise ValueError(
        f"image is {pixels.dtype} from {pixels.min():.3g} to {pixels.max():.3g}, wanted uint8; if "
        "it is in [0, 1]: (255 * image).round().astype(np.uint8); if in 0..255: "
        "image.round().astype(np.uint8)"
    )


def scores(values: object, name: str, size: tuple[int, ...] | None = None) -> np.ndarray:
    """Score maps (h,w,k) float32, finite and not negative.

    name: what errors call them. size: (h, w) that they should have, to tell swapped axes. Raises
    ValueError with the line that makes them right.
    """
    if isinstance(values, ScoreMaps):
        raise ValueError(f"{name} are ScoreMaps, wanted an array (h, w, k): {name}.scores")
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} are a masked array; say what counts there: {name}.filled(0)")
    maps = np.asarray(values)
    if not maps.ndim:
        raise ValueError(f"{name} are a {type(values).__name__}, wanted an array (h, w, k)")
    if maps.ndim == 2:
        raise ValueError(
            f"{name} are {maps.shape}, wanted (h, w, k): {name}[..., None] for one map, "
            f"np.eye(k)[{name}] for a mask of k labels"
        )
    if maps.ndim != 3:
        raise ValueError(f"{name} are {maps.shape}, wanted (h, w, k) of one image")
    if size is not None and maps.shape[:2] != size and maps.shape[1:] == size:
        raise ValueError(f"{name} are {maps.shape}, wanted (h, w, k); {LAST.format(name=name)}")
    if maps.dtype.kind == "u":
        raise ValueError(
            f"{name} are {maps.dtype} where numbers in [0, 1] are wanted; divide by "
            f"{np.iinfo(maps.dtype).max}: {name} / np.float32({np.iinfo(maps.dtype).max})"
        )
    if maps.dtype.kind not in "fib":
        raise ValueError(f"{name} are {maps.dtype}, wanted floats")
    found = maps.astype(np.float32)
    low = found.min(initial=0)  # NaN wins a minimum
    high = found.max(initial=0)
    if np.isnan(low) or high == np.inf:
        raise ValueError(f"{name} hold NaN or infinity; make them again, or mask what is not real")
    if low < 0:
        raise ValueError(
            f"{name} go down to {low:.3g}, wanted numbers >= 0; of logits take a softmax or "
            f"a sigmoid, of raw maps np.maximum({name}, 0)"
        )
    return found


def shares(values: object, name: str) -> np.ndarray:
    """Score maps (h,w,k) float32 in [0, 1]; as ``scores``."""
    maps = scores(values, name)
    highest = maps.max(initial=0)
    if highest > 1 + SLACK:
        raise ValueError(f"{name} go up to {highest:.3g}, wanted [0, 1]; divide by the maximum")
    return maps


def score_maps(maps: ScoreMaps, name: str) -> ScoreMaps:
    """The same maps, when they hold what score maps can hold. ValueError for others."""
    fault = records.fault(maps, int(maps.classes.max(initial=-1)) + 1)
    if fault is not None:
        raise ValueError(f"{name}: {fault}")
    return maps


def number(value: Any, name: str, least: float | int, *, whole: bool = False) -> None:
    """Raise ValueError unless the value is a finite number from ``least`` on."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    known = isinstance(value, kinds) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or value < least:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} is {value!r}; give {kind} from {least:g} on")

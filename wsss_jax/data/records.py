"""What a record of a store can hold at all, and whether a PNG is as it was written.

One check for every stage: what is refused here is refused wherever a record is read, and never
written. Not here: whether a record fits a photograph, which only a stage that reads it can tell.
"""

import zlib
from pathlib import Path

import numpy as np

from wsss_jax.data.files import MAX_PIXELS
from wsss_jax.errors import BadFileError
from wsss_jax.ops.resize import fits
from wsss_jax.types import ScoreMaps, Size

_SLACK = 1e-3
"""Above 1: scores are kept in half precision, whose steps at 1 are 0.001."""
_PNG = b"\x89PNG\r\n\x1a\n"


def fault(maps: ScoreMaps, classes: int) -> str | None:
    """What is implausible about score maps of so many classes, None where nothing is.

    Finite scores and peaks; every class once, and known; activations and probabilities in [0, 1];
    a grid with cells, whose sides are not those of the photograph exchanged.
    """
    scores, numbers = maps.scores, maps.classes
    if numbers.size and not (0 <= numbers.min() and numbers.max() < classes):
        wrong = numbers[(numbers < 0) | (numbers >= classes)][0]
        return f"class {wrong} of {classes} classes"
    if len(set(numbers.tolist())) != len(numbers):
        return f"a class twice, in {numbers.tolist()}"
    if not (np.isfinite(scores).all() and np.isfinite(maps.peak).all()):
        return "scores or peaks hold NaN or infinity"
    if maps.kind != "logit" and scores.size:
        low, high = scores.min(), scores.max()
        if low < 0 or high > 1 + _SLACK:
            return f"scores from {low:.3g} to {high:.3g}, wanted those of {maps.kind} in [0, 1]"
        if maps.peak.min(initial=0) < 0:
            return f"a peak of {maps.peak.min():.3g}, wanted none below 0 of {maps.kind}"
    return _size_fault(scores.shape[:2], maps.size)


def _size_fault(grid: tuple[int, ...], size: Size) -> str | None:
    height, width = size
    if min(height, width) < 1 or height * width > MAX_PIXELS or min(grid) < 1:
        return f"{grid[0]}×{grid[1]} cells of a photograph of {height}×{width} pixels"
    if not fits(grid, size) and fits((grid[1], grid[0]), size):
        return (
            f"a grid of {grid[0]}×{grid[1]} cells for a photograph of {height}×{width} pixels; "
            "height and width are exchanged"
        )
    return None


def check_png(content: bytes, name: Path | str) -> None:
    """Raise BadFileError unless every byte is covered by the file's own checksums, and they hold.

    Decoders pass over the checksums of chunks that they do not need, and over what follows the
    last chunk.
    """
    at = len(_PNG)
    whole = content[:at] == _PNG
    kind = b""
    while whole and kind != b"IEND":
        length = int.from_bytes(content[at : at + 4], "big")
        end = at + 12 + length
        kind = content[at + 4 : at + 8]
        whole = end <= len(content) and zlib.crc32(content[at + 4 : end - 4]) == int.from_bytes(
            content[end - 4 : end], "big"
        )
        at = end
    if not whole or at != len(content):
        raise BadFileError(
            f"{name}: damaged, its checksums do not hold; delete the file and run its stage again"
        )

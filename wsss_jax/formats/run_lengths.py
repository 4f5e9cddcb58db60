"""Run lengths of masks as COCO, CVAT and Label Studio write them.

All three count pixels of equal value, and differ in all else: COCO goes down the columns of the
whole image, CVAT along the rows of the box around the region, and Label Studio packs the four
channels of every pixel into bits. COCO's are read by ``datasets.coco``; not here: what a region is.
"""

import numpy as np
from jaxtyping import Bool, Int, UInt8

from wsss_jax.errors import UserError
from wsss_jax.types import Size

_LENGTH_BITS = (3, 4, 8, 16)
"""How many bits the length of one of Label Studio's runs may take; which choice comes before it."""
_CHANNELS = 4
_OPAQUE = 255


def runs(values: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " r"]:
    """Lengths of the runs of equal values, of False first; the first is 0 where a True begins."""
    if not len(values):
        return np.zeros(0, np.int64)
    borders = np.flatnonzero(values[1:] != values[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], borders, [len(values)]]))
    return np.concatenate([[0], lengths]) if values[0] else lengths


def coco_counts(region: Bool[np.ndarray, "h w"], *, at: tuple[int, int], size: Size) -> str:
    """The compressed counts of a region in an image of ``size``, as ``pycocotools`` writes them.

    at: (row, column) of the region's upper left pixel. Five bits a character from '0' on, the sixth
    tells that more follow; from the fourth number on each is the difference to the one two before.
    Source: rleToString in maskApi.c of the COCO API.
    """
    counts = _column_runs(region, at, size).tolist()
    text = []
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text.append(chr(48 + (bits if last else bits | 32)))
            if last:
                break
    return "".join(text)


def _column_runs(
    region: Bool[np.ndarray, "h w"], at: tuple[int, int], size: Size
) -> Int[np.ndarray, " r"]:
    """Run lengths down the columns of the whole image, from the region's own pixels alone."""
    height, width = size
    columns = np.pad(region.T, ((0, 0), (1, 1)))
    column, start = np.nonzero(~columns[:, :-1] & columns[:, 1:])
    _, end = np.nonzero(columns[:, :-1] & ~columns[:, 1:])
    first = (column + at[1]) * height + at[0]
    starts, ends = first + start, first + end
    joined = starts[1:] == ends[:-1]  # a run that goes on at the top of the next column
    starts = starts[np.concatenate([[True], ~joined])[: len(starts)]]
    ends = ends[np.concatenate([~joined, [True]])[: len(ends)]]
    borders = np.stack([starts, ends], axis=1).ravel()
    rest = [height * width] if not len(ends) or ends[-1] < height * width else []
    return np.diff(np.concatenate([[0], borders, rest]).astype(np.int64))


def brush_bytes(region: Bool[np.ndarray, "H W"]) -> list[int]:
    """A region as the list of bytes that Label Studio's brush reads: 255 inside, 0 outside.

    The values are RGBA of all pixels, row by row. A head tells their number (32 bits), the bits
    of a value and of the four lengths; then comes one bit for "run", two for the choice of length,
    the length less 1, and the value. Source: thi.ng/rle-pack, which Label Studio uses.
    """
    lengths = _CHANNELS * runs(region.ravel())
    head = f"{_CHANNELS * region.size:032b}{8 - 1:05b}"
    head += "".join(f"{bits - 1:04b}" for bits in _LENGTH_BITS)
    parts = [head]
    for place, length in enumerate(lengths.tolist()):
        value = f"{_OPAQUE * (place % 2):08b}"
        while length:
            part = min(length, 2 ** _LENGTH_BITS[-1])
            parts.append(f"1{_length(part)}{value}")
            length -= part
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    packed: UInt8[np.ndarray, " n"] = np.packbits(np.frombuffer(bits.encode(), np.uint8) - ord("0"))
    return packed.tolist()


def brush_region(content: list[int], size: Size) -> Bool[np.ndarray, "H W"]:
    """The pixels whose alpha is at least a half in brush bytes of Label Studio.

    content: numbers from 0 to 255. The values are bounded by ``size`` before anything is allocated.
    Raises UserError where the bytes are damaged or are of an image of another size.
    """
    bits = _Bits("".join(f"{byte:08b}" for byte in content))
    total, width = bits.number(32), bits.number(5) + 1
    lengths = [bits.number(4) + 1 for _ in range(4)]
    if total != _CHANNELS * size[0] * size[1] or width != 8:
        raise UserError(f"{total} values of {width} bits, wanted 4 of each of {size[1]}×{size[0]}")
    values = np.zeros(total, np.uint8)
    place = 0
    while place < total:
        run = bits.number(1)
        stop = place + 1 + bits.number(lengths[bits.number(2)])
        if stop > total:
            raise UserError("a run that goes beyond the image")
        values[place:stop] = bits.number(8) if run else bits.numbers(stop - place)
        place = stop
    return values.reshape(*size, _CHANNELS)[..., -1] > _OPAQUE // 2


class _Bits:
    """Zeros and ones as text, read from the left."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def number(self, count: int) -> int:
        """The next number of so many bits."""
        start, self.place = self.place, self.place + count
        if self.place > len(self.text):
            raise UserError("brush bytes that are cut off")
        return int(self.text[start : self.place], 2)

    def numbers(self, count: int) -> list[int]:
        """So many numbers of 8 bits."""
        return [self.number(8) for _ in range(count)]


def _length(length: int) -> str:
    choice = next(n for n, bits in enumerate(_LENGTH_BITS) if length <= 2**bits)
    return f"{choice:02b}{length - 1:0{_LENGTH_BITS[choice]}b}"

"""Which corrected masks count: those by which a person states something.

A file of its own, or a task annotated in Label Studio, is such a statement. One file of CVAT or
COCO has all photographs, and those that nobody looked at come back as they were exported. Of these
count what was edited or tagged "approved" in CVAT, what approved.txt names, and what differs from
every mask that the run has made.

No export of CVAT tells which tasks or jobs are done. "CVAT for images 1.1" tells of each shape
where it is from: ``file`` (``auto`` in older versions) while it is as uploaded, ``manual`` or
``semi-auto`` once a person drew or edited it. COCO files tell nothing of the kind.
"""

from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from wsss_jax.data.stores import Store, open_store
from wsss_jax.data.texts import read_text
from wsss_jax.errors import BadFileError
from wsss_jax.types import IGNORE

LIST = "approved.txt"
"""Names of photographs whose masks are right, one a line, in the folder of corrected masks."""

OUTLINE = 2
"""Pixels by which programs move an outline when they draw a mask as polygons."""

PSEUDO_MASKS, CORRECTED = "pseudo_masks", "corrected_"
"""Store of the masks that a run makes, and how its folders of results with corrected masks begin.
"""

Reader = Callable[[], np.ndarray]
"""Reads a mask (H,W) of uint8; BadFileError where its file is damaged."""

_Difference = Literal["none", "outline", "more", "known"]
_WHY = {"outline": "changed", "more": "changed", "known": "corrected before"}


class Found(NamedTuple):
    """A mask before it is checked.

    name: what messages call it. id: of its photograph, None where it is of none, or of several.
    why: what states that it is right; empty where only a comparison can tell.
    """

    name: str
    path: Path
    id: str | None
    read: Reader
    why: str = ""


class Choice(NamedTuple):
    """Masks that count, each with the reason, and those that do not."""

    taken: tuple[Found, ...]
    passed: tuple[Found, ...]


def masks_of_run(folder: Path) -> tuple[Store, ...]:
    """The masks that a run has made so far: from labels alone, and with corrected masks."""
    folders = (folder / PSEUDO_MASKS, *sorted(folder.glob(f"{CORRECTED}*/{PSEUDO_MASKS}")))
    return tuple(open_store(one) for one in folders if (one / "index.json").is_file())


def choose(
    given: Sequence[Found], made: Sequence[Store], approved: Container[str | None]
) -> Choice:
    """The masks that count. made: those of the run. approved: ids that approved.txt names.

    A program that gives half of the masks back pixel by pixel redraws none: then every
    difference counts. Else a mask counts where more than its outlines differ, which OUTLINE pixels
    bound. What cannot be read or has no photograph counts as well, so that the check names it.
    """
    stated = [_stated(one, approved) for one in given]
    compared: list[tuple[Found, _Difference | None]] = [
        (one, None if one.why else _difference(one, made)) for one in stated
    ]
    exact = _is_exact(compared)
    taken, passed = [], []
    for one, difference in compared:
        if difference == "none" or (difference == "outline" and not exact):
            passed.append(one)
        else:
            told = _WHY[difference or "more"] if made else "not compared, as no run is there"
            taken.append(one._replace(why=one.why or told))
    return Choice(tuple(taken), tuple(passed))


def read_list(folder: Path) -> list[str]:
    """The names in approved.txt, none where there is no such file. Raises BadFileError."""
    path = folder / LIST
    lines = read_text(path)[0].splitlines() if path.is_file() else []
    return [line.strip() for line in lines if line.strip()]


def beyond_outlines(now: UInt8[np.ndarray, "H W"], was: UInt8[np.ndarray, "H W"]) -> bool:
    """Whether a pixel differs further than OUTLINE pixels from every outline of ``was``."""
    changed = now != was
    if not changed.any():
        return False
    from scipy import ndimage  # a quarter of a second, which most commands do without

    side = 2 * OUTLINE + 1
    flat = ndimage.maximum_filter(was, side) == ndimage.minimum_filter(was, side)
    return bool((changed & flat).any())


def _stated(one: Found, approved: Container[str | None]) -> Found:
    if one.why or one.id is None or one.id not in approved:
        return one
    return one._replace(why=f"named in {LIST}")


def _difference(one: Found, made: Sequence[Store]) -> _Difference:
    """How a mask differs from that which is most like it, of those that the run has made."""
    found: _Difference = "more"
    try:
        now = one.read()
    except BadFileError:
        return found
    for store in made:
        if one.id is None or not store.has(one.id):
            continue
        stored = store.get_mask(one.id)
        was = np.where(stored == IGNORE, 0, stored)
        if now.shape != was.shape or beyond_outlines(now, was):
            continue
        if one.id in store.made_by.get("labelled", ()):
            return "known"
        same = found == "none" or np.array_equal(now, was)
        found = "none" if same else "outline"
    return found


def _is_exact(compared: Sequence[tuple[Found, _Difference | None]]) -> bool:
    """Whether as many masks came back pixel by pixel as with other outlines alone."""
    same = [one for one, difference in compared if difference == "none"]
    redrawn = sum(difference == "outline" for _, difference in compared)
    return sum(len(np.unique(one.read())) > 1 for one in same) >= max(redrawn, 1)

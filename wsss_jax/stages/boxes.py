"""The boxes that a run with a box head finds, as a table, and how many of them are right.

The table is read again as boxes of a data set (``datasets.box_tables``). Success is that of the
lecture "Localization and CNN Explanations" and of ImageNet's localisation task (Russakovsky et al.
2015, section 4.2): the share of photographs whose box has an IoU of one half or more with the true
one.
"""

import csv
import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from wsss_jax.batches.batches import Group
from wsss_jax.data.files import write_atomic
from wsss_jax.datasets.box_tables import COLUMNS, NAME
from wsss_jax.datasets.boxes import Reader
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.export.exported import photograph_names
from wsss_jax.ops.components import Box, box_iou
from wsss_jax.run.images import Tally, record_skipped
from wsss_jax.run.photographs import over_photographs
from wsss_jax.stages.parts.chances import scale_to
from wsss_jax.stages.train import trained
from wsss_jax.systems import BoxRegression, boxes
from wsss_jax.types import Size

LEAST = 0.5
"""IoU from which on a box counts as right."""

_BATCH = 8


class Found(NamedTuple):
    """What a run tells of one photograph.

    boxes: by class, of those that its labels name, in whole pixels and cut at its border. best: the
    most likely class of all. size: of the photograph.
    """

    boxes: Mapping[str, Box]
    best: str
    size: Size


class Success(NamedTuple):
    """How many boxes are right.

    single: photographs with one true box; placed: of these, how many have a box that is right for
    the class of the label; named: of these, how many have that class as the most likely one too.
    shown: classes with true boxes, over all photographs; hit: of these, how many have a box that is
    right for any of the class's true ones.
    """

    single: int
    placed: int
    named: int
    shown: int
    hit: int

    def __str__(self) -> str:
        return (
            f"{self.single} photographs with one object: {_percent(self.placed, self.single)} of "
            f"the boxes are right (IoU {LEAST} or more), {_percent(self.named, self.single)} with "
            f"the most likely class right too; {self.shown} classes shown: "
            f"{_percent(self.hit, self.shown)}"
        )


def find(run: Path, source: Source, folder: Path, *, ids: tuple[str, ...]) -> dict[str, Found]:
    """The boxes of the labelled classes of ``ids``, which ``folder``/boxes.csv tells too.

    Photographs are seen at the size that training showed. What cannot be read is left out, printed
    and listed. UserError for a run without a box head, or of other classes.
    """
    training, classes, state = trained(run)
    model = training.model
    if not isinstance(model, BoxRegression):
        raise UserError(f"{run} has no box head; give a run of the system boxes")
    if classes.names != source.classes.names:
        raise UserError(f"{run} knows other classes than {source.name}; give its own data set")
    network = boxes.structure(model, len(classes))
    ask = jax.jit(partial(boxes.answers, network, (state.averaged, state.stats)))
    found: dict[str, Found] = {}

    def write(group: Group) -> int:
        batch = group.scaled[0]
        logits, corners = (np.asarray(part) for part in ask(batch.images, batch.inside))
        for row, id in enumerate(group.ids):
            height, width = (int(n) for n in group.full[row])
            shown = np.flatnonzero(group.labels[row])
            own = {classes.names[c]: _pixels(corners[row, c], (height, width)) for c in shown}
            found[id] = Found(own, classes.names[logits[row].argmax()], (height, width))
        return len(group.ids)

    scale = scale_to(source, sum(training.augmentation.long_side) / 2)
    tally = over_photographs("boxes", source, ids, write, scales=(scale,), batch_size=_BATCH)
    tally.report("boxes")
    record_skipped(folder, tally)
    found = {id: found[id] for id in ids if id in found}
    write_atomic(folder / NAME, _table(found, source))
    return found


def judge(found: Mapping[str, Found], read: Reader) -> Success:
    """Found boxes against true ones; a photograph whose true boxes cannot be read is left out."""
    counts, skipped = np.zeros(len(Success._fields), int), {}
    for id, one in found.items():
        try:
            true = read(id)
        except BadFileError as problem:
            skipped[id] = str(problem)
            continue
        if true is None:
            continue
        hits: dict[str, bool] = {}
        for name, corners in zip(*true, strict=True):
            mine = one.boxes.get(name)
            right = mine is not None and box_iou(mine, _pixels(corners, one.size)) >= LEAST
            hits[name] = hits.get(name, False) or right
        if len(true.names) == 1:
            placed = hits[true.names[0]]
            counts[:3] += (1, placed, placed and one.best == true.names[0])
        counts[3:] += (len(hits), sum(hits.values()))
    Tally(len(found) - len(skipped), skipped).report("judge boxes")
    return Success(*counts.tolist())


def _pixels(corners: Float[np.ndarray, "4"], size: Size) -> Box:
    """Corners in shares as whole pixels of the photograph, of at least one pixel."""
    top, left, bottom, right = np.round(np.asarray(corners) * [*size, *size]).astype(int).tolist()
    top, left = min(max(top, 0), size[0] - 1), min(max(left, 0), size[1] - 1)
    return Box(top, left, min(max(bottom, top + 1), size[0]), min(max(right, left + 1), size[1]))


def _table(found: Mapping[str, Found], source: Source) -> bytes:
    names = photograph_names(source, found)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("file", "label", *COLUMNS))
    for id, one in found.items():
        for name, box in one.boxes.items():
            table.writerow((str(names[id]), name, box.left, box.top, box.right, box.bottom))
    return text.getvalue().encode()


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"

"""Learning how to combine, from image labels alone: thresholds and linear probes into a folder.

1. *Consensus*: each system's map × saliency, after a random walk (``consensus``). Otsu's threshold
   over all cells tells where background begins.
2. *System probe*: a linear probe taught by the hard labels of that takes back what a system gets
   wrong in single images. The mean of map and probe, at a threshold of its own, teaches the probe
   once more; what comes out is the system's refined map.
3. The geometric mean over the refined systems is fused. *View probes* follow, one for each frozen
   network, the first network last: each is taught by hard labels of what is fused so far (no
   threshold again) and joins the mean. Networks of different kinds so teach one another. Probes on
   other networks than the first are not given saliency again.

Everything is learned from a sample of cells that one pass over the images collects, so memory does
not grow with the data set. Source of the last step: Blum & Mitchell 1998 (co-training). What each
step is worth: benchmarks/ABLATION.md.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from wsss_jax.combiner import members, probes, record
from wsss_jax.combiner.batches import Seen, over_images
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.fuse import system_members
from wsss_jax.combiner.members import Cells
from wsss_jax.combiner.probes import Probe
from wsss_jax.combiner.record import Learned
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.files import write_atomic
from wsss_jax.errors import UserError
from wsss_jax.ops import masks
from wsss_jax.run.thresholds import BINS
from wsss_jax.types import IGNORE

CELLS, MAX_CELLS = 400, 250_000
"""Cells of an image that teach, at random, and of all images together."""

OTHER = 10
"""Times weaker a penalty of probes on other networks than the first."""

MORE = 4
"""Times as many cells of an image whose true mask is read."""


def learn(inputs: Inputs, run: Path, settings: Combining, *, ids: Sequence[str]) -> Path:
    """Learn from the images ``ids`` into the folder ``run``, which is returned.

    Reads image labels, photographs and stores, and the true masks of ``settings.labelled`` images
    where that is not 0. A finished folder of the same settings is left as it is. Raises UserError
    for a folder of other settings, for a system without a map of any image, and where fewer images
    than ``labelled`` have a mask.
    """
    if settings.labelled:
        if not inputs.features:
            raise UserError("true masks teach linear probes, which need frozen features; give some")
        inputs = replace(inputs, labelled=drawn(inputs, settings, ids))
    inputs = replace(inputs, cells=settings.cells, units=settings.units)
    with record.claim(run, inputs, settings, images=len(ids)) as claimed:
        if not claimed.finished:
            record.save(run, _learned(inputs, settings, ids))
            write_atomic(run / "finished", b"learned\n")
    return run


def _learned(inputs: Inputs, settings: Combining, ids: Sequence[str]) -> Learned:
    if not inputs.features:
        print(
            "no frozen features, so no linear probes are learned, and they gain most: make some by "
            "`wsss features` and give them with --features"
        )
    sample = _collected(inputs, settings, ids)
    found = Learned({}, {}, {})
    for row, name in enumerate(inputs.names()):
        images = [cells for cells in sample if cells.known[row]]
        found.thresholds[name] = _threshold(images, row, None, settings)
        if inputs.features and settings.system_probes:
            _learn_system(found, images, row, inputs, settings)
    if inputs.features and settings.view_probes:
        _learn_views(found, sample, inputs, settings)
    return found


def drawn(inputs: Inputs, settings: Combining, ids: Sequence[str]) -> frozenset[str]:
    """The images whose pixels count as labelled: at random among those with classes and a mask.

    Raises UserError where there are fewer than ``settings.labelled``.
    """
    usable = [id for id in inputs.shown(ids) if inputs.source.mask(id) is not None]
    if len(usable) < settings.labelled:
        raise UserError(
            f"{len(usable)} images have labels and true masks, {settings.labelled} are wanted; "
            "label more or take fewer"
        )
    order = np.random.default_rng(settings.seed).permutation(len(usable))
    return frozenset(usable[i] for i in order[: settings.labelled])


def _collected(inputs: Inputs, settings: Combining, ids: Sequence[str]) -> list[Cells]:
    """One pass over the images: what is kept of each is a sample of its cells."""
    each = min(CELLS, max(MAX_CELLS // max(len(ids), 1), 1))
    images: list[Cells] = []

    def use(seen: Seen) -> None:
        random = np.random.default_rng([settings.seed, zlib.crc32(seen.id.encode())])
        many = each * (MORE if seen.id in inputs.labelled else 1)
        count = seen.consensus.shape[1] * seen.consensus.shape[2]
        chosen = np.sort(random.choice(count, min(many, count), replace=False))
        images.append(members.cells_of(seen, inputs, chosen))

    tally = over_images("look at the maps", inputs, ids, settings.steps(), use)
    tally.report("combine")
    for row, name in enumerate(inputs.names()):
        if not any(cells.known[row] for cells in images):
            raise UserError(
                f"{inputs.systems[row].folder} has no map of any of the {len(ids)} images that "
                f"teach; learn without {name} (it can be fused all the same)"
            )
    # The order in which batches came must not decide anything.
    return sorted(images, key=lambda cells: cells.id)


def _threshold(
    images: Sequence[Cells], row: int, probe: Probe | None, settings: Combining
) -> float:
    """Where a system's background begins, by Otsu's rule; 0 where there is none.

    Of maps that a probe takes part in, square roots are parted: they spread what is low and hold
    together what is high. Of maps without one, the plain rule is nearer to the truth.
    """
    if not settings.background:
        return 0.0
    highest = np.concatenate([members.mean_map(c, row, probe).max(axis=1) for c in images])
    values = highest if probe is None else np.sqrt(highest)
    found = masks.otsu(np.histogram(values, BINS, (0.0, 1.0))[0].astype(float))
    return found if probe is None else found**2


def _learn_system(
    found: Learned, images: Sequence[Cells], row: int, inputs: Inputs, settings: Combining
) -> None:
    """The probe of one system, taught twice, and its threshold."""
    name = inputs.names()[row]
    probe: Probe | None = None
    for _ in range(2):
        maps = partial(members.mean_map, row=row, probe=probe)
        threshold = found.thresholds[name] if settings.background else -1.0
        labels = partial(_at_threshold, maps=maps, threshold=threshold)
        probe = _taught(
            images,
            labels,
            inputs,
            settings,
            salient=inputs.saliency is not None,
            penalty=settings.penalty,
        )
        found.thresholds[name] = _threshold(images, row, probe, settings)
    assert probe is not None
    found.systems[name] = probe


def _learn_views(
    found: Learned, sample: Sequence[Cells], inputs: Inputs, settings: Combining
) -> None:
    """One probe for each frozen network, each taught by all members before it."""
    names, salient = inputs.names(), inputs.saliency is not None
    so_far = {
        cells.id: [members.geometric_mean(system_members(cells, found, names))] for cells in sample
    }
    for number in [*range(1, len(inputs.features)), 0]:
        labels = {
            id: members.geometric_mean(opinions).argmax(axis=1) for id, opinions in so_far.items()
        }
        probe = _taught(
            sample,
            lambda c, known=labels: known[c.id],
            inputs,
            settings,
            network=number,
            salient=salient if number == 0 else False,
            penalty=settings.penalty if number == 0 else settings.penalty / OTHER,
        )
        found.views[inputs.features[number].folder.name] = probe
        for cells in sample:
            view = members.by_probe(cells, probe, number)
            assert view is not None  # it has learned the classes of all these images
            so_far[cells.id].append(view)


def _at_threshold(
    cells: Cells, *, maps: Callable[[Cells], Float[np.ndarray, "m k"]], threshold: float
) -> Int[np.ndarray, " m"]:
    return members.labels_at(maps(cells), threshold)


def _taught(
    images: Sequence[Cells],
    labels_of: Callable[[Cells], Int[np.ndarray, " m"]],
    inputs: Inputs,
    settings: Combining,
    *,
    network: int = 0,
    salient: bool,
    penalty: float,
) -> Probe:
    """A probe on the features of one network, taught by hard labels of the cells.

    Each image has the same weight, and labelled ones ``settings.labelled_share`` of it together;
    there a cell's true class counts in place of its label.
    """
    names = inputs.source.classes.names
    share, count = settings.labelled_share, sum(cells.truth is not None for cells in images)
    worth = share / (1 - share) * max(len(images) - count, 1) / count if count else 1.0
    rows, labels, possible, weights = [], [], [], []
    for cells in images:
        columns = np.append(0, cells.labels + 1)
        found = columns[labels_of(cells)]
        used = np.ones(len(found), bool)
        if cells.truth is not None:
            used = cells.truth != IGNORE
            found = columns[np.where(used, cells.truth, 0)]
        here = np.zeros(len(names) + 1, bool)
        here[columns] = True
        here[0] = settings.background
        rows.append(members.inputs_of(cells, network, salient=salient)[used])
        labels.append(found[used])
        possible.append(np.broadcast_to(here, (int(used.sum()), len(here))))
        weight = 1.0 if cells.truth is None else worth
        weights.append(np.full(int(used.sum()), weight / max(int(used.sum()), 1)))
    parts = (np.concatenate(part) for part in (rows, labels, possible, weights))
    return probes.fit(names, *parts, penalty=penalty, salient=salient)

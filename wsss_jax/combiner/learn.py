"""Learning how to combine, from image labels alone: a linear probe and thresholds into a folder.

1. *Consensus*: the mean over the systems of map × saliency, after a random walk (``consensus``).
2. *Smoothing* inside each image: cells of similar frozen features get similar scores (``refine``).
3. Otsu's threshold of each class tells where background begins; so cells get pseudo-labels.
4. A *linear probe* on frozen features learns from them over all images, and so takes back what the
   systems get wrong in single images. The mean of consensus and probe, smoothed, has thresholds of
   its own and gives better pseudo-labels; steps 3 and 4 are done twice.

The probe learns from the first frozen network; the last one tells which cells are similar. Images
that show no class teach background. Everything is learned from a sample of cells that one pass over
the images collects: 400 of each, and 100 where there are many images. Of more than 10,000 images
a sample teaches, so that memory and time have a bound. What each step is worth:
benchmarks/ABLATION.md.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from wsss_jax.combiner import probes, record, refine
from wsss_jax.combiner.batches import Seen, over_images
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.probes import Probe
from wsss_jax.combiner.record import Learned
from wsss_jax.combiner.refine import Cells
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.files import write_atomic
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops import masks
from wsss_jax.run.thresholds import BINS
from wsss_jax.types import IGNORE

CELLS, MIN_CELLS = 400, 100
"""Cells of an image that are kept, at random: most, and least where there are many images."""

MAX_IMAGES = 10_000
"""Images that teach, at most; their cells take about 1 GB for each 256 channels of features."""

MAX_CELLS = 250_000
"""Cells of all images together that a probe learns from."""

BORROWED = 30
"""The threshold of a class is read off its own images and so many average ones: few images alone
would place it badly.
"""

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
            raise UserError("a linear probe learns from true masks, and needs frozen features")
        inputs = replace(inputs, labelled=drawn(inputs, settings, ids))
    inputs = record.prepared(inputs, settings)
    with record.claim(run, inputs, settings, images=len(ids)) as claimed:
        if not claimed.finished:
            record.save(run, _learned(inputs, settings, ids), inputs.source.classes.names)
            write_atomic(run / "finished", b"learned\n")
    return run


def _learned(inputs: Inputs, settings: Combining, ids: Sequence[str]) -> Learned:
    if not inputs.features:
        print(
            "no frozen features, so no linear probe is learned, and it gains most: make some by "
            "`wsss features` and give them with --features"
        )
    sample = _collected(inputs, settings, ids)
    classes = len(inputs.source.classes)
    found = Learned(None, _thresholds(sample, None, settings, classes))
    for _ in range(settings.rounds if inputs.features else 0):
        probe = _learn_probe(sample, found, inputs, settings)
        found = Learned(probe, _thresholds(sample, probe, settings, classes))
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
    each = min(CELLS, max(MAX_CELLS // max(len(ids), 1), MIN_CELLS))
    images: list[Cells] = []

    def use(seen: Seen) -> None:
        random = np.random.default_rng([settings.seed, zlib.crc32(seen.id.encode())])
        many = each * (MORE if seen.id in inputs.labelled else 1)
        count = seen.consensus.shape[1] * seen.consensus.shape[2]
        chosen = random.choice(count, min(many, count), replace=False)
        images.append(refine.cells_of(seen, inputs, chosen))

    negatives = bool(inputs.features) and settings.background and settings.rounds > 0
    shown = _taught(inputs.shown(ids, negatives=negatives), inputs, settings)
    tally = over_images("learn to combine", inputs, shown, settings.steps(), use)
    tally.report("combine")
    if shown and not images:
        id, reason = min(tally.skipped.items())
        raise BadFileError(f"none of {len(shown)} images can be learned from; {id}: {reason}")
    for row, name in enumerate(inputs.names()):
        if not any(cells.known[row] for cells in images):
            raise UserError(
                f"{inputs.systems[row].folder} has no map of any of the {len(ids)} images that "
                f"are learned from; learn without {name} (it can still be fused)"
            )
    # The order in which batches came must not decide anything.
    return sorted(images, key=lambda cells: cells.id)


def _taught(shown: Mapping[str, int], inputs: Inputs, settings: Combining) -> dict[str, int]:
    """The images that teach: all, or a random MAX_IMAGES of them.

    Those with true masks are always among them. Half of the others are drawn so that rare classes
    are not lost: an image counts while one of its classes has few.
    """
    if len(shown) <= MAX_IMAGES:
        return dict(shown)
    order = sorted(shown, key=lambda id: zlib.crc32(f"{settings.seed} {id}".encode()))
    few = MAX_IMAGES // (2 * len(inputs.source.classes))
    counts = np.zeros(len(inputs.source.classes), int)
    rare = []
    for id in order:
        labels = inputs.source.labels(id)
        if (counts[labels] < few).any():
            counts += labels
            rare.append(id)
    first = [id for id in order if id in inputs.labelled]
    chosen = list(dict.fromkeys([*first, *rare, *order]))[:MAX_IMAGES]
    print(f"combine: learns from {len(chosen)} of {len(shown)} images, rare classes first")
    return {id: shown[id] for id in chosen}


def _thresholds(
    sample: Sequence[Cells], probe: Probe | None, settings: Combining, classes: int
) -> Float[np.ndarray, " c"]:
    """Where background begins for each class, by Otsu's rule; 0 where there is none.

    The shared threshold parts the highest scores of all cells. Each class has a threshold of its
    own as well, from the cells where its map is the highest and those of BORROWED average images;
    the higher of the two counts. Some classes have maps that are high everywhere: at the shared
    threshold they spread over what surrounds them.

    Of maps that a probe takes part in, square roots are parted: they spread what is low and hold
    together what is high. Of maps without one, the plain rule is nearer to the truth. Cells that
    boxes leave to no class do not count: their zeros would draw the threshold down.
    """
    if not settings.background:
        return np.zeros(classes)
    counts, images = np.zeros((classes, BINS)), 0
    for cells in sample:
        if cells.names:
            maps = refine.refined(cells, probe, settings.smoothing)[0][refine.undecided(cells)]
            highest = maps.max(axis=1)
            values = highest if probe is None else np.sqrt(np.maximum(highest, 0))
            winner = maps.argmax(axis=1)
            for column, label in enumerate(cells.labels):
                counts[label] += np.histogram(values[winner == column], BINS, (0.0, 1.0))[0]
            images += 1
    shared = counts.sum(axis=0)
    if (shared > 0).sum() < 2:
        raise UserError(
            "all maps have one and the same score everywhere, so that nothing can be learned of "
            "them; `wsss report` shows them"
        )
    found = np.full(classes, masks.otsu(shared))
    if settings.thresholds == "class":
        borrowed = BORROWED / images * shared
        own = np.array([masks.otsu(one + borrowed) for one in counts])
        found = np.maximum(found, own)
    return found if probe is None else found**2


def _learn_probe(
    sample: Sequence[Cells], found: Learned, inputs: Inputs, settings: Combining
) -> Probe:
    """The probe that learns from the pseudo-labels of what is found so far.

    Each image has the same weight, and labelled ones ``settings.labelled_share`` of it together;
    there a cell's true class counts in place of its label. In an image that shows no class, cells
    are background and no class of all.
    """
    names = inputs.source.classes.names
    share, count = settings.labelled_share, sum(cells.truth is not None for cells in sample)
    worth = share / (1 - share) * max(len(sample) - count, 1) / count if count else 1.0
    thresholds = found.thresholds if settings.background else found.thresholds - 1
    most = max(MAX_CELLS // max(len(sample), 1), 1)
    rows, labels, possible, weights = [], [], [], []
    for cells in sample:
        columns = np.append(0, cells.labels + 1)
        maps = refine.refined(cells, found.probe, settings.smoothing)[0]
        own = thresholds[cells.labels]
        maps = refine.decided(cells, maps, share=settings.boxes, thresholds=own)
        label = columns[refine.labels_at(maps, own)]
        used = np.arange(len(label)) < most
        if cells.truth is not None:
            unknown = (IGNORE,) if settings.background else (IGNORE, 0)
            used = ~np.isin(cells.truth, unknown)
            label = columns[np.where(used, cells.truth, 0)]
        here = np.full(len(names) + 1, not cells.names)
        here[columns] = True
        here[0] = settings.background
        rows.append(refine.probe_inputs(cells)[used])
        labels.append(label[used])
        possible.append(np.broadcast_to(here, (int(used.sum()), len(here))))
        weight = 1.0 if cells.truth is None else worth
        weights.append(np.full(int(used.sum()), weight / max(int(used.sum()), 1)))
    parts = (np.concatenate(part) for part in (rows, labels, possible, weights))
    return probes.fit(names, *parts, penalty=settings.penalty)

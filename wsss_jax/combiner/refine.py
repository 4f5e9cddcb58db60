"""What is computed of the cells of one image: consensus, smoothing, and the mean with a probe.

Learning looks at a sample of cells and fusing at all of them; both come through here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from wsss_jax.combiner import probes
from wsss_jax.combiner.batches import Seen
from wsss_jax.combiner.boxes import Boxed, lifted
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.probes import Probe

KEYS = 1024
"""Cells of an image that lend their scores in smoothing, evenly spread; at most all."""


SHARPNESS = 8
"""Power that makes maps probabilities. It moves no label of a cell; a dense CRF that follows needs
scores that are as sure as the maps are right."""


class Cells(NamedTuple):
    """Some or all cells of one image.

    names: of the classes that it shows, k of them. labels: their numbers. consensus: (s,m,k) closed
    form of each system. known: (s,), whether a system has a map of the image. image: (m,3).
    features: (m,f) of the frozen networks but the last, for the probe. similar: (m,g) of the last,
    for smoothing, of length 1; f and g are 0 without. saliency: (m,), 1/2 where the image has none,
    None where there is no store of it. truth: (m,) 0 background, row + 1, IGNORE; or None.
    boxed: the boxes of the image, where it has any.
    """

    id: str
    names: tuple[str, ...]
    labels: Int[np.ndarray, " k"]
    consensus: Float[np.ndarray, "s m k"]
    known: Bool[np.ndarray, " s"]
    image: Float[np.ndarray, "m 3"]
    features: Float[np.ndarray, "m f"]
    similar: Float[np.ndarray, "m g"]
    saliency: Float[np.ndarray, " m"] | None
    truth: Int[np.ndarray, " m"] | None
    boxed: Boxed | None = None


def cells_of(seen: Seen, inputs: Inputs, chosen: Int[np.ndarray, " m"] | None = None) -> Cells:
    """The cells of an image, or those of flat index ``chosen``."""
    example = seen.example
    rows = slice(None) if chosen is None else chosen
    saliency = None
    if inputs.saliency is not None:
        whole = np.full(example.image.shape[:2], 0.5, np.float32)
        saliency = (whole if example.saliency is None else example.saliency).ravel()[rows]
    count = example.image.shape[0] * example.image.shape[1]
    frozen = example.features or (np.zeros((*example.image.shape[:2], 0), np.float32),)
    systems, k = len(seen.consensus), len(example.classes)
    consensus, boxed = seen.consensus.reshape(systems, count, k), example.boxed
    if boxed is not None:
        consensus = consensus * boxed.allowed(k)
        consensus /= np.maximum(consensus.max(axis=1, keepdims=True), 1e-6)
        boxed = boxed._replace(inside=boxed.inside[:, rows])
    return Cells(
        id=seen.id,
        names=tuple(inputs.source.classes.names[label] for label in example.classes),
        labels=example.classes,
        consensus=consensus[:, rows],
        known=np.asarray(example.available.any(axis=1)),
        image=example.image.reshape(-1, 3)[rows],
        features=np.concatenate(
            [one.reshape(count, -1)[rows] for one in frozen[:-1] or frozen], axis=1
        ),
        similar=of_length_one(frozen[-1].reshape(count, -1)[rows]),
        saliency=saliency,
        truth=None if example.truth is None else example.truth.ravel()[rows],
        boxed=boxed,
    )


def refined(
    cells: Cells, probe: Probe | None, smoothing: float
) -> tuple[Float[np.ndarray, "m k"], Float[np.ndarray, "m n"] | None]:
    """The refined maps of an image in [0, 1], and the probe's probabilities where there is one.

    The mean of the systems' consensus is smoothed; with a probe, its mean with the probe's
    probabilities is smoothed once more. Outside of its boxes, a class stays 0.
    """
    smooth = Smoothing(cells.similar, smoothing)
    boxed = cells.boxed
    allowed = np.float32(1) if boxed is None else boxed.allowed(len(cells.names))
    maps = smooth(cells.consensus.mean(axis=0)) * allowed
    if probe is None:
        return maps, None
    found = probe.probabilities(probe_inputs(cells), cells.names)
    return smooth((maps + found[:, 1:]) / 2 * allowed) * allowed, found


def undecided(cells: Cells) -> Bool[np.ndarray, " m"]:
    """Cells that may show some class: all of them, unless every class of the image has boxes."""
    if cells.boxed is None:
        return np.ones(len(cells.image), bool)
    return np.asarray(cells.boxed.allowed(len(cells.names)).any(axis=1))


def decided(
    cells: Cells,
    maps: Float[np.ndarray, "m k"],
    *,
    share: float,
    thresholds: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "m k"]:
    """The refined maps, of which a share of each box is above the threshold of its class."""
    if cells.boxed is None:
        return maps
    return lifted(maps, cells.boxed, share=share, thresholds=thresholds)


def probe_inputs(cells: Cells) -> Float[np.ndarray, "m d"]:
    """What the probe is given of each cell."""
    return probes.cells_of(cells.features, cells.image, cells.saliency)


class Smoothing:
    """Each cell takes the mean of the image's cells, those of similar features weighing most.

    The weight of a cell is the softmax of the features' cosine over ``temperature``; its place in
    the image does not count. 0 or no features: maps stay as they are. Source: non-local means
    (Buades, Coll & Morel 2005), in the space of frozen features instead of patches of colours.
    """

    def __init__(self, similar: Float[np.ndarray, "m g"], temperature: float) -> None:
        count = len(similar)
        self.weights: Float[np.ndarray, "m j"] | None = None
        if temperature and similar.shape[1]:
            keys = min(KEYS, count)
            self.keys = ((np.arange(keys) + 0.5) * count / keys).astype(int)
            raised = np.exp((similar @ similar[self.keys].T - 1) / np.float32(temperature))
            self.weights = raised / raised.sum(axis=1, keepdims=True)

    def __call__(self, maps: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "m k"]:
        """The smoothed maps."""
        return maps if self.weights is None else self.weights @ maps[self.keys]


def with_background(
    maps: Float[np.ndarray, "m k"], thresholds: Float[np.ndarray, " k"], power: int = SHARPNESS
) -> Float[np.ndarray, "m n"]:
    """Maps >= 0 as probabilities, column 0 of background: it scores the winner's threshold.

    So the class with the highest map is more probable than background just where its map exceeds
    its threshold; thresholds of 0 leave no background. Scores are raised to ``power`` before they
    are divided by their sum.
    """
    ground = thresholds[maps.argmax(axis=1)][:, None].astype(np.float32)
    whole = np.concatenate([ground, np.maximum(maps, 0)], axis=1)
    whole = whole / np.maximum(whole.max(axis=1, keepdims=True), 1e-6)
    raised = whole**power
    return raised / np.maximum(raised.sum(axis=1, keepdims=True), 1e-6)


def labels_at(
    maps: Float[np.ndarray, "m k"], thresholds: Float[np.ndarray, " k"]
) -> Int[np.ndarray, " m"]:
    """Row + 1 of the highest map where it exceeds its threshold, else 0; 0 without a map."""
    if not maps.shape[1]:
        return np.zeros(len(maps), int)
    winner = maps.argmax(axis=1)
    return np.where(maps.max(axis=1) > thresholds[winner], winner + 1, 0)


def opinions(
    cells: Cells, found: Float[np.ndarray, "m n"] | None, thresholds: Float[np.ndarray, " k"]
) -> Sequence[Float[np.ndarray, "m n"]]:
    """Probabilities of background and classes by each system with a map, and then by the probe."""
    systems = [with_background(one, thresholds, 1) for one in cells.consensus[cells.known]]
    return systems if found is None else [*systems, found]


def of_length_one(rows: Float[np.ndarray, "m g"]) -> Float[np.ndarray, "m g"]:
    """Each row divided by its length, as ``Smoothing`` wants features."""
    length = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return (rows / np.maximum(length, 1e-6)).astype(np.float32)

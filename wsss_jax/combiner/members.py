"""The opinions that are fused: probabilities of the cells of one image, and their geometric mean.

A member is a probability of background and of each class that the image shows, for every cell.
Learning looks at a sample of cells and fusing at all of them; both come through here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from wsss_jax.combiner import probes
from wsss_jax.combiner.batches import Seen
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.probes import Probe

FLOOR = 1e-4
"""Of a probability, before its logarithm: one member alone cannot rule a class out."""


class Cells(NamedTuple):
    """Some or all cells of one image.

    names: of the classes that it shows, k of them. labels: their numbers. consensus: (s,m,k) closed
    form of each system. known: (s,), whether a system has a map of the image. image: (m,3).
    features: (m,f) of each network. saliency: (m,), 1/2 where the image has none, None where there
    is no store of it. truth: (m,) 0 background, row + 1, IGNORE; or None.
    """

    id: str
    names: tuple[str, ...]
    labels: Int[np.ndarray, " k"]
    consensus: Float[np.ndarray, "s m k"]
    known: Bool[np.ndarray, " s"]
    image: Float[np.ndarray, "m 3"]
    features: tuple[Float[np.ndarray, "m _"], ...]
    saliency: Float[np.ndarray, " m"] | None
    truth: Int[np.ndarray, " m"] | None


def cells_of(seen: Seen, inputs: Inputs, chosen: Int[np.ndarray, " m"] | None = None) -> Cells:
    """The cells of an image, or those of flat index ``chosen``."""
    example = seen.example
    rows = slice(None) if chosen is None else chosen
    saliency = None
    if inputs.saliency is not None:
        whole = np.full(example.image.shape[:2], 0.5, np.float32)
        saliency = (whole if example.saliency is None else example.saliency).ravel()[rows]
    return Cells(
        id=seen.id,
        names=tuple(inputs.source.classes.names[label] for label in example.classes),
        labels=example.classes,
        consensus=seen.consensus.reshape(len(seen.consensus), -1, len(example.classes))[:, rows],
        known=np.asarray(example.available.any(axis=1)),
        image=example.image.reshape(-1, 3)[rows],
        features=tuple(one.reshape(-1, one.shape[-1])[rows] for one in example.features),
        saliency=saliency,
        truth=None if example.truth is None else example.truth.ravel()[rows],
    )


def inputs_of(cells: Cells, network: int, *, salient: bool) -> Float[np.ndarray, "m d"]:
    """What a probe on the features of one network is given of each cell."""
    saliency = cells.saliency if salient else None
    return probes.cells_of(cells.features[network], cells.image, saliency)


def mean_map(
    cells: Cells, row: int, probe: Probe | None, network: int = 0
) -> Float[np.ndarray, "m k"]:
    """The mean of a system's consensus and its probe's probabilities; the consensus without one."""
    maps = cells.consensus[row]
    found = by_probe(cells, probe, network)
    return maps if found is None else (maps + found[:, 1:]) / 2


def beside_background(maps: Float[np.ndarray, "m k"], threshold: float) -> Float[np.ndarray, "m n"]:
    """Maps >= 0 as probabilities, beside a background that scores ``threshold`` everywhere.

    A class is more probable than background just where its map exceeds the threshold; 0 leaves no
    background.
    """
    ground = np.full((len(maps), 1), threshold, np.float32)
    whole = np.concatenate([ground, np.maximum(maps, 0)], axis=1)
    return whole / np.maximum(whole.sum(axis=1, keepdims=True), 1e-6)


def geometric_mean(members: Sequence[Float[np.ndarray, "m n"]]) -> Float[np.ndarray, "m n"]:
    """Of probabilities, with the sum 1 again. What is 0 for all members stays 0."""
    stacked = np.stack(members)
    raised = np.exp(np.log(np.maximum(stacked, FLOOR)).mean(axis=0))
    raised = np.where((stacked > 0).any(axis=0), raised, 0)
    return raised / np.maximum(raised.sum(axis=1, keepdims=True), 1e-12)


def labels_at(maps: Float[np.ndarray, "m k"], threshold: float) -> Int[np.ndarray, " m"]:
    """Row + 1 of the highest map where it exceeds the threshold, else 0."""
    return np.where(maps.max(axis=1) > threshold, maps.argmax(axis=1) + 1, 0)


def by_probe(cells: Cells, probe: Probe | None, network: int) -> Float[np.ndarray, "m n"] | None:
    """The probe's probabilities; None without one."""
    if probe is None:
        return None
    return probe.probabilities(inputs_of(cells, network, salient=probe.salient), cells.names)

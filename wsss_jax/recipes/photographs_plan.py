"""Before a run on somebody's own photographs: what is there, what will be done, how long it takes.

Nothing is learned here. The data set is read and checked, weights are found, sizes are chosen from
the number of photographs, and one look of each network is measured for the estimate of time.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from wsss_jax.data.photographs import working_size
from wsss_jax.datasets import folders
from wsss_jax.datasets import table as datasets
from wsss_jax.datasets.check import Findings, survey
from wsss_jax.datasets.table import ALL, Source, open_dataset
from wsss_jax.datasets.views import View
from wsss_jax.errors import UserError
from wsss_jax.models import build, recognise
from wsss_jax.recipes.photographs_networks import (
    Network,
    features_of,
    found_networks,
    systems_of,
)
from wsss_jax.run import left_out
from wsss_jax.run.progress import meter
from wsss_jax.stages import check as checking
from wsss_jax.weights import sources
from wsss_jax.weights.known_weights import SMOOTHING, WEIGHTS

STOPPING = frozenset({"data set", "bad list", "duplicate id", "empty list", "masks and labels"})
"""Kinds of problems with which no number would mean anything."""

UNUSABLE = frozenset({"bad image", "missing image", "missing labels", "bad labels", "unsafe id"})
"""Kinds of problems that cost the run one photograph."""

UNJUDGED = frozenset({"bad mask", "mask size", "mask values", "mask and labels"})
"""Kinds of problems that cost the true mask of one photograph, and not the photograph."""

_START, _EACH = 60.0, 0.4
"""Seconds that compiling takes for each network, and that a photograph takes outside of networks:
reading, probes, masks, the page. Two CPU cores."""

_CRF = 1.5e-6
"""Seconds that the dense CRF takes for a pixel, on one core."""


@dataclass(frozen=True)
class Sizes:
    """How much is done, chosen from the number of photographs.

    Attributes:
        side: long side in pixels at which convolutional networks look at photographs.
        crop: of training.
        epochs: of each system.
        batch: photographs of a step.
        scales: of ``side``, at which class maps are made.
        flip: whether the mirror image is asked too.
        cells: of the combiner's grid.
        tokens: long side in pixels at which a transformer looks at photographs.
    """

    side: int
    crop: int
    epochs: int
    batch: int
    scales: tuple[float, ...]
    flip: bool
    cells: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What was found.

    root: of the data set. source: every usable photograph. teaching: those that teach. splits:
    names of the data set's own lists, () where it has none. imageless: classes that no photograph
    shows. unjudged: photographs whose true mask is damaged. scale: of ``Sizes.side`` in the
    photographs' own size.
    """

    root: Path
    source: Source
    teaching: Source
    splits: tuple[str, ...]
    layout: str
    networks: tuple[Network, ...]
    sizes: Sizes
    scale: float
    imageless: tuple[str, ...]
    unjudged: frozenset[str]
    saliency: Path | None
    masks: int

    def opened(self, ids: Sequence[str]) -> Source:
        """The data set with these photographs alone."""
        source = open_dataset(self.root, split=ALL, layout=self.layout, ids=tuple(ids))
        return _judgeable(source, self.unjudged)


def look(root: Path, layout: str, weights: Sequence[str], *, quick: bool) -> Plan:
    """Read and check the data set, find weights, and choose sizes; prints what was found.

    Raises UserError for problems with which no number would mean anything, where no photograph
    shows a class, and MissingFileError where no weights are at hand.
    """
    networks = found_networks(weights)
    with meter("check", 1) as bar:
        findings = survey(root, layout, progress=bar.reach)
    for line in checking.lines(findings):
        print(line)
    _refuse(root, findings)
    lost = {one.where for one in findings.problems if one.kind in UNUSABLE}
    unjudged = frozenset(one.where for one in findings.problems if one.kind in UNJUDGED)
    layout = findings.layout
    splits, taught = _lists(root, layout)
    everything = open_dataset(root, split=ALL, layout=layout)
    lost &= set(everything.ids)
    if lost:
        left_out.note("check", len(lost), len(everything.ids))
    ids = tuple(id for id in everything.ids if id not in lost)
    teaches = set(open_dataset(root, split=taught, layout=layout).ids)
    source = _judgeable(open_dataset(root, split=ALL, layout=layout, ids=ids), unjudged)
    teaching = open_dataset(
        root, split=ALL, layout=layout, ids=tuple(id for id in ids if id in teaches)
    )
    shown = np.sum([teaching.labels(id) for id in teaching.ids], axis=0, dtype=int)
    if not np.any(shown):
        raise UserError(f"{root}: no photograph shows any class, so there is nothing to find")
    names = source.classes.names
    sides = [max(working_size(source.size(id))) for id in source.ids]
    sizes = sizes_for(len(teaching.ids), quick=quick)
    return Plan(
        root=root,
        source=source,
        teaching=teaching,
        splits=splits,
        layout=layout,
        networks=networks,
        sizes=sizes,
        scale=min(sizes.side / float(np.median(sides)), 2.0),
        imageless=tuple(name for name, count in zip(names, shown, strict=True) if not count),
        unjudged=unjudged,
        saliency=root / "saliency" if (root / "saliency").is_dir() else None,
        masks=findings.masks,
    )


def features_size(network: Network, sizes: Sizes) -> int:
    """Long side in pixels at which a network looks for its features."""
    return sizes.side if network.convolutional else sizes.tokens


def sizes_for(photographs: int, *, quick: bool) -> Sizes:
    """Sizes for so many photographs that teach: fewer are looked at more often."""
    batch = max(1, min(8, photographs))
    if quick:
        epochs = _between(2, round(320 / photographs), 40)
        return Sizes(320, 192, epochs, batch, (1.0,), False, 48, 224)
    epochs = _between(4, round(6000 / photographs), 40)
    return Sizes(448, 256, epochs, batch, (0.75, 1.25), True, 64, 448)


def seconds(plan: Plan, *, quick: bool) -> float:
    """About how long the run will take, from one look of each network, measured here."""
    sizes, count = plan.sizes, len(plan.source.ids)
    pixels = 0.75 * (sizes.side / plan.scale) ** 2
    # A step of training costs about three looks: forwards once and backwards twice.
    trained = 3 * len(plan.teaching.ids) * sizes.crop**2
    area = 0.75 * sizes.side**2 * count
    looks = sum(scale**2 for scale in sizes.scales) * (1 + sizes.flip)
    systems, seen = systems_of(plan.networks), features_of(plan.networks)
    looking = {*seen, *(system.network for system in systems)}
    pixel = {network.name: seconds_per_pixel(network, sizes) for network in looking}
    total = _EACH * count + _START * len(pixel)
    for network in seen:
        total += 0.75 * features_size(network, sizes) ** 2 * count * pixel[network.name]
    for system in systems:
        total += pixel[system.network.name] * (sizes.epochs * trained + looks * area)
    return total if quick else total + _CRF * pixels * count


def seconds_per_pixel(network: Network, sizes: Sizes) -> float:
    """How long a network looks at one pixel on this machine: the faster of two measured looks.

    A transformer is measured at its own size: its attention grows with the square of the pixels.
    """
    side = sizes.crop
    if not network.convolutional:
        side = max(round(sizes.tokens / network.stride), 1) * network.stride
    path, backbone, normalise = recognise.settled_weights(network.path, network.backbone, None)
    module = build.classifier(
        backbone,
        1,
        key=jax.random.key(0),
        output_stride=None,
        pretrained=path,
        normalise=normalise,
    )
    ask = jax.jit(lambda pixels, inside: module(pixels, inside))
    batch = (jnp.zeros((2, side, side, 3)), jnp.ones((2, side, side), bool))
    ask(*batch).block_until_ready()
    times = []
    for _ in range(2):
        start = time.monotonic()
        ask(*batch).block_until_ready()
        times.append(time.monotonic() - start)
    return min(times) / (2 * side * side)


def describe(plan: Plan) -> list[str]:
    """What will be done, in sentences for the terminal."""
    sizes, count = plan.sizes, len(plan.source.ids)
    lists = f"its lists {', '.join(plan.splits)}" if plan.splits else "all photographs"
    lines = [
        f"learning from {len(plan.teaching.ids)} of {count} photographs ({lists}); masks are made "
        "of all"
    ]
    if plan.imageless:
        lines.append(f"no photograph shows {', '.join(plan.imageless)}: never found")
    systems = ", ".join(
        f"{name} ({about})"
        for name, about in ((one.name, one.about) for one in systems_of(plan.networks))
    )
    lines.append(f"two systems are trained, {sizes.epochs} epochs each: {systems}")
    lines += _described_features(plan)
    lines.append("a segmentation head on these features is trained on the masks")
    few = len(plan.teaching.ids)
    if few < 20:
        lines.append(f"{few} photographs are few: look at the masks, and label more")
    return lines


def _described_features(plan: Plan) -> list[str]:
    seen = features_of(plan.networks)
    parts = [f"{network.name} at {features_size(network, plan.sizes)} px" for network in seen]
    line = f"features of: {', then '.join(parts)}; "
    lines = [f"{line}saliency: {'given' if plan.saliency else 'none'}"]
    if seen[-1].convolutional:
        name = SMOOTHING[0]
        lines.append(
            f"smoothing along the features of DINOv2 would give better masks; get {name}: "
            f"{sources.how_to_get(name, WEIGHTS[name])}"
        )
    else:
        supervision = recognise.provenance(seen[-1].path).supervision
        lines.append(
            f"{seen[-1].name} smooths the class maps; to train it people provided {supervision}"
        )
    return lines


def clock(length: float | int) -> str:
    """A length of time in words: 40 seconds, 12 minutes, 1.5 hours."""
    if length < 90:
        return f"{max(5, 5 * round(length / 5))} seconds"
    if length < 90 * 60:
        return f"{math.ceil(length / 60)} minutes"
    return f"{length / 3600:.1f} hours"


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def _lists(root: Path, layout: str) -> tuple[tuple[str, ...], str]:
    """Names of the data set's own splits, and the one that teaches (all where it has no train)."""
    if layout in ("coco", "tfds"):
        own = tuple(name for name in datasets.splits(root, layout) if name != ALL)
    elif layout == "class_folders":
        own = folders.splits_in_folders(root)
    else:
        own = tuple(datasets.list_files(root, layout))
    teaching = [name for name in own if name.lower().startswith("train")]
    if not teaching:
        return own, ALL
    exact = [name for name in teaching if name.lower() == "train"]
    return own, (exact or teaching)[0]


def _refuse(root: Path, findings: Findings) -> None:
    stopping = [problem for problem in findings.problems if problem.kind in STOPPING]
    if stopping:
        told = "; ".join(list(checking.grouped(stopping))[:3])
        raise UserError(f"{root}: as it is, no result would mean anything: {told}")


def _judgeable(source: Source, unjudged: frozenset[str]) -> Source:
    """The source without the true masks that are damaged."""
    if not unjudged:
        return source
    return View(source, source.classes, source.labels, partial(_truth, source, unjudged))


def _truth(source: Source, unjudged: frozenset[str], id: str) -> UInt8[np.ndarray, "H W"] | None:
    return None if id in unjudged else source.mask(id)

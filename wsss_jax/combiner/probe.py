"""The combiner's linear probe: learned from the closed form of all systems, then a cue.

What the systems' closed form calls each class, over all images that teach, teaches a linear
classifier of single cells (``combiner.probe_maps``). It has too few numbers to repeat the closed
form's errors of an image, and tells a class from what only looks salient.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.combiner import fusion, linear_probe, probe_maps
from wsss_jax.combiner.batches import EvidenceGroup
from wsss_jax.combiner.each_group import over_evidence
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.probe_maps import Probe
from wsss_jax.errors import UserError
from wsss_jax.types import IGNORE, Evidence

Says = Callable[[Evidence], Array]
Labels = Callable[[Evidence], tuple[Array, Array]]
"""From evidence to each cell's slot, background 0, and to which cells count."""

CELLS = 128
"""Cells of an image that teach it, at random."""

MAX_CELLS = 200_000
"""Of all images together; of many images fewer cells each are taken."""

MORE = 8
"""Times as many cells of an image whose true mask is read."""

LAST = "probe_last.npz"


def shown(inputs: Inputs, ids: Sequence[str], protocol: Protocol, run: Path, number: int) -> Inputs:
    """The inputs with the probe that the teacher of ``ids`` teaches, kept in the run's folder.

    Labels are those of ``protocol`` at its threshold; ``inputs`` have the probe before it, if this
    is not the first. Raises ValueError where no image can be used.
    """
    fixed = {"protocol": replace(protocol, threshold=0.0)}  # one program for all thresholds
    says = partial(_labels, **fixed, threshold=jnp.float32(protocol.threshold))
    _learn(inputs, ids, protocol, says, run / _name(number))
    return replace(inputs, probe=probe_maps.load(run / _name(number)))


def conclude(
    inputs: Inputs,
    ids: Sequence[str],
    protocol: Protocol,
    says: Says,
    run: Path,
    *,
    share: float = 0.0,
    keep_share: bool = False,
) -> None:
    """Learn the last probe of a run, from what its network says of ``ids``; without features none.

    says: from evidence to probabilities (b,h,w,1+k), background first. Cells of
    ``inputs.labelled`` are what their true masks say, and those images have ``share`` of the
    weight. keep_share: the probe calls as much background as its labels do.
    """

    shown = inputs.channels()

    def labels(evidence: Evidence) -> tuple[Array, Array]:
        counted = evidence.inside & evidence.real[:, None, None]
        few = replace(evidence, features=evidence.features[..., :shown], truth=None)
        found = says(few).argmax(axis=-1)
        if evidence.truth is not None:
            found = jnp.where(evidence.truth == IGNORE, found, evidence.truth)
        return found, counted

    if inputs.features is not None:
        _learn(inputs, ids, protocol, labels, run / LAST, share=share, keep_share=keep_share)


def known(inputs: Inputs, protocol: Protocol, home: Path, run: Path | None = None) -> Inputs:
    """The inputs with the last of the teachers' probes, and with that which concluded a run.

    home: the folder of the run that has the teachers. BadFileError where a file is damaged,
    ValueError for other frozen features than those that the probes were learned from.
    """
    if inputs.features is None:
        return inputs
    taught = probe_maps.load(home / _name(protocol.probes)) if protocol.probes else None
    last = probe_maps.load(run / LAST) if run else None
    for one in (taught, last):
        if one is not None and one.channels() != len(inputs.features.classes):
            raise UserError(
                f"{inputs.features.folder}: {len(inputs.features.classes)} channels, but the probe "
                f"of {home} was learned from {one.channels()}; give the features of its training"
            )
    return replace(inputs, probe=taught, last_probe=last)


def _name(number: int) -> str:
    return f"probe_{number}.npz"


def _learn(
    inputs: Inputs,
    ids: Sequence[str],
    protocol: Protocol,
    says: Labels,
    path: Path,
    *,
    share: float = 0.0,
    keep_share: bool = False,
) -> None:
    if path.is_file():
        return
    names, background = inputs.source.classes.names, protocol.shape.background
    each = min(CELLS, max(MAX_CELLS // max(len(ids), 1), 1))
    worth = _worth(len(inputs.labelled), len(ids), share)
    inputs = replace(inputs, fitted=len(inputs.features.classes) if inputs.features else 0)
    salient = protocol.saliency and inputs.saliency is not None
    seen, labels, possible, weights = [], [], [], []

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            height, width = example.image.shape[:2]
            found, counted = (part[row, :height, :width].ravel() for part in rows)
            cells = np.flatnonzero(counted)
            random = np.random.default_rng(zlib.crc32(id.encode()))
            known = id in inputs.labelled
            many = MORE * each if known else each
            cells = random.choice(cells, min(many, len(cells)), replace=False)
            columns = np.append(0, example.classes + 1)
            parts = (example.features, example.image, example.saliency)
            seen.append(probe_maps.seen(*parts, salient=salient)[cells])
            labels.append(columns[found[cells]])
            here = np.isin(np.arange(len(names) + 1), columns)
            here[0] = background
            possible.append(np.broadcast_to(here, (len(cells), len(here))))
            weights.append(np.full(len(cells), (worth if known else 1) / max(len(cells), 1)))

    over_evidence(f"learn {path.stem}", inputs, ids, says, keep, None)
    if not seen:
        raise UserError("no image can be used, so there is nothing that a probe could learn")
    parts = tuple(np.concatenate(part) for part in (seen, labels, possible, weights))
    kernel, offset = linear_probe.fit(*parts, penalty=protocol.probe_penalty)
    if keep_share and background:
        offset = linear_probe.with_share(kernel, offset, *parts)
    if not background:
        offset[0] = -np.inf
    Probe(names, kernel.astype(np.float32), offset.astype(np.float32), salient).save(path)


def _worth(labelled: int, images: int, share: float) -> float:
    """Weight of a labelled image, in weights of the others, with which they have their share."""
    others = max(images - labelled, 1)
    return share / (1 - share) * others / labelled if labelled else 1.0


@partial(jax.jit, static_argnames="protocol")
def _labels(
    evidence: Evidence, *, protocol: Protocol, threshold: Float[Array, ""]
) -> tuple[Int[Array, "b h w"], Bool[Array, "b h w"]]:
    return fusion.teacher_labels(protocol, evidence, evidence.available, threshold)

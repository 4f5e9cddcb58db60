"""The combiner's linear probe: learned from the closed form of all systems, then a cue.

What the systems' closed form calls each class, over all images that teach, teaches a linear
classifier of single cells (``data.probe``). It has too few numbers to repeat the closed form's
errors of an image, and tells a class from what only looks salient.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.data import probe
from wsss_jax.data.evidence import Inputs
from wsss_jax.data.evidence_batches import EvidenceGroup
from wsss_jax.data.probe import Probe
from wsss_jax.stages.each_group import over_evidence
from wsss_jax.systems import fusion, linear_probe
from wsss_jax.systems.label_free import Protocol
from wsss_jax.types import Evidence

CELLS = 128
"""Cells of an image that teach it, at random."""

MAX_CELLS = 200_000
"""Of all images together; of many images fewer cells each are taken."""


def shown(inputs: Inputs, ids: Sequence[str], protocol: Protocol, run: Path, number: int) -> Inputs:
    """The inputs with the probe that the teacher of ``ids`` teaches, kept in the run's folder.

    Labels are those of ``protocol`` at its threshold; ``inputs`` have the probe before it, if this
    is not the first. Raises ValueError where no image can be used.
    """
    path = run / _name(number)
    if not path.is_file():
        _learned(inputs, ids, protocol).save(path)
    return replace(inputs, probe=probe.load(path))


def known(inputs: Inputs, protocol: Protocol, run: Path) -> Inputs:
    """The inputs with the last probe of a run, if it has any. BadFileError where it is damaged."""
    if not protocol.probes or inputs.features is None:
        return inputs
    return replace(inputs, probe=probe.load(run / _name(protocol.probes)))


def _name(number: int) -> str:
    return f"probe_{number}.npz"


def _learned(inputs: Inputs, ids: Sequence[str], protocol: Protocol) -> Probe:
    names = inputs.source.classes.names
    each = min(CELLS, max(MAX_CELLS // max(len(ids), 1), 1))
    inputs = replace(inputs, fitted=len(inputs.features.classes) if inputs.features else 0)
    salient = protocol.saliency and inputs.saliency is not None
    seen, labels, possible, weights = [], [], [], []

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        for row, (id, example) in enumerate(zip(group.ids, group.examples, strict=True)):
            height, width = example.image.shape[:2]
            found, counted = (part[row, :height, :width].ravel() for part in rows)
            cells = np.flatnonzero(counted)
            random = np.random.default_rng(zlib.crc32(id.encode()))
            cells = random.choice(cells, min(each, len(cells)), replace=False)
            columns = np.append(0, example.classes + 1)
            parts = (example.features, example.image, example.saliency)
            seen.append(probe.seen(*parts, salient=salient)[cells])
            labels.append(columns[found[cells]])
            here = np.isin(np.arange(len(names) + 1), columns)
            here[0] = protocol.shape.background
            possible.append(np.broadcast_to(here, (len(cells), len(here))))
            weights.append(np.full(len(cells), 1 / max(len(cells), 1)))

    fixed = {"protocol": replace(protocol, threshold=0.0)}  # one program for all thresholds
    says = partial(_labels, **fixed, threshold=jnp.float32(protocol.threshold))
    over_evidence("probe of the combiner", inputs, ids, says, keep, None)
    if not seen:
        raise ValueError("no image can be used, so there is nothing that a probe could learn")
    parts = (np.concatenate(part) for part in (seen, labels, possible, weights))
    kernel, offset = linear_probe.fit(*parts, penalty=protocol.probe_penalty)
    if not protocol.shape.background:
        offset[0] = -np.inf
    return Probe(names, kernel.astype(np.float32), offset.astype(np.float32), salient)


@partial(jax.jit, static_argnames="protocol")
def _labels(
    evidence: Evidence, *, protocol: Protocol, threshold: Float[Array, ""]
) -> tuple[Int[Array, "b h w"], Bool[Array, "b h w"]]:
    return fusion.teacher_labels(protocol, evidence, evidence.available, threshold)

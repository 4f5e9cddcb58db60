"""What the teacher of the combiner's students knows: its threshold, and the linear probe.

One threshold, where it calls a cell background, cannot suit every data set: the closed form that
teaches peaks at 1 for each class, and how much of an image lies above 0.4 depends on the objects
and on the systems. Otsu's rule reads the threshold off the closed form's own values on the images
that teach. Students of a robust loss would still call more of it background than their teacher, and
by how much depends on the data set: ``Protocol.share_weight`` holds them to the teacher's share.

Otsu's rule suits two groups that spread alike. Of maps that a probe takes part in its threshold
came out too high on photographs (benchmarks/RESULTS.md). Square roots spread what is low and hold
what is high together, as those of counts do, and what they part is nearer to the truth there; of
maps without a probe it is not.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.combiner import fusion, probe
from wsss_jax.combiner.batches import EvidenceGroup
from wsss_jax.combiner.each_group import over_evidence
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.data.files import write_atomic
from wsss_jax.errors import BadFileError
from wsss_jax.ops import masks
from wsss_jax.run.thresholds import BINS
from wsss_jax.types import Evidence

_LAST = "teacher.json"
"""The file of the last threshold: that at which the teacher teaches."""


def prepared(
    protocol: Protocol, inputs: Inputs, ids: Sequence[str], folder: Path, *, otsu: bool
) -> tuple[Protocol, Inputs]:
    """The protocol with the teacher's threshold, and the inputs with its last probe.

    otsu: the threshold is read off the maps of ``ids``, anew with each probe. What is found is kept
    in ``folder``. Without frozen features there is no probe.
    """
    if protocol.probes and inputs.features is None:
        print("no frozen features (`wsss features`), so no linear probe is learned")
    for number in range(1, protocol.probes + 1 if inputs.features else 1):
        so_far = _at_threshold(protocol, inputs, ids, folder / f"teacher_{number}.json", read=otsu)
        inputs = probe.shown(inputs, ids, so_far, folder, number)
    roots = inputs.probe is not None and protocol.last_threshold == "roots"
    return _at_threshold(protocol, inputs, ids, folder / _LAST, read=otsu, roots=roots), inputs


def known(protocol: Protocol, folder: Path, *, otsu: bool) -> Protocol:
    """The protocol with the threshold that was read for the finished run in ``folder``.

    BadFileError where its file is gone or damaged.
    """
    if not otsu or not protocol.shape.background:
        return protocol
    path = folder / _LAST
    if not path.is_file():
        raise BadFileError(f"{path}: not there, though the run is finished; learn it again")
    return replace(protocol, threshold=_read(path))


def _at_threshold(
    protocol: Protocol,
    inputs: Inputs,
    ids: Sequence[str],
    path: Path,
    *,
    read: bool,
    roots: bool = False,
) -> Protocol:
    if not read or not protocol.shape.background:
        return protocol
    return replace(protocol, threshold=otsu(inputs, ids, protocol, path, roots=roots))


def otsu(
    inputs: Inputs, ids: Sequence[str], protocol: Protocol, path: Path, *, roots: bool = False
) -> float:
    """Otsu's threshold of the teacher's maps over all cells of the images ``ids``.

    The teacher is that of ``protocol``, from all systems. roots: square roots of the maps are
    parted; the threshold is of the maps all the same. The result is kept at ``path``, so that a
    run that goes on goes on with it. Images that cannot be used are printed. Raises ValueError
    where all values are alike.
    """
    if path.is_file():
        return _read(path)
    counts = np.zeros(BINS)

    def says(evidence: Evidence) -> tuple[Array]:
        return (_highest(evidence, protocol=protocol),)

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        shown = rows[0][rows[0] >= 0]
        counts[:] += np.histogram(np.sqrt(shown) if roots else shown, BINS, (0.0, 1.0))[0]

    over_evidence("threshold of the teacher", inputs, ids, says, keep, None)
    found = masks.otsu(counts)
    threshold = round(found**2 if roots else found, 4)
    write_atomic(path, json.dumps({"threshold": threshold}).encode())
    return threshold


def _read(path: Path) -> float:
    try:
        return float(json.loads(path.read_text())["threshold"])
    except (ValueError, KeyError, TypeError) as problem:
        raise BadFileError(
            f"{path}: {problem!r}, wanted the threshold of a teacher; delete it, learn again"
        ) from problem


@partial(jax.jit, static_argnames="protocol")
def _highest(evidence: Evidence, *, protocol: Protocol) -> Float[Array, "b h w"]:
    """The highest map of each cell; -1 on padding."""
    maps = fusion.consensus(protocol, evidence, evidence.available)
    shown = jnp.where(evidence.present[:, None, None, :], maps, -1).max(axis=-1)
    return jnp.where(evidence.inside & evidence.real[:, None, None], shown, -1)

"""Where the teacher of the combiner's students calls a cell background, without a true mask.

One threshold cannot suit every data set: the closed form that teaches peaks at 1 for each class,
and how much of an image lies above 0.4 depends on the objects and on the systems. Otsu's rule reads
the threshold off the closed form's own values on the images that teach. Students of a robust loss
would still call more of it background than their teacher, and by how much depends on the data set:
``Protocol.share_weight`` holds them to the teacher's share.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.data.evidence import EvidenceGroup, Inputs
from wsss_jax.data.files import write_atomic
from wsss_jax.ops import masks
from wsss_jax.stages.decide import BINS
from wsss_jax.stages.each_group import over_evidence
from wsss_jax.systems import fusion
from wsss_jax.systems.label_free import Protocol
from wsss_jax.types import Evidence


def otsu(inputs: Inputs, ids: Sequence[str], protocol: Protocol, path: Path) -> float:
    """Otsu's threshold of the teacher's maps over all cells of the images ``ids``.

    The teacher is that of ``protocol``, from all systems. The result is kept at ``path``, so that a
    run that goes on goes on with it. Images that cannot be used are printed. Raises ValueError
    where all values are alike.
    """
    if path.is_file():
        return float(json.loads(path.read_text())["threshold"])
    counts = np.zeros(BINS)

    def says(evidence: Evidence) -> tuple[Array]:
        return (_highest(evidence, protocol=protocol),)

    def keep(group: EvidenceGroup, rows: tuple[np.ndarray, ...]) -> None:
        counts[:] += np.histogram(rows[0][rows[0] >= 0], BINS, (0.0, 1.0))[0]

    over_evidence("threshold of the teacher", inputs, ids, says, keep, None)
    threshold = round(masks.otsu(counts), 4)
    write_atomic(path, json.dumps({"threshold": threshold}).encode())
    return threshold


@partial(jax.jit, static_argnames="protocol")
def _highest(evidence: Evidence, *, protocol: Protocol) -> Float[Array, "b h w"]:
    """The highest map of each cell; -1 on padding."""
    maps = fusion.consensus(protocol, evidence, evidence.available)
    shown = jnp.where(evidence.present[:, None, None, :], maps, -1).max(axis=-1)
    return jnp.where(evidence.inside & evidence.real[:, None, None], shown, -1)

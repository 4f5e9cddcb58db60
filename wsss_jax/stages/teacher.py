"""Where the teacher of the combiner's students calls a cell background, without a true mask.

One threshold cannot suit every data set: the closed form that teaches peaks at 1 for each class,
and how much of an image lies above 0.4 depends on the objects and on the systems. Otsu's rule reads
the threshold off the closed form's own values on the images that teach.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.data.evidence import Inputs, evidence_groups
from wsss_jax.data.files import write_atomic
from wsss_jax.ops import evidence as ops
from wsss_jax.ops import masks
from wsss_jax.stages.decide import BINS
from wsss_jax.stages.progress import meter
from wsss_jax.systems.fusion import Protocol
from wsss_jax.train.loop import Interrupted, stop_signals
from wsss_jax.types import Evidence


def otsu(inputs: Inputs, slots: Mapping[str, int], protocol: Protocol, path: Path) -> float:
    """Otsu's threshold of the teacher's maps over all cells of the images in ``slots``.

    The teacher is that of ``protocol``, from all systems. The result is kept at ``path``, so that a
    run that goes on goes on with it. Raises ValueError where all values are alike.
    """
    if path.is_file():
        return float(json.loads(path.read_text())["threshold"])
    counts, done = np.zeros(BINS), 0
    with stop_signals() as stop, meter("threshold of the teacher", len(slots)) as bar:
        for group in evidence_groups(
            inputs.read, slots, cells=inputs.cells, skip=lambda id, reason: None
        ):
            highest = np.asarray(_highest(group.evidence, protocol=protocol))
            counts += np.histogram(highest[highest >= 0], BINS, (0.0, 1.0))[0]
            done += len(group.ids)
            bar.advance(len(group.ids))
            if stop.is_set():
                raise Interrupted(128 + stop.number)
    threshold = round(masks.otsu(counts), 4)
    write_atomic(path, json.dumps({"threshold": threshold, "images": done}).encode())
    return threshold


@partial(jax.jit, static_argnames="protocol")
def _highest(evidence: Evidence, *, protocol: Protocol) -> Float[Array, "b h w"]:
    """The highest map of each cell; -1 on padding."""
    maps = ops.consensus(
        evidence, evidence.available, steps=protocol.walk_steps, use_saliency=protocol.saliency
    )
    shown = jnp.where(evidence.present[:, None, None, :], maps, -1).max(axis=-1)
    return jnp.where(evidence.inside & evidence.real[:, None, None], shown, -1)

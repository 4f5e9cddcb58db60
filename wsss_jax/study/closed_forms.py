"""The closed form that teaches the combiner's students, as a rival of an ablation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
from jaxtyping import Array, Float

from wsss_jax.combiner import fusion, teacher
from wsss_jax.combiner.each_group import put_all
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.network import CombinerShape
from wsss_jax.config import as_json
from wsss_jax.data import stores
from wsss_jax.data.stores import Store
from wsss_jax.types import Evidence


@dataclass(frozen=True)
class Closed:
    """Mean, × saliency, random walk, and the mean of that and a linear probe, at a threshold.

    steps: of the walk, 0 for none. saliency: whether the mean is multiplied by it. threshold: on
    maps whose maximum is 1; with a probe Otsu's instead, of the images that teach it. cells: long
    side of the grid. cut: whether edges cut the walk. along: what it goes along
    (``label_free.Protocol``). probes: how often a probe is learned. last: what the threshold beside
    it is read off.
    """

    systems: tuple[str, ...]
    steps: int
    saliency: bool
    threshold: float
    cells: int
    cut: bool = False
    probes: int = 0
    along: Literal["colours", "features"] = "colours"
    last: Literal["maps", "roots"] = "maps"


def combine(
    way: Closed, inputs: Inputs, folder: Path, *, ids: Sequence[str], teaching: Sequence[str]
) -> tuple[Store, float]:
    """The closed form of ``ids`` as a store of maps, and its threshold.

    teaching: the ids whose maps teach the probe, which is kept beside the store.
    """
    protocol = Protocol(
        CombinerShape(cut_walks=way.cut),
        walk_steps=way.steps,
        walk_along=way.along,
        saliency=way.saliency,
        threshold=way.threshold,
        probes=way.probes,
        last_threshold=way.last,
    )
    if way.probes:
        slots = list(inputs.slots(teaching))
        protocol, inputs = teacher.prepared(protocol, inputs, slots, folder.parent, otsu=True)
    target = stores.create(
        folder,
        holds="scores",
        classes=inputs.source.classes.names,
        made_by={"stage": "closed form", **as_json(way)},
        parents=way.systems,
    )
    says = partial(_consensus, protocol=replace(protocol, threshold=0.0))
    put_all(target, inputs, says, ids, title=f"fuse {folder.parent.name}")
    return target, protocol.threshold


@partial(jax.jit, static_argnames="protocol")
def _consensus(evidence: Evidence, *, protocol: Protocol) -> tuple[Float[Array, "b h w k"]]:
    return (fusion.consensus(protocol, evidence, evidence.available),)

"""The networks of a combiner's run, asked: the distilled one, and several that may disagree.

Whatever is asked and fused, a network is one compiled program per shape.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from wsss_jax.combiner import fusion, label_free
from wsss_jax.combiner.combiner_run import Combining, finished, home, record_of
from wsss_jax.combiner.fusion import Students
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.network import CombinerShape
from wsss_jax.run import folders
from wsss_jax.types import Evidence


def distilled(run: Path) -> Any:
    """The state of the network that a finished run distilled, or chose for it."""
    settings, channels = finished(run)
    return folders.chosen_state(run / "distilled", fusion.template(settings.protocol, channels))


@partial(jax.jit, static_argnames=("shape", "features"))
def asked(
    state: Any, evidence: Evidence, *, shape: CombinerShape, features: int
) -> tuple[Array, Array]:
    """Probabilities and gates; compiled once per shape, whoever is asked and whatever is fused."""
    network = fusion.structure(shape, features)
    combined = fusion.combine(network, state, evidence, evidence.available)
    return combined.probabilities(), combined.gates


_mean = jax.jit(fusion.students_mean, static_argnames=("steps", "cut"))


@dataclass(frozen=True)
class Taught:
    """Networks that have learned: what they say in the mean, and how far they disagree."""

    protocol: Protocol
    states: tuple[Any, ...]
    seen: Any
    features: int

    def __call__(self, evidence: Evidence) -> tuple[Array, Array]:
        """Mean of the probabilities (b,h,w,1+k), and the disagreement (b,h,w)."""
        views = fusion.views_of(self.protocol, self.seen, evidence)
        how = {"shape": self.protocol.shape, "features": self.features}
        each = [asked(s, v, **how)[0] for s, v in zip(self.states, views, strict=True)]
        protocol = self.protocol
        return _mean(each, views, steps=protocol.average_steps, cut=protocol.shape.cut_walks)


def several(run: Path, state: Any, settings: Combining, channels: int, systems: int) -> Taught:
    """Whose disagreement over so many systems is shown: the students', or the network's own."""
    seen = label_free.splits(systems, settings.protocol.students, settings.seed)
    if settings.probes_teach(channels):
        states = (state,) * settings.protocol.students
        return Taught(settings.protocol, states, jnp.asarray(seen), channels)
    record = record_of(run)
    own = home(run, record) / f"students{settings.last}"
    return students(own, settings, channels, len(record["systems"]), seen)


def students(
    folder: Path, settings: Combining, channels: int, learned_from: int, seen: Any = None
) -> Taught:
    """The students of a run folder; seen: which systems they are asked about, if others."""
    protocol = settings.protocol
    template = fusion.students_template(protocol, channels, learned_from)
    learned: Students = folders.last_state(folder, template)
    states = tuple(fusion.one_of(learned.state, i) for i in range(protocol.students))
    return Taught(protocol, states, learned.seen if seen is None else jnp.asarray(seen), channels)

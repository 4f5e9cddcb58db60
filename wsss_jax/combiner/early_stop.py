"""Early stopping of the combiner without a label: how well it predicts a system it does not see.

After each epoch of distillation the score of ``combiner.fusion.left_out_score`` is taken on
training images that are held out; the state with the lowest is kept, and training ends when
``patience`` looks in a row were no better.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.combiner import fusion
from wsss_jax.combiner.batches import evidence_groups
from wsss_jax.combiner.evidence import Inputs
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.data.files import write_atomic
from wsss_jax.errors import BadFileError
from wsss_jax.run import folders
from wsss_jax.types import Evidence

HELD_OUT = 10
"""Every so many training images, one judges instead of teaching."""


def held_out(ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(those that teach, those that judge): every HELD_OUT-th judges."""
    judges = tuple(ids[HELD_OUT - 1 :: HELD_OUT]) or tuple(ids[-1:])
    return tuple(id for id in ids if id not in set(judges)), judges


@dataclass(frozen=True)
class LeftOut:
    """Called with (step, state) after each epoch; True ends the training.

    folder: gets scores.json and, under best/, the best state. ids: the images that judge.
    """

    folder: Path
    protocol: Protocol
    inputs: Inputs
    ids: Sequence[str]
    patience: int

    def __call__(self, step: int, state: Any) -> bool:
        """Look, and keep the state if it is the best; a repeated step counts once."""
        scores = {at: value for at, value in self.scores().items() if at < step}
        scores[step] = self.score(state)
        if scores[step] <= min(scores.values()):
            folders.choose(self.folder, step, state)
        write_atomic(self.folder / "scores.json", json.dumps(scores, indent=1).encode())
        best = min(scores, key=lambda at: scores[at])
        return sum(at > best for at in scores) >= self.patience

    def scores(self) -> dict[int, float]:
        """Score by step, of all looks so far."""
        path = self.folder / "scores.json"
        return (
            {int(at): v for at, v in json.loads(path.read_text()).items()} if path.exists() else {}
        )

    def score(self, state: Any) -> float:
        """``combiner.fusion.left_out_score`` over all judging images; lower is better."""
        look = partial(_look, protocol=self.protocol, features=self.inputs.channels())
        slots, found = self.inputs.slots(self.ids), []
        groups = evidence_groups(
            self.inputs.read, slots, cells=self.inputs.cells, skip=lambda id, reason: None
        )
        for group in groups:
            found.append(np.asarray(look(state, group.evidence), np.float64))
        if not found:
            raise BadFileError(f"none of {len(self.ids)} held-out images can be used to judge")
        return fusion.left_out_score(np.sum(found, axis=0))


@partial(jax.jit, static_argnames=("protocol", "features"))
def _look(
    state: Any, evidence: Evidence, *, protocol: Protocol, features: int
) -> Float[Array, " n"]:
    network = fusion.structure(protocol.shape, features)
    return fusion.left_out_totals(network, state, evidence, threshold=protocol.threshold)

"""The steps of label-free learning as settings, and who sees what in it.

What each step is for: ``combiner.fusion``.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool

from wsss_jax.combiner.network import CombinerShape
from wsss_jax.config import since
from wsss_jax.train.optimizers import Optim


@dataclass(frozen=True)
class Protocol:
    """Every step of the label-free protocol, each of which can be taken out.

    Attributes:
        shape: of the network.
        students: how many, each with a split of its own.
        restricted: students see their part of the systems only; False: all of them.
        disjoint: a student's teacher is the other part, if that is two systems or more; False: all
            systems teach.
        walk_steps: length of the teacher's random walk on a grid of WALKED_ON cells; on others it
            goes with the area (``on_grid``), as it has to fill objects. 0 teaches mean × saliency.
        walk_along: what belongs together where the teacher walks: cells of like colours, or of
            like colours and like frozen features, where there are any (``consensus.joined``).
        saliency: whether the teacher multiplies by 0.5 + 0.5 saliency.
        probes: how often a linear probe of cells over the whole data set is learned, each from the
            labels of the teacher so far; the last one takes part in teaching. Where students teach
            the network sees it, where probes do (``Combining.teacher``) each system has its own.
            0: no probe. Needs frozen features.
        probe_penalty: of its squared weights (``combiner.linear_probe``).
        threshold: of the teacher, on maps whose maximum is 1, where it is not read off them
            (``Combining.teacher_threshold``).
        last_threshold: where it is read off, whether the last one, of maps that a probe takes part
            in, is Otsu's of the maps or of their square roots (``combiner.teacher``).
        loss: gce (robust) or ce.
        q: of the robust loss, from 0 (cross-entropy) to 1 (mean absolute error).
        jitter: log-scale deviation of gammas, and relative depth of scales, that distort each
            system's scores while training.
        colour_jitter: deviation of brightness and of each channel.
        full_view: how often distillation sees all systems; the rest sees a random part.
        average_steps: walk over the students' mean before it teaches the distilled network; it
            cleans single cells, so its length is the same on any grid.
        share_weight: how strongly the predicted share of background is held at that of the labels,
            where no pixel label teaches.
        consensus_weight: weight of what the teacher says, on pixels without a label.
        labelled_weight: weight of pixel labels where there are any (the k-shot regime).
        optim: how parameters are updated.
    """

    shape: CombinerShape = field(default_factory=CombinerShape)
    students: int = 4
    restricted: bool = True
    disjoint: bool = True
    walk_steps: int = 32
    walk_along: Literal["colours", "features"] = since("colours", "features")
    saliency: bool = True
    probes: int = since(0, 2)
    probe_students: bool = since(False)
    probe_penalty: float = since(0.01)
    threshold: float = 0.4
    last_threshold: Literal["maps", "roots"] = since("maps", "roots")
    loss: Literal["gce", "ce"] = "gce"
    q: float = 0.7
    jitter: float = 0.3
    colour_jitter: float = 0.05
    full_view: float = 0.5
    average_steps: int = 3
    share_weight: float = 1.0
    consensus_weight: float = 1.0
    labelled_weight: float = 1.0
    optim: Optim = field(
        default_factory=lambda: Optim(
            "adamw",
            learning_rate=3e-3,
            new_layers=5.0,
            weight_decay=1e-2,
            schedule="cosine",
            clip=1.0,
        )
    )


WALKED_ON = 64
"""Long side of the grid that the length of the teacher's walk is given for."""


def on_grid(protocol: Protocol, cells: int) -> Protocol:
    """The protocol with a teacher that walks as far on the photograph as on WALKED_ON cells.

    A walk spreads over a number of cells that grows with its steps, so steps go with the area. The
    walks over the students' mean and among the network's inputs stay: like convolutions, they are
    about neighbouring cells.
    """
    given = protocol.walk_steps
    steps = max(1, round(given * (cells / WALKED_ON) ** 2)) if given else 0
    return replace(protocol, walk_steps=steps)


def splits(systems: int, students: int, seed: int) -> Bool[np.ndarray, "students systems"]:
    """Which systems each student sees: different halves, or all but one of fewer than four.

    A single system is seen by all. The same numbers give the same splits.
    """
    if systems == 1:
        return np.ones((students, 1), bool)
    random = np.random.default_rng([seed, systems])
    seen = np.zeros((students, systems), bool)
    if systems < 4:
        hidden = [int(i) for i in random.permutation(systems)]
        for row in range(students):
            seen[row] = np.arange(systems) != hidden[row % systems]
        return seen
    for row in range(0, students, 2):  # both halves of a split, so that every system is seen
        order = random.permutation(systems)
        half = systems // 2 + (systems % 2 and row // 2 % 2)
        seen[row, order[:half]] = True
        if row + 1 < students:
            seen[row + 1] = ~seen[row]
    return seen

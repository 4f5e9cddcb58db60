"""Edges of an affinity network or of HED, as a store that a random walk does not cross.

Not here: edges of saliency networks (``stages.parts.objects``).
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Array, Float
from scipy.special import expit

from wsss_jax.batches.batches import Group
from wsss_jax.config import Record, as_json, check_numbers
from wsss_jax.data import stores
from wsss_jax.data.classes import EDGES
from wsss_jax.data.provenance import recorded
from wsss_jax.data.stores import Store
from wsss_jax.datasets import views
from wsss_jax.datasets.selection import Data
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.models import boundaries, recognise
from wsss_jax.run import dense
from wsss_jax.run.dense import Asked, Dense
from wsss_jax.stages.affinity import learned, run_sources
from wsss_jax.systems import affinity
from wsss_jax.systems.affinity import BRANCHES, AffinityNet
from wsss_jax.train.state import Weights
from wsss_jax.types import ScoreMaps, Size

IRN_BETA = 10.0
"""Exponent of the affinity in IRN's walk."""


@dataclass(frozen=True)
class Edges:
    """How edges are read off a network of boundaries.

    Attributes:
        beta: exponent of IRN's affinity, which is put into the edges: 1 - (1 - boundary) ** beta.
            None takes 10 for an affinity network and 1 for HED.
        batch_size: photographs per call.
    """

    beta: float | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        check_numbers(self, "batch_size")
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise UserError(f"beta is {self.beta}; wanted a number above 0")


def edges(
    run: Path, source: Source, folder: Path, settings: Edges, *, ids: tuple[str, ...]
) -> Store:
    """Edges in [0, 1] of ``ids`` from a network of boundaries; finished images are kept.

    run: a finished run of IRN's branch, or weights of HED: a file, or their name. Images that
    cannot be read are skipped, printed, and listed. Raises ValueError for a network that compares
    features, in which there are no edges.
    """
    network, sources = _learned(run) if run.is_dir() else _published(run)
    beta = (IRN_BETA if run.is_dir() else 1.0) if settings.beta is None else settings.beta
    settings = replace(settings, beta=beta)
    target = stores.create(
        folder,
        holds="scores",
        classes=EDGES,
        kind="probability",
        made_by={"stage": "edges", "run": run.name, **as_json(settings), **sources},
        parents=(run.name,) if run.is_dir() else (),
    )
    outputs = [(target, partial(_map, beta))]
    asked = Asked((1.0,), flip=False, batch_size=settings.batch_size)  # the answer is flipped too
    dense.fill(outputs, views.photographs(source), ids, network=network, asked=asked)
    return target


def _learned(run: Path) -> tuple[Dense, Record]:
    model, weights = learned(run)
    if BRANCHES[model.branch].head != "edge":
        raise UserError(
            f"{run} has learned {model.branch}, in which there are no edges; wanted IRN's branch"
        )
    return Dense(partial(_logits, model), weights, model.stride, lean=0.5), run_sources(run)


def _published(weights: Path) -> tuple[Dense, Record]:
    logits, state = boundaries.of_hed(weights)
    network = Dense(logits, state, boundaries.STRIDE, lean=0.5)
    return network, recorded(recognise.provenance(weights))


def command(
    run: tyro.conf.Positional[Path],
    data: Annotated[Data, tyro.conf.arg(name="")],
    out: Path,
    settings: Annotated[Edges, tyro.conf.arg(name="")] = Edges(),
) -> None:
    """Edges of a network that learned boundaries, as a store for `wsss refine --walk.edges`.

    Args:
        run: run folder of an affinity network (`wsss affinity`), or weights of HED: a file or hed.
        data: the data set.
        out: store to write; the same command resumes a stopped one.
        settings: how they are read.
    """
    source = data.open()
    print(edges(run, source, out, settings, ids=source.ids).folder)


def _logits(model: AffinityNet, weights: Weights, images: Array, inside: Array) -> Array:
    return affinity.answers(model, weights, images, inside)[..., None]


def _map(
    beta: float, logits: Float[np.ndarray, "h w 1"], group: Group, row: int, size: Size
) -> ScoreMaps:
    scores = (1 - (1 - expit(logits)) ** beta).astype(np.float32)
    return ScoreMaps(scores, np.zeros(1, np.int32), size, scores.max(axis=(0, 1)), "probability")

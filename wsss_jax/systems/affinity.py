"""Learning which neighbouring cells belong together, from masks of what is certain.

Two branches, one loss: AffinityNet compares features (Ahn & Kwak 2018, PSA), IRN asks whether a
boundary lies between two cells (Ahn, Cho & Kwak 2019). Puzzle-CAM and P-NOC use the latter, and
differ in their labels only. Their affinity then drives the random walk. Not here: IRN's
displacement field, which has no effect on semantic masks (its author, irn issue 19), and where
labels come from (``stages.parts.affinity_labels``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.backbones.layers import grid_inside
from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.losses import pairs
from wsss_jax.models import dense_heads
from wsss_jax.models.recognise import AUTO
from wsss_jax.ops import affinity as affinities
from wsss_jax.ops.affinity import Affinity
from wsss_jax.systems import on_backbone
from wsss_jax.systems.on_backbone import OnBackbone
from wsss_jax.train.optimizers import Optim
from wsss_jax.train.state import Network, TrainState, Weights
from wsss_jax.types import Batch, System, Variables


class Branch(NamedTuple):
    """One way to an affinity.

    head: a name of ``dense_heads.HEADS``. join: answers of the head, a radius and the real cells
    to the affinity. start: scores and answers to the scores that a walk starts from. mirrored:
    whether answers of the mirror image are averaged in.
    """

    head: str
    join: Callable[[Array, int, Array | None], Affinity]
    start: Callable[[Array, Array], Array]
    mirrored: bool


def _features(answers: Array, radius: int, cells: Array | None) -> Affinity:
    return affinities.from_features(answers, radius=radius, inside=cells)


def _boundary(answers: Array, radius: int, cells: Array | None) -> Affinity:
    return affinities.from_boundary(jax.nn.sigmoid(answers), radius=radius, inside=cells)


def _as_they_are(scores: Array, answers: Array) -> Array:
    del answers
    return scores


def _off_boundaries(scores: Array, answers: Array) -> Array:
    """IRN takes the scores off the boundaries before they walk."""
    return scores * jax.nn.sigmoid(-answers)[..., None]


BRANCHES: Mapping[str, Branch] = MappingProxyType(
    {
        "features": Branch("affinity", _features, _as_they_are, mirrored=False),
        "boundary": Branch("edge", _boundary, _off_boundaries, mirrored=True),
    }
)
"""AffinityNet's and IRN's."""


STRIDES = (1, 2, 4, 8, 16, 32)
"""Pixels per cell that canvases are divisible by."""


@dataclass(frozen=True)
class AffinityNet:
    """Which network learns affinity, and how.

    Attributes:
        branch: features (AffinityNet) or boundary (IRN).
        backbone: a name in BACKBONES of a convolutional network; "auto" takes that of the weights,
            without weights mobilenet_v2.
        weights: pretrained ones of the backbone: a file, a name of `wsss weights list`,
            hub:owner/name, or auto; None starts from random ones.
        output_stride: pixels per cell of the backbone's last map.
        stride: pixels per cell of the affinity's grid (PSA 8, IRN 4).
        radius: of the pairs that are learned from, in cells (PSA 5, IRN 10).
        learns_body: whether the backbone learns too (PSA: yes, IRN: no).
        optim: how parameters are updated.
        normalise: how images are normalised for these weights, imagenet, half, clip or six
            numbers; None reads it from their file, and fills it in.
    """

    branch: str = "boundary"
    backbone: str = AUTO
    weights: Path | None = None
    output_stride: int = 16
    stride: int = 4
    radius: int = 10
    learns_body: bool = False
    optim: Optim = field(default_factory=Optim)
    normalise: str | None = None

    def __post_init__(self) -> None:
        lookup(BRANCHES, self.branch, "affinity branch")
        affinities.stencil(self.radius)
        if self.stride not in STRIDES:
            raise UserError(f"stride is {self.stride}, wanted one of {STRIDES} pixels per cell")


def make(settings: AffinityNet, *, steps: int) -> System:
    """Affinity as a learning problem of ``steps`` updates on batches with masks.

    Masks hold class labels, IGNORE where nothing is certain. A batch without a certain pair costs
    nothing and teaches nothing.
    """
    network, branch = structure(settings), BRANCHES[settings.branch]
    update = on_backbone.update_of(_held(settings), steps)

    def init(key: PRNGKeyArray) -> TrainState:
        return on_backbone.start(_held(settings), _whole(settings), steps, key)

    def step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        labels = pairs.at_cells(batch.given_masks, settings.stride, batch.inside)
        kinds = pairs.pairs(losses.where_given(labels, batch.real), settings.radius)
        cells = grid_inside(batch.inside, settings.stride)

        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            module = network.bind(params, state.stats)
            found = module(batch.images, batch.inside, key, learns_body=settings.learns_body)
            joined = branch.join(getattr(found, branch.head), settings.radius, cells)
            return losses.pair_affinity(joined.values, kinds), {}

        return state.descended(update, loss_of)

    return System(init, step)


def answers(
    settings: AffinityNet,
    weights: Weights,
    images: Float[Array, "b H W 3"],
    inside: Bool[Array, "b H W"],
) -> Float[Array, "b h w ..."]:
    """The trained head's output for images, which lie top left; canvases divisible by the stride.

    weights: parameters and the rest of the state. For IRN's branch the mean of the logits of image
    and mirror image, as there; where only the image has a real cell, its own.
    """
    branch, stride = BRANCHES[settings.branch], settings.stride
    module = structure(settings).bind(*weights)
    if not branch.mirrored:
        return getattr(module(images, inside), branch.head)
    seen, real = (jnp.concatenate([x, x[:, :, ::-1]]) for x in (images, inside))
    found, mirror = jnp.split(getattr(module(seen, real), branch.head), 2)
    both = grid_inside(inside[:, :, ::-1], stride)[:, :, ::-1]
    return jnp.where(both, (found + mirror[:, :, ::-1]) / 2, found)


def template(settings: AffinityNet) -> TrainState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    return on_backbone.template(_held(settings), _whole(settings))


def structure(settings: AffinityNet) -> Network:
    """The network's structure, with shapes in place of values; nothing is read or allocated."""
    return on_backbone.structure(_held(settings), _whole(settings))


def _whole(settings: AffinityNet) -> on_backbone.Whole:
    strides = {BRANCHES[settings.branch].head: settings.stride}
    return partial(dense_heads.MultiTask, strides=strides)


def _held(settings: AffinityNet) -> OnBackbone:
    """The settings with a backbone that has no part in the update where it does not learn.

    (Without gradients weight decay alone would still wear it away.)
    """
    optim = settings.optim
    if not settings.learns_body:
        optim = replace(optim, freeze=(*optim.freeze, "backbone"))
    return OnBackbone(
        settings.backbone, settings.weights, settings.output_stride, optim, settings.normalise
    )

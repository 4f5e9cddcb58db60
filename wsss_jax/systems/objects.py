"""Saliency and edges learned together, from masks that earlier stages were sure of.

The role of PoolNet with its edge branch (Liu et al. 2019) in P-NOC: a network that is told what
C2AM-H proposes, and smooths out what it proposes wrongly; class boundaries of confident
pseudo-masks teach its edges. Where we differ: our own light heads (``models.dense_heads``) in place
of PoolNet's, both learned jointly from the start, means in place of sums over pixels, and unknown
pixels where the proposals are not sure.
"""

from dataclasses import dataclass, field
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.errors import UserError
from wsss_jax.models import dense_heads
from wsss_jax.ops import boundaries
from wsss_jax.systems import on_backbone
from wsss_jax.systems.on_backbone import OnBackbone
from wsss_jax.train.optimizers import Optim
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import Batch, System, Variables

STRIDE = 4
"""Pixels per cell of both answers."""

LEAN = 0.5
"""Cells of the heads stand for the middle of their pixels."""


_WHOLE = partial(dense_heads.MultiTask, strides={"saliency": STRIDE, "edge": STRIDE})


@dataclass(frozen=True)
class Objects(OnBackbone):
    """Which network learns saliency and edges, and how.

    Attributes:
        edge_weight: weight of the edges' loss; that of saliency has 1.
        learns_body: whether the backbone is trained too, not only the heads.
        optim: how parameters are updated (PoolNet: Adam of 5e-5, weight decay 5e-4).
    """

    edge_weight: float = 1.0
    learns_body: bool = True
    optim: Optim = field(
        default_factory=lambda: Optim("adamw", learning_rate=5e-5, weight_decay=5e-4)
    )

    def __post_init__(self) -> None:
        if self.edge_weight < 0:
            raise UserError(f"edge_weight is {self.edge_weight}, wanted it at least 0")


def make(settings: Objects, *, steps: int, drawn: bool = False) -> System:
    """Saliency and edges as one problem of ``steps`` updates.

    ``Batch.masks`` are ``boundaries.packed`` planes of objects and classes; drawn: of objects and
    edges (0, 1). Images of which nothing is known cost nothing, for each of the two by itself.
    """
    network, update = structure(settings), on_backbone.update_of(settings, steps)

    def init(key: PRNGKeyArray) -> TrainState:
        return on_backbone.start(settings, _WHOLE, steps, key)

    def step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        salient, edges = labels_of(batch, drawn=drawn)

        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            module = network.bind(params, state.stats)
            found = module(batch.images, batch.inside, key, learns_body=settings.learns_body)
            on_objects = losses.mean_over_given(losses.binary(found.saliency, salient), salient)
            on_edges = losses.mean_over_given(losses.balanced_binary(found.edge, edges), edges)
            loss = on_objects + settings.edge_weight * on_edges
            return loss, {"saliency": on_objects, "edges": on_edges}

        return state.descended(update, loss_of)

    return System(init, step)


def labels_of(batch: Batch, *, drawn: bool = False) -> tuple[Array, Array]:
    """Labels of saliency and of edges on the grid of STRIDE, IGNORE where nothing is known.

    drawn: the second plane holds edges themselves, not classes that meet.
    """
    objects, second = boundaries.unpacked(batch.given_masks)
    salient = boundaries.most_of_cell(objects, STRIDE)
    lines = second if drawn else boundaries.class_boundaries(second)
    edges = boundaries.any_in_cell(lines, STRIDE)
    return (
        losses.where_given(salient, batch.real),
        losses.where_given(edges, batch.real),
    )


def template(settings: Objects) -> TrainState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    return on_backbone.template(settings, _WHOLE)


def structure(settings: Objects) -> Network:
    """The network's structure, with shapes in place of values; nothing is read or allocated."""
    return on_backbone.structure(settings, _WHOLE)


def logits(
    settings: Objects, state: TrainState, images: Array, inside: Bool[Array, "b H W"]
) -> Float[Array, "b h w 2"]:
    """Logits of saliency and of edges, side by side on the grid of STRIDE."""
    found = structure(settings).bind(state.averaged, state.stats)(images, inside)
    return jnp.stack([found.saliency, found.edge], axis=-1)

"""The terms that published systems add to the classification loss, on a bound network.

Each takes what one look at the batch gave (``View``) and gives a scalar, not yet weighted; the
schedules of their weights stand beside them. The systems are sums of these: see ``poc``, ``pnoc``.
The arithmetic is in ``losses/regularisers``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.backbones.layers import grid_inside
from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.explain.guided import guided
from wsss_jax.losses import regularisers
from wsss_jax.models import heads
from wsss_jax.types import Batch


@dataclass(frozen=True)
class Puzzle:
    """The reconstruction of class maps from tiles. Source: Puzzle-CAM (Jo & Yu 2021).

    Attributes:
        weight: of the reconstruction, at the end of its rise from zero.
        rise: share of all steps over which it rises.
        pieces: tiles along each side.
        classes: which classes are reconstructed: masking, selection or every.
        distance: l1 or l2.
    """

    weight: float = 4.0
    rise: float = 0.5
    pieces: int = 2
    classes: str = "masking"
    distance: str = "l1"

    def __post_init__(self) -> None:
        if self.pieces < 2:
            raise UserError(f"{self.pieces} pieces along each side, wanted at least 2")
        lookup(regularisers.RECONSTRUCTIONS, self.classes, "choice of classes")
        lookup(regularisers.DISTANCES, self.distance, "distance")

    def at(self, step: Int[Array, ""] | int, steps: int) -> Float[Array, ""]:
        """The weight at a step: linear from 0, then constant."""
        return regularisers.linear_schedule(
            step, steps, first=0.0, last=self.weight, share=self.rise
        )


@dataclass(frozen=True)
class Erasing:
    """The erasing of one class's region before an ordinary classifier. Source: OC-CSE.

    Attributes:
        ordinary: run folder of a finished training of a plain classifier; read when training
            starts, and not needed afterwards.
        first: weight at the first step.
        last: weight at the end.
        rise: share of all steps over which it rises linearly (P-OC: 1). 0 is ``last`` throughout.
        stages: 2 or more make it a staircase of so many even steps (OC-CSE: one per epoch).
    """

    ordinary: Path
    first: float = 0.3
    last: float = 1.0
    rise: float = 1.0
    stages: int = 0

    def at(self, step: Int[Array, ""] | int, steps: int) -> Float[Array, ""]:
        """The weight at a step."""
        if self.stages > 1:
            return regularisers.staged_schedule(
                step, steps, first=self.first, last=self.last, stages=self.stages
            )
        return regularisers.linear_schedule(
            step, steps, first=self.first, last=self.last, share=self.rise
        )


Progress = tuple[Int[Array, ""] | int, int]
"""The step, and how many there are."""


class View(NamedTuple):
    """What one pass of a classifier over a batch gave.

    module: the bound network. targets: (b,c) smoothed labels. maps: (b,h,w,c) class logits of
    every cell. cells: (b,h,w) which of them belong to the image.
    """

    module: heads.Classifier
    batch: Batch
    targets: Array
    maps: Array
    cells: Array


def look(
    module: heads.Classifier, batch: Batch, smoothing: float, key: PRNGKeyArray | None
) -> tuple[Float[Array, "b c"], View]:
    """Logits of the whole images, and what the other terms need."""
    features = module.features(batch.images, batch.inside, key)
    cells = grid_inside(batch.inside, module.backbone.strides[-1])
    targets = losses.smooth(batch.labels, smoothing)
    view = View(module, batch, targets, module.class_maps(features), cells)
    return module.head(features, batch.inside), view


def puzzle(
    view: View, settings: Puzzle, key: PRNGKeyArray | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of the maps rebuilt from tiles, and their distance from the whole image's.

    Raises ValueError where tiles are no whole number of cells.
    """
    module, batch, n = view.module, view.batch, settings.pieces
    stride, size = module.backbone.strides[-1], batch.images.shape[1:3]
    if any(length % (n * stride) for length in size):
        raise UserError(
            f"crops of {size[0]} by {size[1]} pixels do not fall into {n} by {n} tiles of whole "
            f"cells of {stride} pixels; choose a crop that {n * stride} divides"
        )
    inside = regularisers.tile(batch.inside[..., None], n)[..., 0]
    features = module.features(regularisers.tile(batch.images, n), inside, key)
    rebuilt = regularisers.merge(module.class_maps(features), n)
    loss = losses.multilabel_soft_margin(regularisers.pooled(rebuilt, view.cells), view.targets)
    distance = regularisers.reconstruction(
        view.maps,
        rebuilt,
        view.cells,
        regularisers.RECONSTRUCTIONS[settings.classes](batch.labels),
        regularisers.DISTANCES[settings.distance],
    )
    return losses.mean_over(loss, batch.real), losses.mean_over(distance, batch.real)


def region(view: View, chosen: Bool[Array, "b c"], lean: float) -> Float[Array, "b H W"]:
    """The class map of each image's chosen class, at every pixel; not rectified."""
    maps = (view.maps * chosen[:, None, None, :].astype(view.maps.dtype)).sum(axis=-1)
    stride = view.module.backbone.strides[-1]
    height, width = view.batch.images.shape[1:3]
    return regularisers.at_pixels(maps, (height, width), stride=stride, lean=lean)


def seen_without(
    other: heads.Classifier,
    batch: Batch,
    mask: Float[Array, "b H W"],
    targets: Float[Array, "b c"],
    key: PRNGKeyArray | None,
) -> Float[Array, ""]:
    """Cross-entropy of another classifier on the images erased by ``mask``."""
    erased = regularisers.erase(batch.images, mask, other.backbone.mean)
    logits = other(erased, batch.inside, rngs=key)
    return losses.mean_over(losses.multilabel_soft_margin(logits, targets), batch.real)


def without(batch: Batch, chosen: Bool[Array, "b c"], smoothing: float) -> Float[Array, "b c"]:
    """Smoothed labels of what should remain once the chosen class is erased."""
    return losses.smooth(batch.labels & ~chosen, smoothing)


def gradient_error(
    logits_of: Callable[[Array], Array], loss_of: Callable[[Array], Array], batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The classification loss, and how far its input gradient is from its guided one.

    logits_of: images to class logits, the same at every call (one key for dropout). loss_of: those
    to the loss. The error is the cosine distance of the two gradients of an image, in [0, 2], mean
    over real images. The guided gradient is a constant, as algorithm 1 has it, so the standard one
    is moved towards it; the algorithm leaves the error open. UserError without rectifiers.
    """
    logits, pull_back = jax.vjp(logits_of, batch.images)
    loss, to_logits = jax.value_and_grad(loss_of)(logits)
    _, guided_back = jax.vjp(guided(logits_of), batch.images)
    wanted = jax.lax.stop_gradient(guided_back(to_logits)[0])
    distance = regularisers.cosine_distance(pull_back(to_logits)[0], wanted)
    return loss, losses.mean_over(distance, batch.real)

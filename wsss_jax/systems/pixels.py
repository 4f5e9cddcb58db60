"""The last network: segmentation learned pixel by pixel from masks that earlier stages decided.

Source: DeepLabV3+ (Chen et al. 2018) trained as in Puzzle-CAM and P-NOC: cross-entropy over
background and classes, IGNORE apart, mean over all known pixels of a batch. Whether the masks are
pseudo-masks or true ones is not known here.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from wsss_jax.errors import UserError
from wsss_jax.losses import pixel_loss
from wsss_jax.models.segmenter import Segmenter as SegmenterNet
from wsss_jax.systems import on_backbone
from wsss_jax.systems.on_backbone import OnBackbone
from wsss_jax.train.optimizers import Optim
from wsss_jax.train.state import Network, TrainState, Weights
from wsss_jax.types import IGNORE, Batch, System, Variables

STRIDE = 4
"""Pixels per cell of the grid on which the network computes its scores."""


@dataclass(frozen=True)
class Segmenter(OnBackbone):
    """Which segmentation network learns, and how.

    Attributes:
        output_stride: pixels per cell of the backbone's last map, 8 or 16.
        width: channels behind the backbone (256 in the papers; less for light backbones).
        label_smoothing: in [0, 1] (P-NOC: 0.1).
        optim: how parameters are updated (P-NOC: SGD of 0.007 with Nesterov momentum 0.9).
    """

    width: int = 256
    label_smoothing: float = 0.0
    optim: Optim = field(
        default_factory=lambda: Optim(learning_rate=0.007, nesterov=True, weight_decay=4e-5)
    )

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}, wanted it in [0, 1]")
        if self.width < 4 or self.width % 4:
            raise UserError(f"width is {self.width}, wanted a multiple of 4 (GroupNorm's groups)")


def make(settings: Segmenter, *, classes: int, steps: int) -> System:
    """Segmentation into background and ``classes`` classes as a problem of ``steps`` updates.

    Batches must have masks. A batch without a single known pixel gives loss 0 and no gradient.
    """
    network, update = structure(settings, classes), on_backbone.update_of(settings, steps)

    def init(key: PRNGKeyArray) -> TrainState:
        return on_backbone.start(settings, _whole(settings, classes), steps, key)

    def step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        seen = in_corner(batch)
        counts = seen.inside & seen.real[:, None, None]

        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            module = network.bind(params, state.stats)
            logits = module(seen.images, seen.inside, rngs=key)
            losses = pixel_loss.cross_entropy(logits, seen.given_masks, settings.label_smoothing)
            known = (counts & (seen.given_masks != IGNORE)).sum() / jnp.maximum(counts.sum(), 1)
            terms = {"known": known.astype(jnp.float32)}
            return pixel_loss.mean_known(losses, seen.given_masks, counts), terms

        return state.descended(update, loss_of)

    return System(init, step)


def template(settings: Segmenter, classes: int) -> TrainState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    return on_backbone.template(settings, _whole(settings, classes))


def structure(settings: Segmenter, classes: int) -> Network:
    """The network's structure, with shapes in place of values; nothing is read or allocated."""
    return on_backbone.structure(settings, _whole(settings, classes))


def scores(
    network: Network, weights: Weights, images: Array, inside: Bool[Array, "b H W"]
) -> Float[Array, "b h w c"]:
    """Logits of background and classes on the grid of STRIDE; images lie top left.

    weights: parameters and the rest of the state.
    """
    return network.bind(*weights).grid_scores(images, inside)


def in_corner(batch: Batch) -> Batch:
    """The batch with every image moved to the top left of its canvas, as segmenters want it.

    Crops lay an image that is smaller than they are at a random place. What leaves at one side
    comes back at the other, which is padding only.
    """
    rows, columns = batch.inside.any(axis=2).argmax(axis=1), batch.inside.any(axis=1).argmax(axis=1)

    def moved(array: Shaped[Array, "b H W ..."]) -> Shaped[Array, "b H W ..."]:
        return jax.vmap(lambda a, y, x: jnp.roll(a, (-y, -x), (0, 1)))(array, rows, columns)

    masks = None if batch.masks is None else moved(batch.masks)
    return replace(batch, images=moved(batch.images), inside=moved(batch.inside), masks=masks)


def _whole(settings: Segmenter, classes: int) -> on_backbone.Whole:
    return partial(SegmenterNet, outputs=classes + 1, width=settings.width)

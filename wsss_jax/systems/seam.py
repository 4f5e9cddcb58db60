"""SEAM: class maps that shrink with their image, and that agree with maps spread by likeness.

Source: Wang et al. 2020 (SEAM), equations 3 to 10, and its code. The image is seen at two scales
by one network; both scales' maps are refined by pixel correlation (``models/pixel_correlation``),
and all four are brought together. The paper's crop is 448 and its dropout 0.5.

Where we differ: the code enlarges maps to the whole image before everything else; here logits are
means over cells, the lowest quarter is one of cells, and maps are compared on the pixels of the
small image, to which they are enlarged directly. Padding counts for nothing.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.backbones.layers import grid_inside
from wsss_jax.errors import UserError
from wsss_jax.losses import equivariance
from wsss_jax.models import heads
from wsss_jax.models.classifiers import CLASS_TOKEN
from wsss_jax.models.pixel_correlation import PixelCorrelation
from wsss_jax.ops import images
from wsss_jax.systems import classifier
from wsss_jax.systems.classifier import Classifier
from wsss_jax.systems.entry import Explained
from wsss_jax.train import state as states
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import Batch, Size, System, Variables

Metrics = dict[str, Array]


@dataclass(frozen=True)
class Seam:
    """SEAM: class maps must agree at two scales. All terms have weight 1.

    Attributes:
        classifier: the network and its optimizer.
        scale: of the small view, in (0, 1).
        lowest: share of cells whose strongest refined map should be zero.
        hardest: share of cells and classes that the cross term is the mean of.
    """

    classifier: Classifier = field(default_factory=lambda: Classifier(dropout=0.5))
    scale: float = 0.3
    lowest: float = 0.25
    hardest: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.scale < 1:
            raise UserError(f"scale is {self.scale}, wanted it between 0 and 1")
        if not (0 < self.lowest <= 1 and 0 < self.hardest <= 1):
            raise UserError(f"lowest {self.lowest}, hardest {self.hardest}: wanted them in (0, 1]")
        if self.classifier.head == CLASS_TOKEN:
            raise UserError(f"SEAM compares class maps, which head {CLASS_TOKEN!r} does not have")


class Seen(NamedTuple):
    """One scale's maps, on the common grid: both normalised and zero for absent classes.

    maps (b,h,w,c) of the classifier, refined (b,h,w,1+c) with background first; logits (b,c) and
    lowest (b,), the mean of the lowest refined cells.
    """

    logits: Array
    lowest: Array
    maps: Array
    refined: Array


def make(settings: Seam, *, classes: int, steps: int) -> System:
    """SEAM as a learning problem of ``steps`` updates over ``classes`` classes."""
    network, update = structure(settings, classes), classifier.update_of(settings.classifier, steps)

    def init(key: PRNGKeyArray) -> TrainState:
        return states.create(states.functional(_module(settings.classifier, classes, key)), update)

    def step(state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        def loss_of(params: Variables) -> tuple[Array, Metrics]:
            return loss_terms(network.bind(params, state.stats), settings, batch, key)

        return state.descended(update, loss_of)

    return System(init, step)


def loss_terms(
    module: PixelCorrelation, settings: Seam, batch: Batch, key: PRNGKeyArray
) -> tuple[Float[Array, ""], Metrics]:
    """The sum of all terms, and each of them."""
    key_large, key_small = jax.random.split(key)
    height, width = batch.images.shape[1:3]
    size = (int(height * settings.scale), int(width * settings.scale))
    small = smaller(batch, size)
    views = [
        seen(module, view, size, small.inside, lowest=settings.lowest, key=own)
        for view, own in ((batch, key_large), (small, key_small))
    ]
    targets = losses.smooth(batch.labels, settings.classifier.label_smoothing)
    large, little = views
    halves = [settings.classifier.loss.of(view.logits, targets, batch) / 2 for view in views]
    each = {
        "loss_whole": halves[0] + halves[1],
        "lowest": (large.lowest + little.lowest) / 2,
        "equivariance": equivariance.equivariance(large.maps, little.maps, small.inside),
        "cross": crossed(large, little, small.inside, settings.hardest)
        + crossed(little, large, small.inside, settings.hardest),
    }
    metrics = {
        name: value if value.ndim == 0 else losses.mean_over(value, batch.real)
        for name, value in each.items()
    }
    return jnp.stack(list(metrics.values())).sum(), metrics


def seen(
    module: PixelCorrelation,
    batch: Batch,
    size: Size,
    pixels: Bool[Array, "b h w"],
    *,
    lowest: float,
    key: PRNGKeyArray,
) -> Seen:
    """What the network makes of one scale, brought to ``size``, whose real pixels are given."""
    features = module.features(batch.images, batch.inside, key)
    cells = grid_inside(batch.inside, module.backbone.strides[-1])
    refined = module.correlated(features)
    present = batch.labels.astype(jnp.float32)[:, None, None, :]
    everywhere = jnp.concatenate([jnp.ones_like(present[..., :1]), present], axis=-1)
    strongest = (refined[..., 1:] * present).max(axis=-1)
    plain = images.resize(module.plain_maps(features), size, align_corners=True)
    wide = images.resize(refined, size, align_corners=True)
    return Seen(
        logits=module.head(features, batch.inside),
        lowest=equivariance.lowest_mean(strongest, cells, lowest),
        maps=equivariance.range_normalised(plain, pixels) * present,
        refined=equivariance.range_normalised(wide, pixels) * everywhere,
    )


def crossed(
    one: Seen, other: Seen, pixels: Bool[Array, "b h w"], share: float
) -> Float[Array, " b"]:
    """How far one scale's refined maps are from the other's plain ones, where they differ most."""
    maps = equivariance.with_background(other.maps)
    target = jnp.concatenate([maps[..., :1], equivariance.strongest_only(other.maps)], axis=-1)
    difference = jnp.abs(jax.lax.stop_gradient(target) - one.refined)
    return equivariance.highest_mean(difference, pixels, share)


def smaller(batch: Batch, size: Size) -> Batch:
    """The batch at another size, corners upon corners."""
    inside = images.resize(batch.inside.astype(jnp.float32)[..., None], size, align_corners=True)
    inside = inside[..., 0] > 0.5
    pixels = images.resize(batch.images, size, align_corners=True)
    return Batch(
        images=jnp.where(inside[..., None], pixels, 0.0),
        labels=batch.labels,
        inside=inside,
        real=batch.real,
    )


def template(settings: Seam, classes: int) -> TrainState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    return states.template(
        structure(settings, classes), classifier.update_of(settings.classifier, 1)
    )


def explained(settings: Seam) -> Explained:
    """The network that class maps are asked of; its maps are the refined ones."""
    own = classifier.explained(settings.classifier)
    return own._replace(structure=lambda classes: structure(settings, classes))


def structure(settings: Seam, classes: int) -> Network:
    """The network's structure, with shapes in place of values."""
    return states.abstract(
        lambda: _module(classifier.bare(settings.classifier), classes, jax.random.key(0))
    )


def _module(own: Classifier, classes: int, key: PRNGKeyArray) -> PixelCorrelation:
    plain = classifier.module_of(own, classes, key)
    if not isinstance(plain, heads.Classifier):
        raise UserError(f"SEAM refines the maps of a head on features; {own.head} has none")
    return PixelCorrelation(plain, key=key)

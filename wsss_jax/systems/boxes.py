"""Classification and localisation as one problem: a classifier and the box of each class.

Source: the multi-task loss of the lecture "Localization and CNN Explanations" (Boracchi),
L = α S + (1 − α) R with S the classification loss and R that of the boxes. Where we differ: S is
that of many labels, each class has a box, and an image without boxes costs S alone.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.losses import box_regression
from wsss_jax.models import heads
from wsss_jax.models.box_head import BoxHead
from wsss_jax.systems import classifier
from wsss_jax.systems.classifier import Classifier
from wsss_jax.systems.entry import Explained
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import held
from wsss_jax.train.state import Network, TrainState, Weights
from wsss_jax.types import Batch, System, Variables


@dataclass(frozen=True)
class BoxRegression:
    """A classifier that also predicts a box of each class; learns from labels and boxes.

    Attributes:
        classifier: the network and its optimizer; its head has class maps.
        alpha: α, the weight of the classification loss; that of the boxes is 1 − α.
        regression: smooth_l1 (robust) or squared, the cost of an error of x, y, h or w.

    >>> BoxRegression(Classifier("mobilenet_v2"), alpha=0.5).regression
    'smooth_l1'
    """

    classifier: Classifier = field(default_factory=Classifier)
    alpha: float = 0.5
    regression: str = "smooth_l1"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha is {self.alpha}, wanted a weight in [0, 1]")
        lookup(box_regression.REGRESSIONS, self.regression, "regression loss")


def make(settings: BoxRegression, *, classes: int, steps: int) -> System:
    """The learning problem of ``steps`` updates over ``classes`` classes; batches have boxes."""
    own = settings.classifier
    network, update = structure(settings, classes), classifier.update_of(own, steps)
    cost = box_regression.REGRESSIONS[settings.regression]

    def init(key: PRNGKeyArray) -> TrainState:
        return states.create(states.functional(_module(own, classes, key)), update)

    def step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        targets = losses.smooth(batch.labels, own.label_smoothing)
        given = jnp.where(batch.real[:, None, None], batch.given_boxes, 0.0)

        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            module = network.bind(held(params, own.optim.freeze), state.stats)
            features = module.features(batch.images, batch.inside, key)
            named = own.loss.of(module.head(features, batch.inside), targets, batch)
            found = module.boxes(features, batch.inside)
            placed = box_regression.mean_loss(found, given, cost)
            loss = settings.alpha * named + (1 - settings.alpha) * placed
            return loss, {"loss_class": named, "loss_boxes": placed}

        return state.descended(update, loss_of)

    return System(init, step)


def template(settings: BoxRegression, classes: int) -> TrainState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    update = classifier.update_of(settings.classifier, 1)
    return states.template(structure(settings, classes), update)


def explained(settings: BoxRegression) -> Explained:
    """The network that class maps are asked of: the classifier beside the boxes."""
    own = classifier.explained(settings.classifier)
    return own._replace(structure=lambda classes: structure(settings, classes))


def structure(settings: BoxRegression, classes: int) -> Network:
    """The network's structure, with shapes in place of values."""
    own = classifier.bare(settings.classifier)
    return states.abstract(lambda: _module(own, classes, jax.random.key(0)))


def answers(
    network: Network, weights: Weights, images: Array, inside: Bool[Array, "b H W"]
) -> tuple[Float[Array, "b c"], Float[Array, "b c 4"]]:
    """Class logits, and the corners of each class's box in shares of the image."""
    module = network.bind(*weights)
    features = module.features(images, inside)
    return module.head(features, inside), box_regression.corners(module.boxes(features, inside))


def _module(own: Classifier, classes: int, key: PRNGKeyArray) -> BoxHead:
    plain = classifier.module_of(own, classes, key)
    if not isinstance(plain, heads.Classifier):
        raise UserError(f"boxes need a head on features; {own.head} has none")
    return BoxHead(plain, key=key)

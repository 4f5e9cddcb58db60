"""LFI-CAM: a classifier that learns, beside its classes, which of its channels matter.

The same loss as the plain classifier's, on the logits of the raised features (Lee et al. 2021 train
both branches' logits with cross-entropy; no verified reference). Every explanation reads the raised
features; the importance network's own map, ``lfi_cam``, is the same for every class.
"""

from dataclasses import dataclass, field
from types import MappingProxyType

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.explain import experimental
from wsss_jax.models import lfi
from wsss_jax.systems import classifier
from wsss_jax.systems.classifier import Classifier
from wsss_jax.systems.entry import Explained
from wsss_jax.train import state as states
from wsss_jax.train.state import Network, TrainState, Weights
from wsss_jax.types import Batch, Scorer, System, Variables


@dataclass(frozen=True)
class Lfi:
    """LFI-CAM: a second network learns how important each feature channel is.

    Attributes:
        classifier: the network and its optimizer.
        width: of the importance network, in channels.
    """

    classifier: Classifier = field(default_factory=Classifier)
    width: int = 32


def make(settings: Lfi, *, classes: int, steps: int) -> System:
    """Classifier and importance network as one learning problem of ``steps`` updates."""
    network = structure(settings, classes)
    update = classifier.update_of(settings.classifier, steps)

    def init(key: PRNGKeyArray) -> TrainState:
        module = module_of(settings, settings.classifier, classes, key)
        return states.create(states.functional(module), update)

    def step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        targets = losses.smooth(batch.labels, settings.classifier.label_smoothing)

        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            module = network.bind(params, state.stats)
            logits = module(batch.images, batch.inside, rngs=key)
            return settings.classifier.loss.of(logits, targets, batch), {}

        return state.descended(update, loss_of)

    return System(init, step)


def template(settings: Lfi, classes: int) -> TrainState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    return states.template(
        structure(settings, classes), classifier.update_of(settings.classifier, 1)
    )


def explained(settings: Lfi) -> Explained:
    """The network that class maps are asked of."""
    return Explained(
        structure=lambda classes: structure(settings, classes),
        weights=lambda state: (state.averaged, state.stats),
        scorer=classifier.scorer,
        lean=classifier.lean(settings.classifier),
        own=MappingProxyType({"lfi_cam": lfi_cam}),
    )


def lfi_cam(
    network: Network, weights: Weights, images: Array, inside: Array, labels: Array
) -> Float[Array, "b h w c"]:
    """The map of the importance network: plain features weighed by it, for each label the same."""
    module = network.bind(*weights)
    plain = Scorer(
        features=lambda images: module.plain.features(images, inside),
        head=lambda features: module.plain.head(features, inside),
    )

    def importance(images: Array, features: Array) -> Array:
        return module.importance(images, features, inside)

    return experimental.lfi_cam(plain, importance, images, labels)


def structure(settings: Lfi, classes: int) -> Network:
    """The network's structure, with shapes in place of values; bind a state's params and stats."""
    bare = classifier.bare(settings.classifier)
    return states.abstract(lambda: module_of(settings, bare, classes, jax.random.key(0)))


def module_of(
    settings: Lfi, plain: Classifier, classes: int, key: PRNGKeyArray
) -> lfi.LfiClassifier:
    """The network itself: a classifier, from random weights or its file, and a random new part."""
    key_plain, key_new = jax.random.split(key)
    body = classifier.module_of(plain, classes, key_plain)
    return lfi.with_importance(body, width=settings.width, key=key_new)

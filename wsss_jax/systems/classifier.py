"""The vanilla system: a multi-label classifier trained on image labels alone.

Source: the baseline of every paper here (Zhou et al. 2016 for its class maps): global average
pooling, a linear layer without bias, binary cross-entropy averaged over classes. With other heads
(``Classifier.head``) it is the classifier with kernel usage regularisation, or a vision
transformer's own. Everything that other systems share of it is here too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import jax
from jaxtyping import Array, Bool, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.models import classifiers, heads
from wsss_jax.models.token_classifier import TokenClassifier
from wsss_jax.systems import on_backbone
from wsss_jax.systems.class_loss import ClassLoss
from wsss_jax.systems.entry import Explained
from wsss_jax.systems.on_backbone import OnBackbone
from wsss_jax.systems.on_backbone import lean as lean
from wsss_jax.systems.on_backbone import update_of as update_of
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import held
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import Attentive, Batch, Scorer, System, Variables


@dataclass(frozen=True)
class Classifier(OnBackbone):
    """A plain multi-label classifier.

    Attributes:
        backbone: a name in BACKBONES; "auto" takes that of the weights, without weights
            mobilenet_v2.
        label_smoothing: in [0, 1].
        dropout: rate at which whole feature channels are dropped while training.
        head: linear, kernel_usage, kernel_usage_scaled, or class_token (transformers only).
        remat: compute blocks again for the gradient instead of storing their results. It saves
            memory on accelerators, nothing on CPUs. MobileNets cannot.
        loss: the loss of image labels, for data in which few images show some classes; terms of
            tiles and of erased images stay binary cross-entropies.
    """

    label_smoothing: float = 0.0
    dropout: float = 0.0
    head: str = "linear"
    remat: bool = False
    loss: ClassLoss = field(default_factory=ClassLoss)


def make(settings: Classifier, *, classes: int, steps: int) -> System:
    """The classifier as a learning problem of ``steps`` updates over ``classes`` classes."""
    network = structure(settings, classes)
    update = update_of(settings, steps)

    def init(key: PRNGKeyArray) -> TrainState:
        return start(settings, classes, steps, key)

    def step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        targets = losses.smooth(batch.labels, settings.label_smoothing)

        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            module = network.bind(held(params, settings.optim.freeze), state.stats)
            logits = module(batch.images, batch.inside, rngs=key)
            return settings.loss.of(logits, targets, batch), {}

        return state.descended(update, loss_of)

    return System(init, step)


def template(settings: Classifier, classes: int) -> TrainState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    return states.template(structure(settings, classes), update_of(settings, 1))


def explained(settings: Classifier) -> Explained:
    """The network that class maps are asked of: the only one there is."""
    return Explained(
        structure=lambda classes: structure(settings, classes),
        weights=lambda state: (state.averaged, state.stats),
        scorer=attentive if settings.head == classifiers.CLASS_TOKEN else scorer,
        lean=lean(settings),
        attentive=settings.head == classifiers.CLASS_TOKEN,
    )


def start(settings: Classifier, classes: int, steps: int, key: PRNGKeyArray) -> TrainState:
    """The state of the named network before its first step, its weights read from their file."""
    network = states.functional(module_of(settings, classes, key))
    return states.create(network, update_of(settings, steps))


def structure(settings: Classifier, classes: int) -> Network:
    """The network's structure, with shapes in place of values; nothing is read or allocated."""
    return states.abstract(lambda: module_of(bare(settings), classes, jax.random.key(0)))


def bare(settings: Classifier) -> Classifier:
    """The same network without its file of weights."""
    return replace(settings, weights=None)


def module_of(
    settings: Classifier, classes: int, key: PRNGKeyArray
) -> heads.Classifier | TokenClassifier:
    """The network itself, from a random start or its file of weights."""
    whole = partial(heads.Classifier, classes=classes, dropout=settings.dropout)
    options = {"remat": True} if settings.remat else {}
    plain = on_backbone.module_of(settings, whole, key, **options)
    return classifiers.with_head(plain, settings.head, key=key)


def scorer(
    network: Network, params: Variables, stats: Variables
) -> Callable[[Bool[Array, "b H W"]], Scorer]:
    """From the pixels that are real to the functions that explanations need."""
    module = network.bind(params, stats)

    def bound(inside: Bool[Array, "b H W"]) -> Scorer:
        return Scorer(
            features=lambda images: module.features(images, inside),
            head=lambda features: module.head(features, inside),
            class_maps=module.class_maps,
        )

    return bound


def attentive(
    network: Network, params: Variables, stats: Variables
) -> Callable[[Bool[Array, "b H W"]], Attentive]:
    """The same for the class token of a transformer, whose attention is explained."""
    return network.bind(params, stats).attentive

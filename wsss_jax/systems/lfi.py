"""The learning of LFI-CAM's importance network, together with its classifier. Experimental.

The same loss as the plain classifier's, on the logits of the raised features (Lee et al. 2021 train
both branches' logits with cross-entropy; no verified reference). Not in ``SYSTEMS``: its map is no
class map, so no later stage can use it.
"""

from dataclasses import dataclass, field

import jax
from jaxtyping import Array, PRNGKeyArray

from wsss_jax.models import lfi
from wsss_jax.ops import losses
from wsss_jax.systems import classifier
from wsss_jax.systems.classifier import Classifier
from wsss_jax.train import state as states
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import Batch, System, Variables


@dataclass(frozen=True)
class Lfi:
    """The classifier, and the width of the importance network beside it, in channels."""

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

        def loss_of(params: Variables) -> Array:
            module = network.bind(params, state.stats)
            logits = module(batch.images, batch.inside, rngs=key)
            return settings.classifier.loss.of(logits, targets, batch)

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        state = state.updated(update, loss, grads)
        return state, {"loss": loss, **classifier.counts(state)}

    return System(init, step)


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

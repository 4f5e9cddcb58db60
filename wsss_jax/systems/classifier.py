"""The vanilla system: a multi-label classifier trained on image labels alone.

Source: the baseline of every paper here (Zhou et al. 2016 for its class maps): global average
pooling, a linear layer without bias, binary cross-entropy averaged over classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Bool

from wsss_jax.models import build
from wsss_jax.ops import losses
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import Optim, optimizer
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import Batch, Scorer, System


@dataclass(frozen=True)
class Classifier:
    """Which network learns, and how.

    Attributes:
        backbone: a name in BACKBONES.
        weights: file of pretrained weights; None starts from random ones.
        output_stride: pixels per cell of the last map.
        label_smoothing: in [0, 1].
        dropout: rate at which whole feature channels are dropped while training.
        optim: how parameters are updated.
    """

    backbone: str = "mobilenet_v2"
    weights: Path | None = None
    output_stride: int = 16
    label_smoothing: float = 0.0
    dropout: float = 0.0
    optim: Optim = field(default_factory=Optim)


def make(settings: Classifier, *, classes: int, steps: int) -> System:
    """The classifier as a learning problem of ``steps`` updates over ``classes`` classes."""
    network = structure(settings, classes)
    update = optimizer(settings.optim, steps, _is_new(settings))

    def init(key: Any) -> TrainState:
        return states.create(states.functional(_module(settings, classes, key)), update)

    def step(state: TrainState, batch: Batch, key: Any) -> tuple[TrainState, dict[str, Array]]:
        targets = losses.smooth(batch.labels, settings.label_smoothing)

        def loss_of(params: Any) -> Array:
            module = network.bind(params, state.stats)
            logits = module(batch.images, batch.inside, rngs=key)
            return losses.mean_over(losses.multilabel_soft_margin(logits, targets), batch.real)

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        state = state.updated(update, loss, grads)
        return state, {
            "loss": loss,
            "skipped": state.skipped,
            "bad_in_a_row": state.in_a_row,
        }

    return System(init, step)


def template(settings: Classifier, classes: int) -> TrainState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    network = structure(settings, classes)
    update = optimizer(settings.optim, 1, _is_new(settings))

    def start(params: Any, stats: Any) -> TrainState:
        return states.create(network._replace(params=params, stats=stats), update)

    return jax.eval_shape(start, network.params, network.stats)


def lean(settings: Classifier) -> float:
    """Which of its stride pixels a feature cell looks at, from 0 (the first) to 1 (the last)."""
    return build.lean(settings.backbone, settings.output_stride)


def structure(settings: Classifier, classes: int) -> Network:
    """The network's structure, with shapes in place of values; nothing is read or allocated."""
    bare = replace(settings, weights=None)
    return states.abstract(lambda: _module(bare, classes, jax.random.key(0)))


def scorer(network: Network, params: Any, stats: Any) -> Callable[[Bool[Array, "b H W"]], Scorer]:
    """From the pixels that are real to the functions that explanations need."""
    module = network.bind(params, stats)

    def bound(inside: Bool[Array, "b H W"]) -> Scorer:
        return Scorer(
            features=lambda images: module.features(images, inside),
            head=lambda features: module.head(features, inside),
            class_maps=module.class_maps,
        )

    return bound


def _module(settings: Classifier, classes: int, key: Any) -> Any:
    return build.classifier(
        settings.backbone,
        classes,
        key=key,
        output_stride=settings.output_stride,
        pretrained=settings.weights,
        dropout=settings.dropout,
    )


def _is_new(settings: Classifier) -> Callable[[str], bool]:
    """Which parameters start untrained beside pretrained ones; from scratch all learn alike."""
    if settings.weights is None:
        return lambda name: False
    return lambda name: not name.startswith("backbone")

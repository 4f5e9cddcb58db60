"""One network on a named backbone: how it starts, its structure, and how it is updated."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import optax
from jaxtyping import PRNGKeyArray

from wsss_jax.models import build
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import Optim, optimizer, outside_backbone
from wsss_jax.train.state import Network, TrainState

Whole = Callable[..., Any]
"""The whole network of a backbone: ``whole(backbone, rngs=…)``."""


@runtime_checkable
class Learning(Protocol):
    """Settings of what learns. weights: of the backbone, pretrained; None for random ones."""

    @property
    def weights(self) -> Path | None: ...  # noqa: D102

    @property
    def optim(self) -> Optim: ...  # noqa: D102


@runtime_checkable
class OnBackbone(Learning, Protocol):
    """Settings of a network on a backbone, named as in ``systems.classifier.Classifier``."""

    @property
    def backbone(self) -> str: ...  # noqa: D102

    @property
    def output_stride(self) -> int: ...  # noqa: D102

    @property
    def normalise(self) -> str | None: ...  # noqa: D102


def start(settings: OnBackbone, whole: Whole, steps: int, key: PRNGKeyArray) -> TrainState:
    """The state before the first step, the backbone's weights read from their file."""
    network = states.functional(_module(settings, whole, key))
    return states.create(network, update_of(settings, steps))


def template(settings: OnBackbone, whole: Whole) -> TrainState:
    """The shape of the state that ``start`` gives; reads no weights, allocates nothing."""
    return states.template(structure(settings, whole), update_of(settings, 1))


def structure(settings: OnBackbone, whole: Whole) -> Network:
    """The network's structure, with shapes in place of values; nothing is read or allocated."""
    bare: Any = replace(settings, weights=None)  # pyright: ignore[reportArgumentType]: data classes
    return states.abstract(lambda: _module(bare, whole, jax.random.key(0)))


def update_of(settings: Learning, steps: int) -> optax.GradientTransformation:
    """The gradient transformation for ``steps`` updates."""
    pretrained = settings.weights is not None
    return optimizer(settings.optim, steps, outside_backbone(pretrained=pretrained))


def lean(settings: OnBackbone) -> float:
    """Which of its stride pixels a cell looks at, from 0 (the first) to 1 (the last)."""
    return build.lean(settings.backbone, settings.output_stride)


def _module(settings: OnBackbone, whole: Whole, key: PRNGKeyArray) -> Any:
    return build.on_backbone(
        settings.backbone,
        whole,
        key=key,
        output_stride=settings.output_stride,
        pretrained=settings.weights,
        normalise=settings.normalise,
    )

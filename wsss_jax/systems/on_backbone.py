"""One network on a named backbone: how it starts, its structure, and how it is updated."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import optax
from jaxtyping import PRNGKeyArray

from wsss_jax.models import build
from wsss_jax.models.recognise import AUTO, backbone_of
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import Optim, optimizer, outside_backbone
from wsss_jax.train.state import Network, TrainState

Whole = Callable[..., Any]
"""The whole network of a backbone: ``whole(backbone, rngs=…)``."""


@dataclass(frozen=True)
class OnBackbone:
    """Settings of a network that learns on a backbone; each kind of network adds its own.

    Attributes:
        backbone: a name in BACKBONES of a convolutional network; "auto" takes that of the weights,
            without weights mobilenet_v2.
        weights: pretrained ones of the backbone: a file, a name of `wsss weights list`,
            hub:owner/name, or auto; None starts from random ones.
        output_stride: pixels per cell of the backbone's last map.
        optim: how parameters are updated.
        normalise: how images are normalised for these weights, imagenet, half, clip or six
            numbers; None reads it from their file, and fills it in.
    """

    backbone: str = AUTO
    weights: Path | None = None
    output_stride: int = 16
    optim: Optim = field(default_factory=Optim)
    normalise: str | None = None


def start(settings: OnBackbone, whole: Whole, steps: int, key: PRNGKeyArray) -> TrainState:
    """The state before the first step, the backbone's weights read from their file."""
    network = states.functional(module_of(settings, whole, key))
    return states.create(network, update_of(settings, steps))


def template(settings: OnBackbone, whole: Whole) -> TrainState:
    """The shape of the state that ``start`` gives; reads no weights, allocates nothing."""
    return states.template(structure(settings, whole), update_of(settings, 1))


def structure(settings: OnBackbone, whole: Whole) -> Network:
    """The network's structure, with shapes in place of values; nothing is read or allocated."""
    bare = replace(settings, backbone=_backbone(settings), weights=None)
    return states.abstract(lambda: module_of(bare, whole, jax.random.key(0)))


def update_of(settings: OnBackbone, steps: int) -> optax.GradientTransformation:
    """The gradient transformation for ``steps`` updates."""
    pretrained = settings.weights is not None
    return optimizer(settings.optim, steps, outside_backbone(pretrained=pretrained))


def lean(settings: OnBackbone) -> float:
    """Which of its stride pixels a cell looks at, from 0 (the first) to 1 (the last)."""
    return build.lean(_backbone(settings), settings.output_stride)


def module_of(settings: OnBackbone, whole: Whole, key: PRNGKeyArray, **options: Any) -> Any:
    """The network itself, from a random start or its file of weights; options of the backbone."""
    return build.on_backbone(
        _backbone(settings),
        whole,
        key=key,
        output_stride=settings.output_stride,
        pretrained=settings.weights,
        normalise=settings.normalise,
        **options,
    )


def _backbone(settings: OnBackbone) -> str:
    return backbone_of(settings.backbone, settings.weights, settings.normalise)

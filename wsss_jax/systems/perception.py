"""Learning to rebuild images from a fixed network's features. Experimental.

The decoder of Perception Visualization (Giulivi et al. 2021). No verified reference: they mix
structural similarity, pixel error and the distance between the features of image and picture;
ours is the mean squared error of the pixels alone. The network that is explained does not learn.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from wsss_jax import losses
from wsss_jax.models import decoder
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import Optim, optimizer
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import Batch, System, Variables

Encode = Callable[[Array, Array], Array]
"""Images (b,H,W,3) and which pixels are real (b,H,W) to features (b,h,w,k)."""


@dataclass(frozen=True)
class Perception:
    """The features that are inverted, and the decoder.

    channels, stride: of the features; images have whole multiples of the stride. width: channels
    of the decoder. optim: how it learns.
    """

    channels: int
    stride: int
    width: int = 32
    optim: Optim = field(default_factory=lambda: Optim("adamw", 3e-3, schedule="constant"))


def make(settings: Perception, encode: Encode, *, steps: int) -> System:
    """The decoder of what ``encode`` gives, as a learning problem of ``steps`` updates."""
    network = structure(settings)
    update = optimizer(settings.optim, steps, lambda name: False)

    def init(key: PRNGKeyArray) -> TrainState:
        return states.create(states.functional(_module(settings, key)), update)

    def step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Array]]:
        features = jax.lax.stop_gradient(encode(batch.images, batch.inside)).astype(jnp.float32)

        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            missed = (network.bind(params, state.stats)(features) - batch.images) ** 2
            inside = batch.inside[..., None].astype(jnp.float32)
            count = jnp.maximum(3 * inside.sum(axis=(1, 2, 3)), 1)
            return losses.mean_over((missed * inside).sum(axis=(1, 2, 3)) / count, batch.real), {}

        return state.descended(update, loss_of)

    return System(init, step)


def structure(settings: Perception) -> Network:
    """The decoder with shapes in place of values; bind a state's params and stats to use it."""
    return states.abstract(lambda: _module(settings, jax.random.key(0)))


def _module(settings: Perception, key: PRNGKeyArray) -> decoder.Decoder:
    return decoder.decoder(settings.channels, stride=settings.stride, width=settings.width, key=key)

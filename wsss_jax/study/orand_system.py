"""OR→AND: a network that learns from any system's evidence what all systems agree on.

A baseline of the combiner: for each class one map goes in, the OR of the systems, and their AND is
the target. It sees neither the photograph nor saliency nor other classes, so it can only learn what
shape an agreement has. Source: ORANDNet (Park and Shim 2024), two systems, 1 - (1-a)(1-b) to a·b;
here any number. The loss is binary cross-entropy, ours.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.combiner import consensus as ops
from wsss_jax.ops import fuse
from wsss_jax.study import orand as models
from wsss_jax.train import state as states
from wsss_jax.train.optimizers import Optim, optimizer
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import Evidence, System


@dataclass(frozen=True)
class OrAnd:
    """Settings of the baseline.

    Attributes:
        width: channels of its two hidden layers.
        optim: how parameters are updated.
    """

    width: int = 16
    optim: Optim = field(
        default_factory=lambda: Optim("adamw", learning_rate=3e-3, schedule="cosine", clip=1.0)
    )


def make(settings: OrAnd, *, features: int, steps: int) -> System:
    """The learning problem on ``Evidence``; ``features``, of which it sees none, may be any."""
    network, update = structure(settings), optimizer(settings.optim, steps, lambda name: False)

    def init(key: Any) -> TrainState:
        return states.create(states.functional(models.build(settings.width, key)), update)

    def step(state: TrainState, batch: Evidence, key: Any) -> tuple[TrainState, dict[str, Array]]:
        either = _over_images(fuse.noisy_or, batch)
        both = _over_images(fuse.product, batch)
        real = batch.inside & batch.real[:, None, None]
        here = real[..., None] & batch.present[:, None, None]

        def loss_of(params: Any) -> Array:
            logits = network.bind(params, state.stats)(either, batch.inside)
            losses = jax.nn.softplus(logits) - both * logits
            count = jnp.maximum(here.sum().astype(losses.dtype), 1)
            return jnp.where(here, losses, 0).sum() / count

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        state = state.updated(update, loss, grads)
        return state, {"loss": loss, "skipped": state.skipped, "bad_in_a_row": state.in_a_row}

    return System(init, step)


def structure(settings: OrAnd) -> Network:
    """The network's structure, with shapes in place of values."""
    return states.abstract(lambda: models.build(settings.width, jax.random.key(0)))


def template(settings: OrAnd) -> TrainState:
    """The shape of a state; allocates nothing."""
    network, update = structure(settings), optimizer(settings.optim, 1, lambda name: False)
    return jax.eval_shape(
        lambda params, stats: states.create(network._replace(params=params, stats=stats), update),
        network.params,
        network.stats,
    )


def combine(network: Network, state: TrainState, evidence: Evidence) -> Float[Array, "b h w k"]:
    """What a trained network makes of the OR: maps whose maximum is 1, zero where not present."""
    either = _over_images(fuse.noisy_or, evidence)
    maps = jax.nn.sigmoid(network.bind(state.params, state.stats)(either, evidence.inside))
    here = evidence.inside[..., None] & evidence.present[:, None, None]
    return ops.normalised(jnp.where(here, maps, 0))


def _over_images(rule: Any, evidence: Evidence) -> Float[Array, "b h w k"]:
    """A closed form of all images; each system's maps in units of their own maximum."""
    b, s, h, w, k = evidence.scores.shape
    each = ops.normalised(evidence.scores.reshape(b * s, h, w, k)).reshape(b, s, h, w, k)
    maps = jax.vmap(rule)(each, evidence.available)
    return jnp.where(evidence.inside[..., None], maps, 0)

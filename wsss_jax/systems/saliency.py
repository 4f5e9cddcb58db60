"""Class-agnostic foreground by contrast (C2AM), and with hints from class maps (C2AM-H).

Sources: Xie et al. 2022 (CCAM) and David, Pedrini & Dias 2024 (P-NOC). Without hints nothing says
which of the two halves is the foreground; then the border of the images decides, afterwards. Hints
decide it while learning.

Where we differ: images keep their proportions on a canvas (theirs are squeezed into squares); the
polarity without hints is read off the running mean of all steps (theirs: the first epoch).
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from wsss_jax.errors import UserError
from wsss_jax.losses import contrast
from wsss_jax.models.foreground import Foreground
from wsss_jax.systems import on_backbone
from wsss_jax.systems.on_backbone import OnBackbone
from wsss_jax.train.optimizers import Optim
from wsss_jax.train.state import Network, TrainState
from wsss_jax.types import IGNORE, Batch, Leaf, System, Variables

LEVELS = 254
"""Hints travel as bytes beside the photograph: score × 254, and 255 outside of it."""

MOMENTUM = 0.1
"""Share of a batch in the running moments of the logits, BatchNorm's in PyTorch."""

EPSILON = 1e-5
"""Added to the variance of the logits."""

MARGIN = 1 / 7
"""Width of the border that tells polarity, of the grid's side (CCAM: 4 of 28 cells)."""


@dataclass(frozen=True)
class Contrast(OnBackbone):
    """Which network learns to tell foreground from background, and how.

    Attributes:
        decay: how fast less similar pairs lose weight, by rank.
        hint_weight: of the cross-entropy with hints; 0 for C2AM, 1 for C2AM-H.
        hint_threshold: scores from here on are hints (P-NOC: 0.4 for VOC, 0.3 for COCO).
        hint_smoothing: hinted cells have the target 1 less half of this.
        optim: how parameters are updated (CCAM: SGD of 0.001, practically without momentum, and
            the new layer no faster than the others).
    """

    decay: float = 0.25
    hint_weight: float = 0.0
    hint_threshold: float = 0.4
    hint_smoothing: float = 0.1
    optim: Optim = field(
        default_factory=lambda: Optim(learning_rate=1e-3, new_layers=1.0, momentum=0.0)
    )

    def __post_init__(self) -> None:
        if self.hint_weight < 0 or self.decay < 0:
            raise UserError(
                f"hint_weight {self.hint_weight}, decay {self.decay}: wanted them at least 0"
            )
        if not (0 < self.hint_threshold <= 1 and 0 <= self.hint_smoothing <= 1):
            raise UserError(
                f"hint_threshold {self.hint_threshold} must lie in (0, 1], hint_smoothing "
                f"{self.hint_smoothing} in [0, 1]"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContrastState:
    """The network's state, running mean and variance of its raw map, and of P at the borders."""

    network: TrainState
    mean: Leaf
    variance: Leaf
    border: Leaf


def make(settings: Contrast, *, steps: int) -> System:
    """Foreground by contrast as a problem of ``steps`` updates.

    With hints, ``Batch.masks`` hold them: score × LEVELS, 255 where there is none.
    """
    network, update = structure(settings), on_backbone.update_of(settings, steps)

    def init(key: PRNGKeyArray) -> ContrastState:
        return _start(on_backbone.start(settings, Foreground, steps, key))

    def step(
        state: ContrastState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[ContrastState, dict[str, Array]]:
        def loss_of(params: Variables) -> tuple[Array, dict[str, Array]]:
            module = network.bind(params, state.network.stats)
            features, raw = module(batch.images, batch.inside, rngs=key)
            return _loss(settings, features, raw, batch)

        (loss, seen), grads = jax.value_and_grad(loss_of, has_aux=True)(state.network.params)
        state = _moved(state, state.network.updated(update, loss, grads), seen)
        return state, {
            "loss": loss,
            "contrast": seen["contrast"],
            "hinted": seen["hinted"],
            "border": state.border,
            **state.network.counts,
        }

    return System(init, step)


def template(settings: Contrast) -> ContrastState:
    """The shape of the state that ``make(...).init`` gives; reads no weights, allocates nothing."""
    return jax.eval_shape(_start, on_backbone.template(settings, Foreground))


def structure(settings: Contrast) -> Network:
    """The network's structure, with shapes in place of values; nothing is read or allocated."""
    return on_backbone.structure(settings, Foreground)


def foreground(
    settings: Contrast, state: ContrastState, images: Array, inside: Bool[Array, "b H W"]
) -> Float[Array, "b h w"]:
    """Logits of the foreground on the grid of the output stride, their polarity set right.

    With hints the polarity was learned; without, it is that which has its foreground away from
    the borders.
    """
    module = structure(settings).bind(state.network.averaged, state.network.stats)
    raw = module(images, inside)[1]
    logits = (raw - state.mean) * jax.lax.rsqrt(state.variance + EPSILON)
    if settings.hint_weight > 0:
        return logits
    return jnp.where(state.border > 0.5, -logits, logits)


def on_cells(masks: Int[Array, "b H W"], stride: int) -> Float[Array, "b h w"]:
    """Hints as mean scores over the known pixels of each cell; 0 where none is known."""
    rows, columns = (-n % stride for n in masks.shape[1:])
    padded = jnp.pad(masks, ((0, 0), (0, rows), (0, columns)), constant_values=IGNORE)
    shape = (masks.shape[0], padded.shape[1] // stride, stride, -1, stride)
    blocks = padded.reshape(shape)
    known = blocks != IGNORE
    total = jnp.where(known, blocks, 0).sum(axis=(2, 4)).astype(jnp.float32) / LEVELS
    return total / jnp.maximum(known.sum(axis=(2, 4)).astype(jnp.float32), 1)


def _loss(
    settings: Contrast, features: Array, raw: Float[Array, "b h w"], batch: Batch
) -> tuple[Array, dict[str, Array]]:
    """The loss, and what the state and the log want to know of it."""
    stride = settings.output_stride
    cells = batch.inside[:, ::stride, ::stride] & batch.real[:, None, None]
    mean, variance = contrast.moments(raw, cells)
    logits = (raw - mean) * jax.lax.rsqrt(variance + EPSILON)
    share = jax.nn.sigmoid(logits)
    front, back = contrast.pooled(features, share, cells)
    difference = contrast.apart(front, back, batch.real, decay=settings.decay)
    hinted = jnp.zeros(())
    if settings.hint_weight > 0:
        hinted = contrast.hinted(
            logits,
            on_cells(batch.given_masks, stride),
            cells,
            threshold=settings.hint_threshold,
            smoothing=settings.hint_smoothing,
        )
    margin = max(1, round(MARGIN * min(cells.shape[1:])))
    seen = {
        "contrast": difference,
        "hinted": hinted,
        "mean": mean,
        "variance": variance,
        "border": contrast.border_mean(share, cells, margin),
    }
    return difference + settings.hint_weight * hinted, seen


def _moved(state: ContrastState, network: TrainState, seen: dict[str, Array]) -> ContrastState:
    """The state with its new network, and running values that a bad step leaves as they are."""
    first = state.network.step == 0
    fine = network.in_a_row == 0

    def moved(old: Array, name: str) -> Array:
        new = jnp.where(first, seen[name], (1 - MOMENTUM) * old + MOMENTUM * seen[name])
        return jnp.where(fine, new, old)

    return ContrastState(
        network,
        moved(state.mean, "mean"),
        moved(state.variance, "variance"),
        moved(state.border, "border"),
    )


def _start(network: TrainState) -> ContrastState:
    # With a dtype: a weak 0.5 would cost the step a second trace.
    half = jnp.asarray(0.5, jnp.float32)
    return ContrastState(network, jnp.zeros(()), jnp.ones(()), half)

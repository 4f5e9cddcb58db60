"""The combiner: a network that says, cell by cell, which system to trust for which class.

One small network runs on every (image, present class) slot, and every system goes through the same
encoder before a mean and a maximum over them. So it takes any number of systems and classes in
any order, with any of them missing. What it gives is

    logit of class c = Σ_s softmax_s(gate) · calibrated logit of system s + bounded residual,
    logit of background = a bounded term of its own (0 at the start),

softmax over background and the present classes. Gate, residual and background start at zero and the
calibration at the identity, so that the untrained combiner is the log-opinion pool of its systems:
for each class, its share beside background is exactly ``ops.fuse.log_opinion_pool``. Source: gates
over segmenters as in VoteNet (Ding et al. 2019), sets as in Deep Sets (Zaheer et al. 2017).

Where systems are put together, one that hardly agrees with any other counts for less
(``combiner.consensus.heard``): so noise has hardly a part in it, known from the training or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.combiner import consensus as ops
from wsss_jax.config import since
from wsss_jax.errors import UserError
from wsss_jax.models.layers import conv3x3
from wsss_jax.ops.affinity import Affinity
from wsss_jax.ops.fuse import LOGIT_FLOOR
from wsss_jax.types import Evidence

GROUPS = (
    "own",
    "other",
    "consensus",
    "context",
    "saliency",
    "edge",
    "image",
    "features",
    "global",
    "probe",
)
"""Groups of inputs that can be switched off by name."""


@dataclass(frozen=True)
class CombinerShape:
    """What the network sees and how large it is.

    Attributes:
        groups: names of GROUPS that it sees.
        width: channels of the trunk; the encoder of one system has half of them.
        residual: largest absolute value of what it may add to a class's logit; 0 leaves a pure
            mixture of the systems.
        walk_steps: length of the random walk among the context inputs, in steps.
        background: whether a cell may belong to no class; False for data sets without background.
        cut_walks: whether walks, its own and those that teach it, are along colours and cut by
            edges where there are any; False: along colours alone, edges are channels and no more.
    """

    groups: tuple[str, ...] = GROUPS
    width: int = 32
    residual: float = 6.0
    walk_steps: int = 16
    background: bool = True
    cut_walks: bool = since(True, False)

    def __post_init__(self) -> None:
        unknown = [name for name in self.groups if name not in GROUPS]
        if unknown or "own" not in self.groups:
            raise UserError(
                f"combiner inputs {', '.join(self.groups)}; wanted own and any of "
                f"{', '.join(GROUPS[1:])}"
            )


class Combined(NamedTuple):
    """What the combiner says: logits and gates are float32.

    logits: (b,h,w,1+k), background first, -inf on slots that are not present. gates: (b,s,h,w,k),
    each system's share of trust, 0 where it does not know the class; they sum to 1 over systems.
    """

    logits: Any
    gates: Any

    def probabilities(self) -> Float[Array, "b h w n"]:
        """Softmax over background and the present classes."""
        return jax.nn.softmax(self.logits, axis=-1)


class Combiner(nnx.Module):
    """See the module's own text. ``features`` is how many frozen channels the evidence has."""

    def __init__(self, shape: CombinerShape, *, features: int = 0, rngs: nnx.Rngs):
        if not features:  # which the probe is learned from
            rest = tuple(name for name in shape.groups if name != "probe")
            shape = replace(shape, groups=rest)
        self.shape = shape
        self.frozen = features if "features" in shape.groups else 0
        half = shape.width // 2
        inner = shape.width
        self.scale, self.offset = nnx.Param(jnp.ones(1)), nnx.Param(jnp.zeros(1))
        per_system = _channels(_PER_SYSTEM, shape)
        self.encode = _Linear(per_system, half, rngs=rngs)
        self.encode_more = _Linear(half, half, rngs=rngs)
        shared = 1 + _channels(_SHARED, shape) + (1 if self.frozen else 0)
        self.mix = _Linear(2 * half + shared, inner, rngs=rngs)
        self.mix_more = _Linear(inner, inner, rngs=rngs)
        self.coarse = nnx.List(_Conv(inner, rngs=rngs) for _ in range(3))
        self.join = _Linear(2 * inner, inner, rngs=rngs)
        self.ask, self.ask_always = _Zero(inner, half), nnx.Param(jnp.zeros(half))
        # Straight from the inputs too, so that what a logistic regression can learn is learnt fast.
        self.ask_direct, self.add_direct = _Zero(per_system, 1), _Zero(shared, 2)
        self.add = _Zero(inner, 2)

    def __call__(self, evidence: Evidence, available: Bool[Array, "b s k"]) -> Combined:
        """Combine the systems that ``available`` names (a part of ``evidence.available``)."""
        logits = self._calibrated(evidence.scores)
        seen = _Seen(evidence, available, self.shape, self.frozen)
        inputs, shared = seen.per_system(logits), seen.shared()  # (b,s,h,w,k,.), (b,h,w,k,.)
        per_system = jax.nn.relu(self.encode_more(jax.nn.relu(self.encode(inputs))))
        trunk = jnp.concatenate([_pooled(per_system, available, seen.heard), shared], axis=-1)
        trunk = self._trunk(trunk, evidence.inside)
        # The trunk asks, each system answers: what is the same for all systems would cancel.
        asked = self.ask(trunk)[:, None] + self.ask_always[...][None, None, None, None, None]
        gate = (per_system * asked).sum(axis=-1) + self.ask_direct(inputs)[..., 0]
        known = jnp.broadcast_to(available[:, :, None, None, :], gate.shape)
        gates = jnp.where(known, jax.nn.softmax(jnp.where(known, gate, -1e9), axis=1), 0)
        mixed = (gates * logits).sum(axis=1)  # (b,h,w,k)
        added = self.add(trunk) + self.add_direct(shared)
        added = self.shape.residual * jnp.tanh(added / max(self.shape.residual, 1.0))
        present = evidence.present & available.any(axis=1)
        here = present[:, None, None, :]
        count = jnp.maximum(present.sum(axis=-1), 1).astype(mixed.dtype)[:, None, None]
        ground = jnp.where(here, added[..., 1], 0).sum(axis=-1) / count
        if not self.shape.background:
            ground = jnp.full_like(ground, -jnp.inf)
        classes = jnp.where(here, mixed + added[..., 0], -jnp.inf)
        return Combined(jnp.concatenate([ground[..., None], classes], axis=-1), gates)

    def _calibrated(self, scores: Float[Array, "b s h w k"]) -> Float[Array, "b s h w k"]:
        sure = jnp.clip(scores, LOGIT_FLOOR, 1 - LOGIT_FLOOR)
        return self.scale[...][0] * (jnp.log(sure) - jnp.log1p(-sure)) + self.offset[...][0]

    def _trunk(
        self, x: Float[Array, "b h w k c"], inside: Bool[Array, "b h w"]
    ) -> Float[Array, "b h w k n"]:
        """Pointwise layers, and three convolutions on a grid of half and of a quarter."""
        x = jax.nn.relu(self.mix(x))
        x = x + jax.nn.relu(self.mix_more(x))
        b, h, w, k, c = x.shape
        flat = x.transpose(0, 3, 1, 2, 4).reshape(b * k, h, w, c)
        real = jnp.repeat(inside, k, axis=0)
        half, real_half = _halved(flat, real)
        half = half + jax.nn.relu(self.coarse[0](half, real_half))
        quarter, real_quarter = _halved(half, real_half)
        quarter = quarter + jax.nn.relu(self.coarse[1](quarter, real_quarter))
        half = half + _doubled(quarter, half.shape)
        half = half + jax.nn.relu(self.coarse[2](half, real_half))
        wide = _doubled(half, flat.shape)
        flat = jax.nn.relu(self.join(jnp.concatenate([flat, wide], axis=-1)))
        return flat.reshape(b, k, h, w, c).transpose(0, 2, 3, 1, 4)


def build(shape: CombinerShape, *, features: int, key: Any) -> Combiner:
    """A combiner at its start; ``features`` is how many frozen channels the evidence has."""
    return Combiner(shape, features=features, rngs=nnx.Rngs(key))


class _Seen:
    """The input channels, from the systems that count and from them alone."""

    def __init__(
        self, evidence: Evidence, available: Bool[Array, "b s k"], shape: CombinerShape, frozen: int
    ):
        self.evidence, self.available, self.shape, self.frozen = evidence, available, shape, frozen
        self.real = evidence.inside[..., None].astype(jnp.float32)
        self.agreed = ops.agreement(evidence.scores, available, evidence.inside)
        self.heard = ops.heard(self.agreed)
        stats = ops.statistics(evidence.scores, available, self.heard)
        self.stats = stats * self.real[..., None]
        self.mean = self.stats[..., 0]

    def per_system(self, logits: Float[Array, "b s h w k"]) -> Float[Array, "b s h w k c"]:
        """Channels of one system and class at a time."""
        e, scores = self.evidence, self.evidence.scores
        b, s, h, w, k = scores.shape
        rows = scores.transpose(0, 2, 3, 1, 4).reshape(b, h, w, s * k)
        mean = jnp.broadcast_to(self.mean[:, None], scores.shape)

        def near(sigma: float) -> Array:
            out = ops.blurred(rows, e.inside, sigma=sigma)
            return out.reshape(b, h, w, s, k).transpose(0, 3, 1, 2, 4)

        present = jnp.broadcast_to(e.present[:, None, None, None], scores.shape)
        made = {
            "own": lambda: [jnp.ones_like(scores), logits / 4, scores, self._standard(logits)],
            "other": lambda: [ops.others(scores, present)],
            "consensus": lambda: [mean, scores - mean],
            "context": lambda: [near(2.0), near(6.0)],
            "global": lambda: [self._wide(self.agreed), self._wide(jnp.tanh(e.peak / 10))],
        }
        parts = [part for name in _PER_SYSTEM if name in self.shape.groups for part in made[name]()]
        return jnp.stack(parts, axis=-1)

    def shared(self) -> Float[Array, "b h w k c"]:
        """Channels that all systems of a class share."""
        e, mean = self.evidence, self.mean
        made = {
            "other": lambda: [
                ops.others(mean, jnp.broadcast_to(e.present[:, None, None], mean.shape))
            ],
            "consensus": lambda: [self.stats[..., i] for i in range(4)],
            "context": lambda: [
                ops.blurred(mean, e.inside, sigma=2.0),
                ops.blurred(mean, e.inside, sigma=6.0),
                self._walked(mean),
            ],
            "saliency": self._saliency,
            "edge": self._edge,
            "image": self._image,
            "global": self._global,
            "probe": self._probe,
        }
        parts = [part for name in _SHARED if name in self.shape.groups for part in made[name]()]
        if self.frozen:
            parts.append(ops.ridge(e.features, mean, e.inside))
        return jnp.stack([jnp.ones_like(mean), *parts], axis=-1) * self.real[..., None]

    def _saliency(self) -> list[Array]:
        e = self.evidence
        salient = jnp.where(e.cues[:, 0, None, None], e.saliency, 0.5)[..., None]
        near = ops.blurred(salient, e.inside, sigma=3.0)
        weighted = self.mean * (0.5 + 0.5 * salient)
        walked = ops.normalised(self._walked(ops.normalised(weighted)))
        return [*map(self._each, (salient, near)), weighted, walked]

    def _edge(self) -> list[Array]:
        e = self.evidence
        edges = jnp.where(e.cues[:, 1, None, None], e.edges, 0)[..., None]
        return [*map(self._each, (edges, ops.blurred(edges, e.inside, sigma=2.0)))]

    def _image(self) -> list[Array]:
        e = self.evidence
        strong = jnp.square(ops.normalised(self.mean))
        ground = jnp.square(1 - ops.normalised(self.mean).max(axis=-1, keepdims=True)) * self.real
        usual = ops.likelihood(e.images, strong * self.real, ground)
        colours = [self._each(e.images[..., i : i + 1] - 0.5) for i in range(3)]
        return [*colours, usual, ops.blurred(usual, e.inside, sigma=1.5)]

    def _global(self) -> list[Array]:
        size = jnp.maximum(self.real.sum(axis=(1, 2)), 1)
        area = (jax.nn.sigmoid(20 * (self.mean - 0.4)) * self.real).sum(axis=(1, 2)) / size
        mass = self.mean.sum(axis=(1, 2)) / size
        count = self.available.sum(axis=1).astype(jnp.float32)
        agreed = self.agreed.sum(axis=1) / jnp.maximum(count, 1)
        number = jnp.broadcast_to(
            self.evidence.present.sum(axis=-1, keepdims=True).astype(jnp.float32) / 4, area.shape
        )
        values = (jnp.sqrt(area), mass, agreed, 1 / jnp.maximum(count, 1), number)
        return [jnp.broadcast_to(value[:, None, None], self.mean.shape) for value in values]

    def _probe(self) -> list[Array]:
        e = self.evidence
        said = jnp.where(e.cues[:, 2, None, None, None], e.probe, 0.5)
        sure = jnp.clip(said, LOGIT_FLOOR, 1 - LOGIT_FLOOR)
        logit = jnp.log(sure) - jnp.log1p(-sure)
        return [said, logit / 4, ops.probed(self._walked(self.mean), e)]

    def _walked(self, maps: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        return ops.spread(maps, self._joined, steps=self.shape.walk_steps)

    @cached_property
    def _joined(self) -> Affinity:
        """Made once for all maps that walk."""
        cut = self.shape.cut_walks and "edge" in self.shape.groups
        return ops.joined(self.evidence, use_edges=cut)

    def _standard(self, logits: Float[Array, "b s h w k"]) -> Float[Array, "b s h w k"]:
        """Each map in its own units: what a system's scale and contrast cannot change."""
        real = self.real[:, None]
        count = jnp.maximum(real.sum(axis=(2, 3), keepdims=True), 1)
        mean = (logits * real).sum(axis=(2, 3), keepdims=True) / count
        power = (jnp.square(logits - mean) * real).sum(axis=(2, 3), keepdims=True) / count
        return (logits - mean) / jnp.sqrt(power + 0.01) * real

    def _each(self, maps: Float[Array, "b h w 1"]) -> Float[Array, "b h w k"]:
        return jnp.broadcast_to(maps, self.mean.shape)

    def _wide(self, values: Float[Array, "b s k"]) -> Float[Array, "b s h w k"]:
        return jnp.broadcast_to(values[:, :, None, None, :], self.evidence.scores.shape)


_PER_SYSTEM = MappingProxyType({"own": 4, "other": 1, "consensus": 2, "context": 2, "global": 2})
"""Channels per system and class that each group gives."""

_SHARED = MappingProxyType(
    {
        "other": 1,
        "consensus": 4,
        "context": 3,
        "saliency": 4,
        "edge": 2,
        "image": 5,
        "global": 5,
        "probe": 3,
    }
)
"""Channels per class that each group gives."""


class _Linear(nnx.Module):
    """A layer over the last axis, He-normal start.

    No layer has a bias: inputs hold a channel of ones, and XLA's CPU backend needs longer for the
    gradient of one bias than for both matrix products around it.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        start = nnx.initializers.he_normal()
        self.kernel = nnx.Param(start(rngs.params(), (inputs, outputs)))

    def __call__(self, x: Float[Array, "*b k"]) -> Float[Array, "*b n"]:
        kernel = self.kernel[...]
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])


class _Zero(nnx.Module):
    """A layer that starts at zero."""

    def __init__(self, inputs: int, outputs: int):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs)))

    def __call__(self, x: Float[Array, "*b k"]) -> Float[Array, "*b n"]:
        return x @ self.kernel[...]


class _Conv(nnx.Module):
    """3×3 on real cells."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        start = nnx.initializers.he_normal()
        self.kernel = nnx.Param(start(rngs.params(), (3, 3, channels, channels)))

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Bool[Array, "b h w"]
    ) -> Float[Array, "b h w k"]:
        kept = jnp.where(inside[..., None], x, 0)
        return conv3x3(kept, self.kernel[...])


def _channels(table: MappingProxyType[str, int], shape: CombinerShape) -> int:
    return sum(count for name, count in table.items() if name in shape.groups)


def _pooled(
    x: Float[Array, "b s h w k c"],
    available: Bool[Array, "b s k"],
    weights: Float[Array, "b s k"],
) -> Float[Array, "b h w k n"]:
    """Mean and maximum over the systems that know the class, side by side; x is not negative."""
    parts = ops.shares(weights, available)
    share, trust = (part[:, :, None, None, :, None] for part in parts)
    return jnp.concatenate([(share * x).sum(axis=1), (trust * x).max(axis=1)], axis=-1)


def _halved(
    x: Float[Array, "b h w c"], inside: Bool[Array, "b h w"]
) -> tuple[Float[Array, "b h2 w2 c"], Bool[Array, "b h2 w2"]]:
    """Means over the real cells of 2 × 2 blocks."""
    b, h, w, c = x.shape
    down, across = -(-h // 2), -(-w // 2)
    room = ((0, 0), (0, 2 * down - h), (0, 2 * across - w))
    weights = jnp.pad(inside, room).reshape(b, down, 2, across, 2)
    values = jnp.pad(x, (*room, (0, 0))).reshape(b, down, 2, across, 2, c)
    total = jnp.where(weights[..., None], values, 0).sum(axis=(2, 4))
    count = jnp.maximum(weights.sum(axis=(2, 4)), 1).astype(x.dtype)
    return total / count[..., None], weights.any(axis=(2, 4))


def _doubled(x: Float[Array, "b h w c"], shape: Sequence[int]) -> Float[Array, "b h2 w2 c"]:
    """Each cell four times, cut to ``shape``."""
    wide = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return wide[:, : shape[1], : shape[2]]

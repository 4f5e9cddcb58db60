"""FullGrad (Srinivas & Fleuret 2019): the score shared out between the input and all biases.

A score is gradient × input plus gradient × bias, summed over all biases of the network, which lie
on the grids of its layers. The map adds up the absolute parts of all of them. Biases are found by
``equations.decompose`` in any network: those of convolutions, what a frozen BatchNorm adds (its
bias less scaled mean), and what the network takes from its images to normalise them, which the
reference codes count as part of the input.

``FULL_GRADS`` names the ways the parts are rescaled. ``completeness`` tells whether they add up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.explain import equations
from wsss_jax.explain.contract import (
    Images,
    Labels,
    Maps,
    check_labels,
    logits_of,
    over_labels,
    size_of,
)
from wsss_jax.explain.equations import Rest
from wsss_jax.ops import images as image_ops
from wsss_jax.types import Scorer, Size

Part = Float[Array, "b h w k"]
Joined = Float[Array, "b h w"]


def by_layer(part: Part) -> Part:
    """(P - min) / (max + 1e-6) over a layer's whole block of one image, after subtracting min."""
    return _stretched(part, (1, 2, 3), 1e-6)


def by_channel(part: Part) -> Part:
    """The same over the grid, for every channel by itself, with 1e-7."""
    return _stretched(part, (1, 2), 1e-7)


def total(part: Part) -> Joined:
    """The sum over channels."""
    return part.sum(axis=-1)


def average(part: Part) -> Joined:
    """The mean over channels."""
    return part.mean(axis=-1)


def is_added(rest: Rest) -> bool:
    """Is it an array that the network adds? Those are the biases that the authors' code reads."""
    return rest.equation in equations.ADDITIONS


@dataclass(frozen=True)
class FullGrad:
    """How the parts of a score become a map; the fields are functions of this module.

    scale: absolute parts (b,h,w,k) of one layer to [0, 1]. join: that to (b,h,w). counts: which
    biases have a part in the map. align_corners: how layers are enlarged (``ops.images.resize``).
    """

    scale: Callable[[Array], Array] = by_layer
    join: Callable[[Array], Array] = total
    counts: Callable[[Rest], bool] = is_added
    align_corners: bool = True


FULL_GRADS: MappingProxyType[str, FullGrad] = MappingProxyType(
    {
        "authors_code": FullGrad(),
        "pytorch_grad_cam": FullGrad(scale=by_channel, align_corners=False),
        "keras_explainable": FullGrad(scale=by_channel, join=average, align_corners=False),
    }
)
"""Post-processing as its authors' code and two other sources have it.

pytorch-grad-cam ends with a min-max over the map (``normalise.stretch``); keras-explainable sums
the gradients of all classes into one map, which ours does not.
"""


def full_grad(
    scorer: Scorer, images: Images, labels: Labels, *, settings: FullGrad | None = None
) -> Maps:
    """The absolute parts of input and biases, rescaled layer by layer and summed (equation 7).

    Maps are of pixels. ``settings`` is one of ``FULL_GRADS`` (None: the authors' code). Biases that
    do not lie on a grid (of the last linear layer, of a transformer's tokens) have no part in the
    map. Memory follows all biased layers at once; one gradient per label class.
    """
    settings = settings or FullGrad()
    logits, rests, pull_back = equations.decompose(partial(logits_of, scorer), images)
    check_labels(labels, *logits.shape)
    enlarged = partial(_enlarged, size=size_of(images), settings=settings)

    def explain(chosen: Float[Array, "b c"]) -> Joined:
        gradient, at_rests = pull_back(chosen)
        parts = [enlarged(gradient * images)]
        for rest, at_rest in zip(rests, at_rests, strict=True):
            if _on_grid(rest, images) and settings.counts(rest):
                parts.append(enlarged(equations.weighed(rest.value, at_rest)))
        return jnp.stack(parts).sum(axis=0)

    return over_labels(labels, explain)


class Completeness(NamedTuple):
    """What a score consists of, per image and class (b,c).

    input: gradient × image. added: gradient × every array that the network adds. implied: the same
    of what its other equations add to their linear part: zero for convolutions, ReLU, pooling and
    frozen norms; caps (ReLU6), gates, attention and norms of the image itself have some.
    """

    logits: Array
    input: Array
    added: Array
    implied: Array

    @property
    def gap(self) -> Float[Array, "b c"]:
        """All parts less the score: zero but for rounding."""
        return self.input + self.added + self.implied - self.logits


def completeness(scorer: Scorer, images: Images) -> Completeness:
    """The parts of every class score of every image, summed (equation 3).

    One image and one class at a time, so memory is that of a single gradient.
    """

    def of_image(image: Float[Array, "H W 3"]) -> Completeness:
        one = image[None]
        logits, rests, pull_back = equations.decompose(partial(logits_of, scorer), one)

        def of_class(chosen: Float[Array, " c"]) -> tuple[Array, Array, Array]:
            gradient, at_rests = pull_back(chosen[None])
            sums = {True: jnp.zeros(()), False: jnp.zeros(())}
            for rest, at_rest in zip(rests, at_rests, strict=True):
                sums[is_added(rest)] += equations.weighed(rest.value, at_rest).sum()
            return (gradient * one).sum(), sums[True], sums[False]

        return Completeness(logits[0], *jax.lax.map(of_class, jnp.eye(logits.shape[1])))

    return jax.lax.map(of_image, images)


def _stretched(part: Part, axes: tuple[int, ...], epsilon: float) -> Part:
    lifted = part - part.min(axis=axes, keepdims=True)
    return lifted / (lifted.max(axis=axes, keepdims=True) + epsilon)


def _enlarged(part: Part, *, size: Size, settings: FullGrad) -> Float[Array, "b H W"]:
    # Resizing is linear, so channels are joined before it and not after, as the sources do.
    joined = settings.join(settings.scale(jnp.abs(part)))[..., None]
    return image_ops.resize(joined, size, align_corners=settings.align_corners)[..., 0]


def _on_grid(rest: Rest, images: Images) -> bool:
    return rest.value.ndim == 4 and rest.value.shape[0] == images.shape[0]

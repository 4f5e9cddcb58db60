"""Closed-form fusion: the score maps of several systems on one image to one map per class.

Every rule takes ``scores (s,h,w,k)`` in [0, 1] and ``available (s,k)``, and returns ``(h,w,k)`` in
[0, 1]. A system that does not know a class is left out for it: its numbers are never read, not even
NaN. A class that no system knows is 0. No rule depends on the order of the systems, and no rule
looks at a pixel's neighbours.

Rules that count pixels to judge the systems (``COUNTING``) also take ``inside (h,w)``, which marks
real pixels, so that padding changes nothing. Not here: thresholds, and combiners that learn.

Which transform n identical maps x undergo: mean, median, max, min, weighted and agreement mean x;
log-opinion pool x clipped to [1e-3, 1 - 1e-3]; product x ** n; noisy-OR 1 - (1 - x) ** n; majority
vote, STAPLE and Dawid-Skene 0 or 1 (the latter two nearly).
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wsss_jax.config import lookup
from wsss_jax.ops.raters import VOTE_THRESHOLD, dawid_skene, staple, votes

LOGIT_FLOOR = 1e-3
"""Scores are kept this far from 0 and 1 in the log-opinion pool, or one 0 would be a veto."""

_TINY = 1e-12


def mean(scores: Float[Array, "s h w k"], available: Bool[Array, "s k"]) -> Float[Array, "h w k"]:
    """Mean over the systems that know the class."""
    known = jnp.where(available[:, None, None, :], scores, 0)
    return known.sum(axis=0) / _count(available, scores)


def median(scores: Float[Array, "s h w k"], available: Bool[Array, "s k"]) -> Float[Array, "h w k"]:
    """Median over the systems that know the class; the mean of the middle two of an even number."""
    ordered = jnp.sort(jnp.where(available[:, None, None, :], scores, jnp.inf), axis=0)
    count = available.sum(axis=0)[None, None, None]
    low = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0) // 2, axis=0)
    high = jnp.take_along_axis(ordered, jnp.minimum(count // 2, len(scores) - 1), axis=0)
    return jnp.where(available.any(axis=0)[None, None], (low[0] + high[0]) / 2, 0)


def maximum(
    scores: Float[Array, "s h w k"], available: Bool[Array, "s k"]
) -> Float[Array, "h w k"]:
    """Highest score of any system: fuzzy OR."""
    return jnp.where(available[:, None, None, :], scores, 0).max(axis=0)


def minimum(
    scores: Float[Array, "s h w k"], available: Bool[Array, "s k"]
) -> Float[Array, "h w k"]:
    """Lowest score of all systems: fuzzy AND."""
    lowest = jnp.where(available[:, None, None, :], scores, 1).min(axis=0)
    return jnp.where(available.any(axis=0)[None, None], lowest, 0)


def product(
    scores: Float[Array, "s h w k"], available: Bool[Array, "s k"]
) -> Float[Array, "h w k"]:
    """Product of scores: AND of independent systems. It falls with every system added.

    Source: the target of ORANDNet (Park and Shim 2024), for any number of systems.
    """
    together = jnp.where(available[:, None, None, :], scores, 1).prod(axis=0)
    return jnp.where(available.any(axis=0)[None, None], together, 0)


def noisy_or(
    scores: Float[Array, "s h w k"], available: Bool[Array, "s k"]
) -> Float[Array, "h w k"]:
    """1 - product of (1 - score): OR of independent systems. It rises with every system added."""
    return 1 - jnp.where(available[:, None, None, :], 1 - scores, 1).prod(axis=0)


def log_opinion_pool(
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
    *,
    floor: float = LOGIT_FLOOR,
) -> Float[Array, "h w k"]:
    """Sigmoid of the mean logit: the normalised geometric mean of yes and no probabilities.

    Scores are clipped to [floor, 1 - floor] first, so the result stays in that range too.
    """
    sure = jnp.clip(jnp.where(available[:, None, None, :], scores, 0.5), floor, 1 - floor)
    logits = jnp.log(sure) - jnp.log1p(-sure)
    pooled = jax.nn.sigmoid(mean(logits, available))
    return jnp.where(available.any(axis=0)[None, None], pooled, 0)


def majority_vote(
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
    *,
    threshold: float = VOTE_THRESHOLD,
) -> Float[Array, "h w k"]:
    """Share of the systems that name the class, each at most one class per pixel.

    A system names its highest class if that is above ``threshold``, else background; equal highest
    scores are a vote for each. A strict majority is a share above 0.5; two classes may tie, and
    an argmax then takes the first.
    """
    named = votes(scores, available, threshold=threshold).astype(scores.dtype)
    return mean(named, available)


def weighted_mean(
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
    *,
    weights: Float[Array, " s"] | Float[Array, "s k"] | None = None,
) -> Float[Array, "h w k"]:
    """Mean with weights >= 0 per system, or per system and class; equal ones by default.

    Weights are divided by their sum over the systems that know the class, so any scale will do.
    Where that sum is 0 the weights say nothing and the plain mean is taken.
    """
    if weights is None:
        return mean(scores, available)
    by_class = weights[:, None] if weights.ndim == 1 else weights
    by_class = jnp.where(available, by_class, 0)
    equal = available.astype(scores.dtype)
    by_class = jnp.where(by_class.sum(axis=0, keepdims=True) > 0, by_class, equal)
    share = by_class / jnp.maximum(by_class.sum(axis=0, keepdims=True), _TINY)
    known = jnp.where(available[:, None, None, :], scores, 0)
    return (known * share[:, None, None, :]).sum(axis=0)


def agreement_mean(
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
    inside: Bool[Array, "h w"] | None = None,
) -> Float[Array, "h w k"]:
    """Mean weighted by how far each system agrees with the others on this image."""
    weights = agreement_weights(scores, available, inside)
    return weighted_mean(scores, available, weights=weights)


def agreement_weights(
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
    inside: Bool[Array, "h w"] | None = None,
) -> Float[Array, "s k"]:
    """Weights in [0, 1] without any truth: correlation of each map with the mean of the others.

    Pearson over the pixels, negative ones as 0. Correlation ignores scale and offset, so a system
    with other units is not punished, but noise and constant maps are. The weight is 0 where a
    system does not know the class, and 1 for each that does where none agrees with any other (one
    system alone included). Of two systems both get the same weight. Average over many images for
    weights per system and class that are less noisy.
    """
    knows = available[:, None, None, :]
    known = jnp.where(knows, scores, 0)
    others = known.sum(axis=0, keepdims=True) - known
    others = others / jnp.maximum(_count(available, scores) - 1, 1)[None]
    real = jnp.ones(scores.shape[1:3], bool) if inside is None else inside
    first, second = (_centred(maps, real) for maps in (known, others))
    together = (first * second).sum(axis=(1, 2))
    power = (first**2).sum(axis=(1, 2)) * (second**2).sum(axis=(1, 2))
    # Below this a map is constant up to rounding, and its correlation is rounding too.
    varies = power > _TINY
    agreement = jnp.where(varies, together / jnp.sqrt(jnp.where(varies, power, 1)), 0)
    weights = jnp.where(available, jnp.clip(agreement, 0, 1), 0)
    equal = available.astype(scores.dtype)
    return jnp.where((weights > 0).any(axis=0, keepdims=True), weights, equal)


def with_saliency(
    scores: Float[Array | np.ndarray, "h w k"], saliency: Float[Array | np.ndarray, "h w"]
) -> Float[Array | np.ndarray, "h w k"]:
    """Scores times (0.5 + 0.5 saliency), saliency in [0, 1]: what does not stand out is halved.

    Half, not zero, because saliency networks miss whole objects. Divide each
    class by its maximum afterwards where a fixed threshold follows.
    """
    return scores * (0.5 + 0.5 * saliency)[..., None]


POINTWISE: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "mean": mean,
        "median": median,
        "max": maximum,
        "min": minimum,
        "product": product,
        "noisy_or": noisy_or,
        "log_opinion_pool": log_opinion_pool,
        "majority_vote": majority_vote,
        "weighted_mean": weighted_mean,
    }
)
"""Rules of which each pixel's result depends on that pixel alone."""

COUNTING: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {"agreement_mean": agreement_mean, "staple": staple, "dawid_skene": dawid_skene}
)
"""Rules that judge the systems by all pixels of the image, and so must know which are real."""

FUSIONS: Mapping[str, Callable[..., Array]] = MappingProxyType({**POINTWISE, **COUNTING})
"""All closed-form rules: (scores, available) to maps."""


def apply(
    rule: str, scores: Float[np.ndarray, "s h w k"], available: Bool[np.ndarray, "_ _"]
) -> Float[np.ndarray, "h w k"]:
    """One rule with its defaults on host arrays, compiled for few shapes.

    Photographs have hundreds of sizes. No rule looks at neighbours, so pixels are laid in a row
    and padded to one of two lengths per power of two, and classes to a power of two; the padding
    changes nothing. Raises ValueError for an unknown rule or shapes that do not fit.
    """
    lookup(FUSIONS, rule, "fusion rule")
    systems, height, width, classes = scores.shape
    if available.shape != (systems, classes):
        raise ValueError(
            f"available has shape {available.shape} for {systems} systems and {classes} classes; "
            "give one flag for each pair"
        )
    if not classes:
        return np.zeros((height, width, 0), np.float32)
    pixels, wide = height * width, _bucket(height * width)
    slots = 1 << (classes - 1).bit_length()
    padded = np.zeros((systems, 1, wide, slots), np.float32)
    padded[:, 0, :pixels, :classes] = scores.reshape(systems, pixels, classes)
    known = np.zeros((systems, slots), bool)
    known[:, :classes] = available
    inside = (np.arange(wide) < pixels)[None]
    fused = np.asarray(_compiled(padded, known, inside, rule=rule))
    return fused[0, :pixels, :classes].reshape(height, width, classes)


@partial(jax.jit, static_argnames="rule")
def _compiled(
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
    inside: Bool[Array, "h w"],
    *,
    rule: str,
) -> Float[Array, "h w k"]:
    if rule in COUNTING:
        return COUNTING[rule](scores, available, inside)
    return POINTWISE[rule](scores, available)


def _bucket(pixels: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, …, so at most half as much again is computed."""
    power = 1 << max(pixels - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and pixels <= power * 3 // 4 else power


def _count(available: Bool[Array, "s k"], scores: Float[Array, "s h w k"]) -> Float[Array, "1 1 k"]:
    """How many systems know each class, at least 1 so that it can divide."""
    return jnp.maximum(available.sum(axis=0), 1).astype(scores.dtype)[None, None]


def _centred(maps: Float[Array, "s h w k"], real: Bool[Array, "h w"]) -> Float[Array, "s h w k"]:
    """Maps less their mean over real pixels, 0 elsewhere."""
    here = real[None, :, :, None]
    total = jnp.where(here, maps, 0).sum(axis=(1, 2), keepdims=True)
    return jnp.where(here, maps - total / jnp.maximum(real.sum().astype(maps.dtype), 1), 0)

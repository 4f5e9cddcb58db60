"""What a combiner looks at beside the scores themselves: agreement, surroundings, appearance.

Everything is computed for one set of systems, so that leaving a system out leaves no trace of it.
Arrays are those of ``types.Evidence``: b images, s systems, an (h,w) grid, k class slots. Cells
that are not ``inside`` are zero in every result. Nothing here is learned.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wsss_jax.ops import affinity, fuse, walk
from wsss_jax.ops.affinity import Affinity
from wsss_jax.types import Evidence

_TINY = 1e-6


def statistics(
    scores: Float[Array, "b s h w k"],
    available: Bool[Array, "b s k"],
    weights: Float[Array, "b s k"] | None = None,
) -> Float[Array, "b h w k 4"]:
    """Mean, maximum, minimum and standard deviation over the systems that know the class.

    weights: >= 0, of each system (``shares``); all the same if None. They share out mean and
    deviation; in maximum and minimum, a system counts as far as its weight reaches the largest one.
    """
    known = available[:, :, None, None, :]
    equal = jnp.ones(available.shape, scores.dtype) if weights is None else weights
    share, trust = (part[:, :, None, None, :] for part in shares(equal, available))
    seen = jnp.where(known, scores, 0)
    mean = (share * seen).sum(axis=1)
    spread = (share * jnp.where(known, jnp.square(scores - mean[:, None]), 0)).sum(axis=1)
    highest = (trust * seen).max(axis=1)
    lowest = 1 - (trust * jnp.where(known, 1 - scores, 0)).max(axis=1)
    lowest = jnp.where(available.any(axis=1)[:, None, None, :], lowest, 0)
    return jnp.stack([mean, highest, lowest, jnp.sqrt(spread + _TINY)], axis=-1)


def shares(
    weights: Float[Array, "b s k"], available: Bool[Array, "b s k"]
) -> tuple[Float[Array, "b s k"], Float[Array, "b s k"]]:
    """Weights of the systems that know the class: with the sum 1, and with the maximum 1.

    0 for those that do not, whose weights are not read.
    """
    known = jnp.where(available, weights, 0.0)
    total, largest = (reduce(known, axis=1, keepdims=True) for reduce in (jnp.sum, jnp.max))
    return known / jnp.maximum(total, _TINY), known / jnp.maximum(largest, _TINY)


def others(maps: Float[Array, "*b k"], present: Bool[Array, "*b k"]) -> Float[Array, "*b k"]:
    """For each class the highest score of any other present class of the image, else 0."""
    count = maps.shape[-1]
    if count == 1:
        return jnp.zeros_like(maps)
    values = jnp.where(present, maps, 0)[..., None, :]
    apart = ~np.eye(count, dtype=bool)
    lead = (1,) * (maps.ndim - 1)
    return jnp.where(apart.reshape(*lead, count, count), values, 0).max(axis=-1)


def blurred(
    maps: Float[Array, "b h w c"], inside: Bool[Array, "b h w"], *, sigma: float
) -> Float[Array, "b h w c"]:
    """Gaussian means over real cells, ``sigma`` in cells; borders and padding pull nothing down."""
    weights = inside.astype(maps.dtype)[..., None]
    stacked = jnp.concatenate([maps * weights, weights], axis=-1)
    rows, columns = (jnp.asarray(_gaussian(n, sigma), maps.dtype) for n in maps.shape[1:3])
    tall = jnp.einsum("yh,bhwc->bywc", rows, stacked)
    both = jnp.einsum("xw,bywc->byxc", columns, tall)
    return both[..., :-1] / jnp.maximum(both[..., -1:], _TINY) * weights


def pairs(
    images: Float[Array, "b h w 3"],
    inside: Bool[Array, "b h w"],
    edges: Float[Array, "b h w"] | None = None,
    *,
    radius: int = 5,
    sigma_colour: float = 0.06,
    sigma_space: float = 3.0,
) -> Affinity:
    """Affinity from colour and position, cut where an edge lies between two cells.

    Without ``edges`` the colour affinity alone. The product is symmetric like its factors.
    """
    colour = affinity.from_colour(
        images,
        radius=radius,
        sigma_colour=sigma_colour,
        sigma_space=sigma_space,
        inside=inside,
    )
    if edges is None:
        return colour
    boundary = affinity.from_boundary(edges, radius=radius, inside=inside)
    return Affinity(colour.values * boundary.values, radius)


def joined(evidence: Evidence, *, use_edges: bool = False, use_features: bool = False) -> Affinity:
    """``pairs`` of the evidence's photographs.

    use_edges: cut by its edges where it has any. use_features: along its frozen features as well
    (``affinity.from_likeness``), where it has any.
    """
    edges = jnp.where(evidence.cues[:, 1, None, None], evidence.edges, 0) if use_edges else None
    if not use_features or not evidence.features.shape[-1]:
        return pairs(evidence.images, evidence.inside, edges)
    colour = pairs(evidence.images, evidence.inside, edges, sigma_colour=BESIDE_FEATURES)
    leading = evidence.features[..., :LEADING]
    similar = affinity.from_likeness(
        leading, radius=colour.radius, sigma=LIKENESS, inside=evidence.inside
    )
    return Affinity(colour.values * similar.values, colour.radius)


LEADING = 24
"""Frozen channels that a walk goes along: the first, which differ most from image to image."""

LIKENESS = 0.28
"""Deviation of these features, in standard deviations of a channel over all images."""

BESIDE_FEATURES = 0.08
"""Deviation of colours where features tell cells apart too, in units of [0, 1]."""


def spread(
    maps: Float[Array, "b h w c"], joined: Affinity, *, steps: int, beta: float = 1.0
) -> Float[Array, "b h w c"]:
    """The maps after a random walk: each cell's mean over what belongs to it."""
    return walk.propagate(maps, joined, beta=beta, steps=steps)


def normalised(maps: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
    """Each map divided by its maximum over the grid; 0 where it has no positive score."""
    peak = maps.max(axis=(1, 2), keepdims=True)
    return jnp.maximum(maps, 0) / jnp.maximum(peak, _TINY)


def consensus(
    evidence: Evidence,
    available: Bool[Array, "b s k"],
    *,
    steps: int,
    use_saliency: bool = True,
    use_edges: bool = False,
    use_probe: bool = False,
    use_features: bool = False,
) -> Float[Array, "b h w k"]:
    """The strongest closed form: mean × (0.5 + 0.5 saliency), walked, maximum 1 for each class.

    ``available`` says which of the evidence's systems count. Images without
    saliency keep the mean. Half of the saliency's weight stays, since saliency misses objects.
    The walk is along colours; use_features: and along frozen features; use_edges: and cut by edges
    (``joined``). use_probe: what has walked is averaged with the linear probe (``probed``), where
    there is one.
    """
    maps = statistics(evidence.scores, available)[..., 0]
    if use_saliency:
        salient = jnp.where(evidence.cues[:, 0, None, None], evidence.saliency, 1)
        maps = maps * (0.5 + 0.5 * salient)[..., None]
    maps = normalised(jnp.where(evidence.inside[..., None], maps, 0))
    if steps:
        along = joined(evidence, use_edges=use_edges, use_features=use_features)
        maps = normalised(spread(maps, along, steps=steps))
    return probed(maps, evidence) if use_probe else maps


def probed(maps: Float[Array, "b h w k"], evidence: Evidence) -> Float[Array, "b h w k"]:
    """The mean of maps and the linear probe, both and the result with maximum 1 for each class.

    Images without a probe keep the maps. It does not walk: features tell where a class ends, and a
    walk along colours would only blur that.
    """
    known = evidence.cues[:, 2, None, None, None]
    both = normalised(maps) + normalised(evidence.probe)
    return jnp.where(known, normalised(both), normalised(maps))


def beside_background(
    maps: Float[Array, "b h w k"], present: Bool[Array, "b k"], threshold: Float[Array, ""]
) -> Float[Array, "b h w k"]:
    """Maps >= 0 as probabilities beside a background that scores ``threshold`` everywhere.

    So a class is more probable than background just where its map exceeds the threshold; 0 leaves
    no background.
    """
    here = jnp.where(present[:, None, None, :], jnp.maximum(maps, 0), 0)
    return here / jnp.maximum(here.sum(axis=-1, keepdims=True) + threshold, _TINY)


def pooled(
    scores: Float[Array, "b s h w k"], available: Bool[Array, "b s k"], present: Bool[Array, "b k"]
) -> Float[Array, "b h w n"]:
    """Geometric mean of probabilities over systems, background first; sums to 1.

    What a system leaves of 1 is background. A system without one of the image's classes has no say
    in the image, unless all lack one; slots that are not present have 0.
    """
    whole = (available | ~present[:, None]).all(axis=-1)
    counts = (whole | ~whole.any(axis=1, keepdims=True)).astype(scores.dtype)
    ground = jnp.maximum(1 - scores.sum(axis=-1, keepdims=True), 0)
    said = jnp.log(jnp.maximum(jnp.concatenate([ground, scores], axis=-1), 1e-4))
    total = jnp.maximum(counts.sum(axis=1), 1)[:, None, None, None]
    mean = (said * counts[:, :, None, None, None]).sum(axis=1) / total
    shown = jnp.concatenate([jnp.ones_like(present[:, :1]), present], axis=-1)
    raised = jnp.where(shown[:, None, None, :], jnp.exp(mean), 0)
    return raised / jnp.maximum(raised.sum(axis=-1, keepdims=True), _TINY)


def likelihood(
    images: Float[Array, "b h w 3"],
    foreground: Float[Array, "b h w k"],
    background: Float[Array, "b h w 1"],
    *,
    bins: int = 8,
) -> Float[Array, "b h w k"]:
    """How much more usual a cell's colour is in the class than in the background of this image.

    p(colour | class) / (p(colour | class) + p(colour | background)), from soft histograms of
    ``bins``³ colours that the weights (both >= 0, 0 on padding) fill. 1/2 where nothing is known.
    """
    level = jnp.clip((images * bins).astype(jnp.int32), 0, bins - 1)
    index = (level[..., 0] * bins + level[..., 1]) * bins + level[..., 2]
    weights = jnp.concatenate([foreground, background], axis=-1)

    def of_image(index: Int[Array, "h w"], weights: Float[Array, "h w n"]) -> Float[Array, "h w k"]:
        flat, count = index.ravel(), weights.shape[-1]
        histogram = jnp.zeros((bins**3, count)).at[flat].add(weights.reshape(-1, count))
        smooth = _smooth_colours(histogram.reshape(bins, bins, bins, count))
        share = smooth / jnp.maximum(smooth.sum(axis=0, keepdims=True), _TINY)
        ours, ground = share[:, :-1], share[:, -1:]
        floor = 0.05 / bins**3  # a colour seen nowhere says nothing
        ratio = (ours + floor) / (ours + ground + 2 * floor)
        return ratio[flat].reshape(*index.shape, count - 1)

    return jax.vmap(of_image)(index, weights)


def ridge(
    features: Float[Array, "b h w f"],
    maps: Float[Array, "b h w k"],
    inside: Bool[Array, "b h w"],
    *,
    strength: float = 0.02,
) -> Float[Array, "b h w k"]:
    """The maps as far as a linear function of this image's features can tell them.

    Ridge regression per image and class, in closed form, features standardised over the image;
    ``strength`` is the penalty relative to a feature's variance. Where the maps contradict the
    features (noise, a system's own shape), the fit does not follow them.
    """
    weights = inside.astype(features.dtype)[..., None]
    count = jnp.maximum(weights.sum(axis=(1, 2), keepdims=True), 1)
    x = (features - (features * weights).sum(axis=(1, 2), keepdims=True) / count) * weights
    x = x / jnp.sqrt(jnp.square(x).sum(axis=(1, 2), keepdims=True) / count + _TINY)
    mean = (maps * weights).sum(axis=(1, 2), keepdims=True) / count
    cells = count[:, 0, 0, 0][:, None, None]
    gram = jnp.einsum("bhwf,bhwg->bfg", x, x) / cells
    moment = jnp.einsum("bhwf,bhwk->bfk", x, (maps - mean) * weights) / cells
    penalty = strength * jnp.eye(features.shape[-1], dtype=features.dtype)
    solution = jnp.linalg.solve(gram + penalty[None], moment)
    return jnp.clip(jnp.einsum("bhwf,bfk->bhwk", x, solution) + mean, 0, 1) * weights


def agreement(
    scores: Float[Array, "b s h w k"],
    available: Bool[Array, "b s k"],
    inside: Bool[Array, "b h w"],
) -> Float[Array, "b s k"]:
    """How far each system agrees with the others, per image and class (``ops.fuse``)."""
    return jax.vmap(fuse.agreement_weights)(scores, available, inside)


AGREES = 0.3
"""Agreement from which a system counts in full; real ones mostly have 0.5 to 0.95, noise 0.05."""


def heard(agreed: Float[Array, "b s k"]) -> Float[Array, "b s k"]:
    """Weights of systems by their ``agreement``: 1 for all but those that hardly agree with any."""
    return jnp.minimum(agreed / AGREES, 1.0)


def random_part(
    available: Bool[Array, "b s k"], full_view: float, key: Any
) -> Bool[Array, "b s k"]:
    """Per image all systems with probability ``full_view``, else a random part of 1 to s of them.

    An image of which the part knows no class keeps all its systems.
    """
    rows, count = available.shape[:2]
    order, size, whole = jax.random.split(key, 3)
    rank = jax.random.uniform(order, (rows, count)).argsort(axis=-1).argsort(axis=-1)
    wanted = jax.random.randint(size, (rows, 1), 1, count + 1)
    keeps = (rank < wanted) | (jax.random.uniform(whole, (rows, 1)) < full_view)
    part = available & keeps[:, :, None]
    lost = (available.any(axis=1) & ~part.any(axis=1)).any(axis=-1)
    return jnp.where(lost[:, None, None], available, part)


def distorted(batch: Evidence, key: Any, *, scores: float, colours: float) -> Evidence:
    """Other scales and gammas of each system, other light, and half of the batches mirrored.

    scores: deviation of each system's log-gamma, and depth of its scale. colours: deviation of each
    channel's brightness.
    """
    gammas, scales, light, sides = jax.random.split(key, 4)
    shape = batch.scores.shape[:2]
    gamma = jnp.exp(scores * jax.random.normal(gammas, shape))[:, :, None, None, None]
    scale = 1 - scores * jax.random.uniform(scales, shape)[:, :, None, None, None]
    bent = scale * jnp.power(jnp.maximum(batch.scores, 1e-6), gamma)
    moved = colours * jax.random.normal(light, (shape[0], 1, 1, 3))
    images = jnp.where(batch.inside[..., None], jnp.clip(batch.images + moved, 0, 1), 0)
    changed = replace(batch, scores=jnp.where(batch.scores > 0, bent, 0), images=images)
    mirror = jax.random.bernoulli(sides, 0.5)
    return jax.tree.map(lambda a, b: jnp.where(mirror, a, b), mirrored(changed), changed)


def mirrored(batch: Evidence) -> Evidence:
    """Left and right exchanged on the whole canvas."""

    def at(axis: int, value: Any) -> Any:
        return None if value is None else jnp.flip(value, axis)

    return replace(
        batch,
        scores=at(3, batch.scores),
        **{
            name: at(2, getattr(batch, name))
            for name in (
                "images",
                "saliency",
                "edges",
                "probe",
                "features",
                "inside",
                "target",
                "truth",
            )
        },
    )


def _gaussian(n: int, sigma: float) -> Float[np.ndarray, "n n"]:
    away = np.arange(n)[:, None] - np.arange(n)[None]
    return np.exp(-0.5 * np.square(away / sigma)).astype(np.float32)


def _smooth_colours(histogram: Float[Array, "r g b n"]) -> Float[Array, "c n"]:
    near = jnp.asarray(_gaussian(histogram.shape[0], 0.7))
    smooth = jnp.einsum("ri,gj,bk,ijkn->rgbn", near, near, near, histogram)
    return smooth.reshape(-1, histogram.shape[-1])

"""Rater models: the truth and the quality of each system, estimated together by EM.

STAPLE (Warfield, Zou and Wells 2004; each class against the rest) and Dawid and Skene (1979; one
confusion matrix per system over background and classes). Both believe that systems err
independently. Systems that were trained on the same image labels do not: they over-cover in the
same places, and EM takes that for truth, so more steps give larger and worse masks. They are here
as baselines to compare with; the default fusion is elsewhere (``wsss_jax.ops.fuse``).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

VOTE_THRESHOLD = 0.3
"""Score above which a system says that a class is there, for max-normalised maps."""

EM_STEPS = 30
"""EM steps; a fixed number keeps the run the same on every device."""

FIRST_GUESS = 0.99
"""Sensitivity and specificity that STAPLE starts from, the same for all systems."""

MAX_POOLED_SYSTEMS = 10
"""Up to here STAPLE counts patterns of votes, 2 ** systems, and not pixels."""

ADDED_PIXELS = 0.01
"""Added to each cell of Dawid-Skene's matrices: nothing is impossible, and no logarithm is of 0."""

_TINY = 1e-6


class Rates(NamedTuple):
    """What STAPLE believes of each system and class; all in [0, 1].

    sensitivity, specificity: (s,k). prior: (k,) share of pixels that show the class.
    """

    sensitivity: Array
    specificity: Array
    prior: Array


def votes(
    scores: Float[Array, "s h w k"], available: Bool[Array, "s k"], *, threshold: float
) -> Bool[Array, "s h w k"]:
    """The class that each system names at each pixel: its highest score, if above the threshold.

    A system whose highest scores are equal votes for all of them; one without a score above the
    threshold votes for background. Unavailable classes get no vote.
    """
    knows = available[:, None, None, :]
    known = jnp.where(knows, scores, -1)
    return knows & (known == known.max(axis=-1, keepdims=True)) & (known > threshold)


def staple(
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
    inside: Bool[Array, "h w"] | None = None,
    *,
    threshold: float = VOTE_THRESHOLD,
    steps: int = EM_STEPS,
) -> Float[Array, "h w k"]:
    """Probability of each class from the votes of one image, each class against the rest.

    ``inside`` marks real pixels; padding takes no part in the estimate. One system alone comes
    back as its own votes, nearly 0 or 1. Where no system knows a class the result is 0.

    Source: Warfield et al. 2004, equations 14-20, with the constant prior of their section II-D,
    the share of positive votes. We start at 0.99 instead of 0.99999, which differs only in ties.
    """
    given = available[:, None, :]
    pixels = _flat(votes(scores, available, threshold=threshold))
    rates = fit_staple(*_patterns(pixels, _weight(inside, scores)), given, steps=steps)
    return _fold(_posterior(pixels, given, rates), scores, available)


def fit_staple(
    votes: Bool[Array, "s n k"],
    weight: Float[Array, "n k"],
    given: Bool[Array, "s #n k"],
    *,
    steps: int = EM_STEPS,
) -> Rates:
    """Rates of each system and class by EM over n pixels, or over n patterns of votes.

    ``weight`` says how often each pixel or pattern counts, ``given`` which votes exist.
    """
    asked = jnp.broadcast_to(given, votes.shape).astype(weight.dtype)
    said = (votes & given).astype(weight.dtype)
    total = (weight[None] * asked).sum(axis=(0, 1))
    prior = (weight[None] * said).sum(axis=(0, 1)) / jnp.maximum(total, _TINY)
    prior = jnp.clip(prior, _TINY, 1 - _TINY)
    start = jnp.full((votes.shape[0], votes.shape[2]), FIRST_GUESS, weight.dtype)

    def step(_: Array, rates: Rates) -> Rates:
        posterior = _posterior(votes, given, rates)
        yes, no = (weight * posterior)[None], (weight * (1 - posterior))[None]
        sensitivity = _share((yes * said).sum(axis=1), (yes * asked).sum(axis=1))
        specificity = _share((no * (asked - said)).sum(axis=1), (no * asked).sum(axis=1))
        return Rates(sensitivity, specificity, prior)

    return jax.lax.fori_loop(0, steps, step, Rates(start, start, prior))


def dawid_skene(
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
    inside: Bool[Array, "h w"] | None = None,
    *,
    threshold: float = VOTE_THRESHOLD,
    steps: int = EM_STEPS,
) -> Float[Array, "h w k"]:
    """Probability of each class in one image from a confusion matrix per system.

    The labels are background and those classes of the image that some system knows; background
    has its share of the probability but no map. ``inside`` as in ``staple``.

    Source: Dawid and Skene 1979, with image-level labels as a mask, and ``ADDED_PIXELS`` in every
    cell of the confusion matrices.
    """
    named = _flat(votes(scores, available, threshold=threshold)).astype(scores.dtype)
    total = named.sum(axis=-1, keepdims=True)
    labels = jnp.concatenate([(total == 0).astype(scores.dtype), named], axis=-1)
    labels = labels / labels.sum(axis=-1, keepdims=True)
    possible = jnp.concatenate([jnp.ones(1, bool), available.any(axis=0)])
    posterior, _ = fit_dawid_skene(
        labels, available.any(axis=1), possible, _weight(inside, scores), steps=steps
    )
    return _fold(posterior[:, 1:], scores, available)


def fit_dawid_skene(
    labels: Float[Array, "s n m"],
    given: Bool[Array, " s"],
    possible: Bool[Array, " m"],
    weight: Float[Array, " n"],
    *,
    steps: int = EM_STEPS,
) -> tuple[Float[Array, "n m"], Float[Array, "s m m"]]:
    """Probabilities of the m labels per pixel, and P(said | true) of each system, by EM.

    ``labels`` are one-hot, ``given`` says which systems take part, ``possible`` which labels.
    Starts from the share of votes.
    """
    systems, pixels, size = labels.shape
    labels = labels * given[:, None, None].astype(labels.dtype)
    # One matrix product each way is several times faster than the einsum over three axes.
    rows = labels.transpose(1, 0, 2).reshape(pixels, systems * size)
    added = ADDED_PIXELS * (possible[:, None] & possible[None, :]).astype(labels.dtype)
    start = labels.sum(axis=0) / jnp.maximum(given.sum().astype(labels.dtype), 1)
    precise = jax.lax.Precision.HIGHEST

    def confusion_of(truth: Float[Array, "n m"]) -> Float[Array, "s m m"]:
        seen = jnp.matmul((truth * weight[:, None]).T, rows, precision=precise)
        seen = seen.reshape(size, systems, size).transpose(1, 0, 2) + added[None]
        return seen / jnp.maximum(seen.sum(axis=-1, keepdims=True), _TINY)

    def step(_: Array, truth: Float[Array, "n m"]) -> Float[Array, "n m"]:
        confusion = confusion_of(truth)
        log_confusion = jnp.where(confusion > 0, jnp.log(jnp.maximum(confusion, _TINY)), 0)
        prior = (truth * weight[:, None]).sum(axis=0) / jnp.maximum(weight.sum(), _TINY)
        meaning = log_confusion.transpose(0, 2, 1).reshape(systems * size, size)
        evidence = jnp.matmul(rows, meaning, precision=precise)
        evidence = evidence + jnp.log(jnp.maximum(prior, _TINY))[None]
        return jax.nn.softmax(jnp.where(possible[None], evidence, -jnp.inf), axis=-1)

    truth = jax.lax.fori_loop(0, steps, step, start)
    return truth, confusion_of(truth)


def _patterns(
    votes: Bool[Array, "s n k"], weight: Float[Array, " n"]
) -> tuple[Bool[Array, "s m k"], Float[Array, "m k"]]:
    """All 2 ** s patterns of votes and how often each occurs, which is all that STAPLE needs.

    Thousands of pixels become a few patterns: 30 EM steps on 94 × 125 pixels take 2 ms, not 127.
    Above ``MAX_POOLED_SYSTEMS`` patterns outnumber pixels, and the pixels come back.
    """
    systems, pixels, classes = votes.shape
    if systems > MAX_POOLED_SYSTEMS:
        return votes, jnp.broadcast_to(weight[:, None], (pixels, classes))
    places = 2 ** jnp.arange(systems, dtype=jnp.int32)
    codes = (votes.astype(jnp.int32) * places[:, None, None]).sum(axis=0)
    count = partial(jnp.bincount, weights=weight, length=2**systems)
    every = jnp.arange(2**systems, dtype=jnp.int32)
    yes = (every[None] // places[:, None]) % 2 == 1
    shape = (systems, 2**systems, classes)
    return jnp.broadcast_to(yes[:, :, None], shape), jax.vmap(count, 1, 1)(codes)


def _posterior(
    votes: Bool[Array, "s n k"], given: Bool[Array, "s #n k"], rates: Rates
) -> Float[Array, "n k"]:
    yes = jnp.log(rates.sensitivity) - jnp.log1p(-rates.specificity)
    no = jnp.log1p(-rates.sensitivity) - jnp.log(rates.specificity)
    evidence = jnp.where(given, jnp.where(votes, yes[:, None], no[:, None]), 0).sum(axis=0)
    odds = jnp.log(rates.prior) - jnp.log1p(-rates.prior)
    return jax.nn.sigmoid(evidence + odds[None])


def _share(part: Float[Array, "s k"], whole: Float[Array, "s k"]) -> Float[Array, "s k"]:
    """part / whole, kept off 0 and 1: a rate of exactly 1 could never be outvoted."""
    return jnp.clip(part / jnp.maximum(whole, _TINY), 1e-4, 1 - 1e-4)


def _weight(
    inside: Bool[Array, "h w"] | None, scores: Float[Array, "s h w k"]
) -> Float[Array, " n"]:
    _, height, width, _ = scores.shape
    if inside is None:
        return jnp.ones(height * width, scores.dtype)
    return inside.reshape(-1).astype(scores.dtype)


def _flat(maps: Shaped[Array, "s h w k"]) -> Shaped[Array, "s n k"]:
    return maps.reshape(maps.shape[0], -1, maps.shape[3])


def _fold(
    posterior: Float[Array, "n k"],
    scores: Float[Array, "s h w k"],
    available: Bool[Array, "s k"],
) -> Float[Array, "h w k"]:
    maps = posterior.reshape(scores.shape[1:])
    return jnp.where(available.any(axis=0)[None, None], maps, 0)

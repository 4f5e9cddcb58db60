"""Score-CAM and SS-CAM: channels weighted by the scores of the image seen through each of them.

At least seven sources disagree about what Score-CAM is; ``SCORE_CAMS`` holds each under its name.
Forward passes do not depend on the class and are made ``chunk`` channels at a time, with masks made
inside the loop. Noise is the same for every image, so a batch equals its images one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from wsss_jax.explain.contract import (
    Images,
    Labels,
    Maps,
    checked_features,
    logits_of,
    size_of,
)
from wsss_jax.explain.perturb import combined
from wsss_jax.ops import images as image_ops
from wsss_jax.types import Scorer, Size

Channel = Float[Array, "b h w"]
Scores = Float[Array, "k b c"]


def as_it_is(values: Array, size: Size | None = None) -> Array:
    """No change: logits as scores, channels as they came, maps on the channels' grid."""
    return values


def enlarge(channel: Channel, size: Size) -> Float[Array, "b H W"]:
    """Bilinear, pixel centres at half integers (align_corners=False)."""
    return image_ops.resize(channel[..., None], size)[..., 0]


def enlarge_then_stretch(channel: Channel, size: Size) -> Float[Array, "b H W"]:
    """The enlarged channel brought to [0, 1] by its minimum and maximum."""
    return stretched(enlarge(channel, size))


def enlarge_corners_then_stretch(channel: Channel, size: Size) -> Float[Array, "b H W"]:
    """The same with the corner pixels' centres aligned (align_corners=True)."""
    return stretched(image_ops.resize(channel[..., None], size, align_corners=True)[..., 0])


def stretch_then_enlarge(channel: Channel, size: Size) -> Float[Array, "b H W"]:
    """The channel brought to [0, 1] on its own grid, then enlarged."""
    return enlarge(stretched(channel), size)


def divide_then_enlarge(channel: Channel, size: Size) -> Float[Array, "b H W"]:
    """The channel divided by its maximum, then enlarged."""
    peak = channel.max(axis=(1, 2), keepdims=True)
    return enlarge(channel / jnp.where(peak == 0, 1, peak), size)


def stretched(channel: Float[Array, "b h w *k"]) -> Float[Array, "b h w *k"]:
    """(A - min) / (max - min) per image and channel; a constant channel becomes zero."""
    low, high = (pick(channel, axis=(1, 2), keepdims=True) for pick in (jnp.min, jnp.max))
    return (channel - low) / jnp.where(high > low, high - low, 1)


def no_reference(scorer: Scorer, images: Images, score: Callable, fill: float) -> Array:
    """Nothing is subtracted from the scores."""
    return jnp.zeros((1, 1), jnp.float32)


def clean_image(scorer: Scorer, images: Images, score: Callable, fill: float) -> Array:
    """The scores of the image itself."""
    return score(logits_of(scorer, images))


def blank_image(scorer: Scorer, images: Images, score: Callable, fill: float) -> Array:
    """The scores of an image that is masked everywhere."""
    return score(logits_of(scorer, jnp.full_like(images, fill)))


def softmax_over_channels(scores: Scores, varies: Array) -> Scores:
    """Weights that sum to one over the channels; any constant reference cancels."""
    return jax.nn.softmax(scores, axis=0)


def plain_scores(scores: Scores, varies: Array) -> Scores:
    """The scores themselves."""
    return scores


def scores_where_varying(scores: Scores, varies: Array) -> Scores:
    """The scores themselves, without the channels that are constant."""
    return jnp.where(varies, scores, 0)


@dataclass(frozen=True)
class ScoreCam:
    """What one source calls Score-CAM; the fields are functions of this module or of jax.nn.

    mask: a channel (b,h,w) and the image size to masks (b,H,W). score: logits to class scores.
    reference: what is subtracted from each masked image's score. weigh: those differences (k,b,c),
    and which channels vary (k,b,1), to channel weights. prepare: channels (b,h,w,k) to what the
    weights multiply. finish: the weighted sum (b,h,w,c) and the image size to the maps. The final
    ReLU that most sources have is left out.
    """

    mask: Callable[[Array, Size], Array] = enlarge_then_stretch
    score: Callable[[Array], Array] = as_it_is
    reference: Callable[..., Array] = no_reference
    weigh: Callable[[Array, Array], Array] = softmax_over_channels
    prepare: Callable[[Array], Array] = as_it_is
    finish: Callable[[Array, Size], Array] = as_it_is


def score_cam(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    settings: ScoreCam | None = None,
    fill: float = 0.0,
    chunk: int = 16,
) -> Maps:
    """Channels weighted by the scores of the image seen through each of them (Wang et al. 2020).

    ``settings`` is one of ``SCORE_CAMS`` (None: the one of pytorch-grad-cam). ``fill`` is the
    value that masked pixels take, in [0, 1]; the sources mask normalised images, where zero is the
    mean colour. ``chunk`` channels are scored at a time.
    """
    settings = settings or SCORE_CAMS["pytorch_grad_cam"]
    features = checked_features(scorer, images, labels)
    size = size_of(images)

    def score_of(channel: Channel) -> Float[Array, "b c"]:
        mask = settings.mask(channel, size)[..., None]
        return settings.score(logits_of(scorer, images * mask + fill * (1 - mask)))

    scores = jax.lax.map(score_of, jnp.moveaxis(features, -1, 0), batch_size=chunk)
    return _finished(scorer, images, labels, features, scores, settings=settings, fill=fill)


def ss_cam(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, ""],
    disturb: Callable[..., Array] | None = None,
    settings: ScoreCam | None = None,
    draws: int = 10,
    noise: float = 2.0,
    chunk: int = 16,
) -> Maps:
    """Smoothed Score-CAM (Naidu & Michael 2020): Score-CAM scores averaged over noisy masks.

    ``disturb`` is ``noisy_activation`` (the paper's first variant, the default) or
    ``noisy_input`` (its second), with noise of standard deviation ``noise``. Sources disagree
    about the number of draws (10 or 35); this makes draws x channels forward passes.
    """
    settings = settings or SCORE_CAMS["pytorch_grad_cam"]
    disturb = disturb or noisy_activation
    features = checked_features(scorer, images, labels)
    size = size_of(images)

    def score_of(item: tuple[Array, Array]) -> Float[Array, "b c"]:
        channel, key_channel = item

        def add(mean: Array, key_draw: Array) -> tuple[Array, None]:
            drawn = noise * jax.random.normal(key_draw, (1, *size))
            seen = disturb(images, channel, drawn, settings)
            return mean + settings.score(logits_of(scorer, seen)) / draws, None

        start = jnp.zeros(labels.shape, jnp.float32)
        return jax.lax.scan(add, start, jax.random.split(key_channel, draws))[0]

    keys = jax.random.split(key, features.shape[-1])
    scores = jax.lax.map(score_of, (jnp.moveaxis(features, -1, 0), keys), batch_size=chunk)
    return _finished(scorer, images, labels, features, scores, settings=settings, fill=0.0)


def noisy_activation(images: Images, channel: Channel, noise: Array, settings: ScoreCam) -> Array:
    """The image seen through a mask made of the enlarged channel plus noise, in its units."""
    size = size_of(images)
    return images * stretched(enlarge(channel, size) + noise)[..., None]


def noisy_input(images: Images, channel: Channel, noise: Array, settings: ScoreCam) -> Array:
    """The image seen through the mask of the channel, plus noise in units of image values."""
    return images * settings.mask(channel, size_of(images))[..., None] + noise[..., None]


SCORE_CAMS: MappingProxyType[str, ScoreCam] = MappingProxyType(
    {
        "paper": ScoreCam(reference=blank_image, weigh=plain_scores),
        "authors_code": ScoreCam(
            score=jax.nn.softmax, weigh=scores_where_varying, finish=image_ops.resize
        ),
        "pytorch_grad_cam": ScoreCam(mask=enlarge_corners_then_stretch),
        "torch_cam": ScoreCam(mask=stretch_then_enlarge, reference=clean_image),
        "keras_explainable": ScoreCam(
            mask=stretch_then_enlarge,
            weigh=plain_scores,
            prepare=stretched,
            finish=image_ops.resize,
        ),
        "min_max_cam": ScoreCam(
            score=jax.nn.sigmoid, weigh=scores_where_varying, finish=image_ops.resize
        ),
        "by_maximum": ScoreCam(mask=divide_then_enlarge, weigh=plain_scores),
    }
)
"""Score-CAM as the paper, its authors' code and five other sources have it.

The paper of 2020 weighs by the raw increase over a blank image; later versions by its softmax,
which is ``ScoreCam()``.
"""


def _finished(
    scorer: Scorer,
    images: Array,
    labels: Array,
    features: Array,
    scores: Array,
    *,
    settings: ScoreCam,
    fill: float,
) -> Array:
    varies = features.max(axis=(1, 2)) > features.min(axis=(1, 2))
    reference = settings.reference(scorer, images, settings.score, fill)
    weights = settings.weigh(scores - reference[None], varies.T[..., None])
    maps = combined(settings.prepare(features), weights, labels)
    return settings.finish(maps, size_of(images))

"""What a network has learned: images that excite a class or channel, and where one looks in images.

``maximise`` climbs from noise to an image that a class score or a channel answers strongly
(Simonyan et al. 2014, section 2); ``field_box`` is the part of an image that one cell of a map
looks at. Both take any function of images, so they fit every scorer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from wsss_jax.errors import UserError
from wsss_jax.explain.guided import straight

Images = Float[Array, "b H W 3"]

GREY = 0.5
"""The value that regularised pixels are drawn to, the middle of [0, 1]."""


@dataclass(frozen=True)
class Ascent:
    """How an image is climbed to.

    Attributes:
        steps: gradient steps.
        rate: of a step, whose gradient is divided by its root mean square.
        decay: weight of the mean square distance of pixels from grey, in units of the score.
        jitter: pixels by which the image is shifted about, at random, before each step; 0 none.
        blur: standard deviation in pixels of a Gaussian blur after each step; 0 none.
    """

    steps: int = 128
    rate: float = 0.05
    decay: float = 0.1
    jitter: int = 0
    blur: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rate <= 0:
            raise UserError(f"{self.steps} steps of {self.rate}, wanted at least one, above 0")
        if min(self.decay, self.jitter, self.blur) < 0:
            raise UserError("decay, jitter and blur of an ascent are 0 or more")


def noise(key: Key[Array, ""], shape: tuple[int, int, int], deviation: float = 0.05) -> Images:
    """Grey images (b,H,W,3) with Gaussian noise, to start from."""
    return jnp.clip(GREY + deviation * jax.random.normal(key, (*shape, 3)), 0, 1)


def maximise(
    score: Callable[[Array], Array], start: Images, settings: Ascent, *, key: Key[Array, ""]
) -> Images:
    """Images in [0, 1] that raise ``score``, from ``start``; the key draws the jitter.

    score: images (b,H,W,3) to one number per image. Each step goes along the gradient of score -
    decay × mean((x - grey)²), normalised per image. Source: Simonyan et al. 2014, equation 1, whose
    penalty is the sum of squares; blur after Yosinski et al. 2015, jitter after Mordvintsev et al.
    2015. Shifted images come in again on the other side.
    """

    def objective(images: Array) -> Array:
        away = jnp.square(images - GREY).mean(axis=(1, 2, 3))
        return (score(images).astype(jnp.float32) - settings.decay * away).sum()

    def step(images: Array, key_shift: Array) -> tuple[Array, None]:
        shift = jax.random.randint(key_shift, (2,), -settings.jitter, settings.jitter + 1)
        moved = jnp.roll(images, shift, axis=(1, 2)) if settings.jitter else images
        gradient = jax.grad(objective)(moved)
        size = jnp.sqrt(jnp.square(gradient).mean(axis=(1, 2, 3), keepdims=True))
        moved = moved + settings.rate * gradient / jnp.where(size > 0, size, 1)
        images = jnp.roll(moved, -shift, axis=(1, 2)) if settings.jitter else moved
        if settings.blur:
            images = blurred(images, settings.blur)
        return jnp.clip(images, 0, 1), None

    return jax.lax.scan(step, start, jax.random.split(key, settings.steps))[0]


def blurred(images: Images, deviation: float) -> Images:
    """A Gaussian blur cut at three deviations; the border is repeated outwards."""
    reach = max(1, round(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights = weights / weights.sum()
    for axis in (1, 2):
        count = images.shape[axis]
        sides = [(reach, reach) if n == axis else (0, 0) for n in range(4)]
        padded = jnp.pad(images, sides, mode="edge")
        views = [jax.lax.slice_in_dim(padded, n, n + count, axis=axis) for n in range(len(weights))]
        images = sum(
            (float(w) * view for w, view in zip(weights, views, strict=True)),
            jnp.zeros_like(images),
        )
    return images


def at_cell(
    channels: Callable[[Array], Array], images: Images, row: Array, column: Array, channel: Array
) -> Images:
    """The gradient at the pixels of one cell of one channel of each image, in float32.

    Rectifiers and caps pass it on as if they were not there (``guided.straight``): a channel at its
    cap has no gradient otherwise. channels: images to maps (b,h,w,k). row, column, channel: one
    number per image.
    """
    maps, pull_back = jax.vjp(straight(channels), images)
    one = jnp.zeros(maps.shape, maps.dtype)
    one = one.at[jnp.arange(maps.shape[0]), row, column, channel].set(1)
    return pull_back(one)[0].astype(jnp.float32)


def field_box(
    gradient: Float[np.ndarray, "H W 3"], share: float = 0.9
) -> tuple[int, int, int, int]:
    """The box (top, left, bottom, right) that holds ``share`` of a gradient along each axis.

    An effective receptive field (Luo et al. 2016) of one cell in one image: half of the rest is cut
    off at each side. With share 1 it is the box of all pixels that matter at all. Bottom and right
    are not in it. The whole image where the gradient is zero.
    """
    if not 0 < share <= 1:
        raise UserError(f"a share of {share}, wanted one above 0 and at most 1")
    size = np.abs(gradient).sum(axis=-1).astype(np.float64)
    if not size.any():
        return 0, 0, size.shape[0], size.shape[1]
    (top, bottom), (left, right) = (_span(size.sum(axis=axis), share) for axis in (1, 0))
    return top, left, bottom, right


def _span(mass: Float[np.ndarray, " n"], share: float) -> tuple[int, int]:
    """First and one past the last place between the outer parts of a mass."""
    total, cut = mass.sum(), (1 - share) / 2 * mass.sum()
    before = np.cumsum(mass)
    first = int(np.argmax(before > cut))
    after = total - before + mass  # from each place on
    last = int(len(mass) - 1 - np.argmax(after[::-1] > cut))
    return first, last + 1

"""A small world of function: a ball and a wheel are the same disc, and a kite has its own look.

Discs lie on grass or on a cart, and both occur without a disc too. In one world a disc on grass is
a ball and one on a cart a wheel, so that surroundings tell the two classes apart; in the other a
coin decides, and nothing in the picture tells. Kites are the control: their look names them.
Not here: files (``world.write``), and systems, of which this world has none.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from wsss_jax.study.fusion_world import World, smooth_noise

CLASSES = ("ball", "wheel", "kite")

SIZE = 64
"""Pixels along a side; each quarter of the picture has one place."""

_PLACES = ("nothing", "empty grass", "empty cart", "disc on grass", "disc on cart", "kite")
_CHANCES = (0.2, 0.15, 0.15, 0.175, 0.175, 0.15)
_GRASS, _CART = (0.25, 0.6, 0.25), (0.55, 0.4, 0.2)
_DISC, _KITE = (0.85, 0.3, 0.3), (0.3, 0.35, 0.85)


def make(count: int, *, told: bool, seed: int) -> World:
    """``count`` pictures, each with an object; the same seed gives the same world.

    told: whether its surroundings tell what a disc is. Pictures of both worlds with the same seed
    are equal, only the classes of discs differ.
    """
    drawn = [_one(np.random.default_rng([seed, index]), told=told) for index in range(count)]
    images, masks, saliency = (np.stack(parts) for parts in zip(*drawn, strict=True))
    labels = np.stack([(masks == value).any(axis=(1, 2)) for value in (1, 2, 3)], axis=-1)
    none = np.zeros((count, 0, SIZE, SIZE, len(CLASSES)), np.float32)
    return World(images, labels, masks, none, saliency)


def local(images: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 6"]:
    """Features without context: mean and deviation of colours in a window smaller than a disc.

    Only at its rim does such a window show what is around a disc.
    """
    mean = ndimage.uniform_filter(images, 3, axes=(1, 2))
    square = ndimage.uniform_filter(images**2, 3, axes=(1, 2))
    return np.concatenate([mean, 4 * np.sqrt(np.maximum(square - mean**2, 0))], axis=-1)


def context(images: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w 9"]:
    """The same, and the mean colour in a window that holds a disc and what is around it."""
    wide = ndimage.gaussian_filter(images, (0, 6, 6, 0))
    return np.concatenate([local(images), wide], axis=-1)


def _one(random: np.random.Generator, *, told: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places = random.choice(len(_PLACES), 4, p=_CHANCES)
    while not (places >= _PLACES.index("disc on grass")).any():
        places = random.choice(len(_PLACES), 4, p=_CHANCES)
    image = np.broadcast_to(random.uniform(0.6, 0.8, 3), (SIZE, SIZE, 3)).copy()
    mask, seen = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), bool)
    for quarter, place in enumerate(places):
        name, ball = _PLACES[place], random.random() < 0.5
        middle = SIZE / 4 * np.array([1 + 2 * (quarter // 2), 1 + 2 * (quarter % 2)])
        middle = middle + random.uniform(-2, 2, 2)
        if "grass" in name or "cart" in name:
            image[_disc(middle, 13.0)] = _GRASS if "grass" in name else _CART
        shape = _disc(middle + random.uniform(-4, 4, 2), random.uniform(5, 6.5))
        if name == "kite":
            shape = _kite(middle, random.uniform(7, 9))
            image[shape], mask[shape] = _KITE, 3
        elif "disc" in name:
            image[shape] = _DISC
            mask[shape] = 1 if ("grass" in name if told else ball) else 2
        if mask[shape].any() and random.random() > 0.15:
            seen |= shape
    texture = np.stack([smooth_noise(random, SIZE, 0.7) for _ in range(3)], -1)
    image = np.clip(ndimage.gaussian_filter(image, (0.5, 0.5, 0)) + 0.06 * texture, 0, 1)
    soft = ndimage.gaussian_filter(seen.astype(float), 1.5) + 0.1 * smooth_noise(random, SIZE, 2.0)
    return image.astype(np.float32), mask, np.clip(soft, 0, 1).astype(np.float32)


def _disc(middle: Float[np.ndarray, "2"], radius: float) -> Bool[np.ndarray, "h w"]:
    rows, columns = np.indices((SIZE, SIZE)) + 0.5
    return (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2


def _kite(middle: Float[np.ndarray, "2"], radius: float) -> Bool[np.ndarray, "h w"]:
    rows, columns = np.indices((SIZE, SIZE)) + 0.5
    return abs(rows - middle[0]) + abs(columns - middle[1]) < radius

"""A small world of shapes and six systems that fail in correlated, context-dependent ways.

Test equipment for everything that fuses priors: the truth is known, every failure is one that real
systems have, and 300 images take seconds. Objects are bodies with heads on textured ground. Two
classes stand in a context of their own (water, rails), one class is tiny, one small, two appear
together. In two of five images stands a distractor that looks like an object to most systems and
to the saliency. Noise and drop-out zones are partly shared between systems, so majorities err.

Numbers made here rank designs; they predict nothing about photographs. Not here: score maps of
real systems (``data.stores``) and the embedded photographs (``datasets.synthetic``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from wsss_jax.errors import UserError

CLASSES = ("boat", "train", "bottle", "bird", "horse", "person")
"""Boats stand on water and trains on rails; bottles are tiny, birds small; riders have horses."""

SYSTEMS = ("part", "overctx", "edgenoise", "smallmiss", "miscal", "cooc")
"""What each system does wrong; see ``_FAILURES`` below."""

_RADII = (0.21, 0.22, 0.075, 0.11, 0.20, 0.17)
_COLOURS = (
    (0.75, 0.25, 0.2),
    (0.3, 0.3, 0.75),
    (0.25, 0.65, 0.3),
    (0.8, 0.7, 0.25),
    (0.5, 0.32, 0.15),
    (0.8, 0.55, 0.5),
)
_CONTEXT = {0: (0.25, 0.5, 0.6), 1: (0.45, 0.42, 0.4)}
_SMALL = 0.035
"""Share of the image below which the system "smallmiss" does not see an object."""


@dataclass(frozen=True)
class World:
    """n images of s systems over c classes, everything in arrays.

    images (n,h,w,3) in [0, 1]; labels (n,c); masks (n,h,w) with 0 background and class + 1;
    scores (n,s,h,w,c) in [0, 1], 0 for absent classes; saliency (n,h,w) in [0, 1].
    """

    images: Float[np.ndarray, "n h w 3"]
    labels: Bool[np.ndarray, "n c"]
    masks: UInt8[np.ndarray, "n h w"]
    scores: Float[np.ndarray, "n s h w c"]
    saliency: Float[np.ndarray, "n h w"]

    def __len__(self) -> int:
        return len(self.images)


def make(count: int, *, seed: int, size: int = 48) -> World:
    """``count`` images of ``size`` × ``size`` pixels; the same seed gives the same world.

    Raises ValueError for sizes in which a tiny object would not be a pixel.
    """
    if count < 1 or size < 24:
        raise UserError(f"{count} images of {size} pixels; wanted at least 1 of at least 24")
    drawn = [_one(np.random.default_rng([seed, index]), size) for index in range(count)]
    return World(*(np.stack(parts) for parts in zip(*drawn, strict=True)))


def smooth_noise(random: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Gaussian noise of unit variance, smooth over ``sigma`` pixels."""
    noise = ndimage.gaussian_filter(random.normal(size=(size, size)), sigma, mode="wrap")
    return noise / noise.std()


@dataclass(frozen=True)
class _Scene:
    """What stands where: one mask per present class, its head, its context, and the distractor."""

    present: tuple[int, ...]
    objects: dict[int, Bool[np.ndarray, "h w"]]
    heads: dict[int, Bool[np.ndarray, "h w"]]
    context: dict[int, Bool[np.ndarray, "h w"]]
    distractor: Bool[np.ndarray, "h w"]
    mask: UInt8[np.ndarray, "h w"]


def _one(random: np.random.Generator, size: int) -> tuple[np.ndarray, ...]:
    scene = _scene(random, size)
    image = _photograph(random, scene, size)
    shared = smooth_noise(random, size, 2.5)
    dropped = _zones(random, size)
    scores = np.zeros((len(SYSTEMS), size, size, len(CLASSES)), np.float32)
    for row, name in enumerate(SYSTEMS):
        noise = np.sqrt(0.5) * shared + np.sqrt(0.5) * smooth_noise(random, size, 2.5)
        for label in scene.present:
            raw = _FAILURES[name](random, scene, label)
            raw = raw * (1 - 0.6 * dropped) + 0.16 * noise
            scores[row, ..., label] = _finish(random, name, label, raw)
    labels = np.isin(np.arange(len(CLASSES)), scene.present)
    return image, labels, scene.mask, scores, _saliency(random, scene)


def _scene(random: np.random.Generator, size: int) -> _Scene:
    present = _present(random)
    mask = np.zeros((size, size), np.uint8)
    objects, heads, context = {}, {}, {}
    anchor = random.uniform(0.3, 0.7, 2)
    for number, label in enumerate(present):
        centre = anchor if number == 0 else np.clip(_beside(random, anchor, present), 0.15, 0.85)
        whole, head = _animal(random, size, centre, _RADII[label] * random.uniform(0.75, 1.25))
        mask[whole] = label + 1
        objects[label], heads[label] = whole, head
        if label in _CONTEXT:
            context[label] = _below(random, size, centre)
    distractor = np.zeros((size, size), bool)
    if random.random() < 0.4:
        distractor, _ = _animal(random, size, random.uniform(0.12, 0.88, 2), 0.14)
        distractor &= mask == 0
    for label in present:  # later objects hide earlier ones
        objects[label] = mask == label + 1
        heads[label] = heads[label] & objects[label]
        if label in context:
            context[label] = context[label] & (mask == 0)
    return _Scene(present, objects, heads, context, distractor, mask)


def _present(random: np.random.Generator) -> tuple[int, ...]:
    if random.random() < 0.25:
        return (4, 5)
    count = 1 + (random.random() < 0.35)
    return tuple(int(c) for c in random.choice(len(CLASSES), count, replace=False))


def _beside(
    random: np.random.Generator, anchor: np.ndarray, present: Sequence[int]
) -> Float[np.ndarray, " 2"]:
    """Riders touch their horse; others stand somewhere else."""
    if set(present) == {4, 5}:
        return anchor + np.array([-0.16, random.uniform(-0.16, 0.16)])
    angle = random.uniform(0, 2 * np.pi)
    return anchor + 0.38 * np.array([np.sin(angle), np.cos(angle)])


def _animal(
    random: np.random.Generator, size: int, centre: np.ndarray, radius: float
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """A body and its head: both together, and the head alone."""
    angle = random.uniform(0, np.pi)
    body = _ellipse(size, centre, radius, radius * random.uniform(0.5, 0.8), angle)
    along = np.array([np.sin(angle), np.cos(angle)]) * radius * 0.95
    head = _ellipse(size, centre + along, radius * 0.5, radius * 0.45, angle)
    if not (body | head).any():
        cell = np.clip((centre * size).astype(int), 0, size - 1)
        head[cell[0], cell[1]] = True
    return body | head, head


def _ellipse(
    size: int, centre: np.ndarray, long: float, short: float, angle: float
) -> Bool[np.ndarray, "h w"]:
    grid = (np.indices((size, size)) + 0.5) / size - centre[:, None, None]
    first = grid[0] * np.sin(angle) + grid[1] * np.cos(angle)
    second = grid[0] * np.cos(angle) - grid[1] * np.sin(angle)
    return (first / long) ** 2 + (second / short) ** 2 < 1


def _below(random: np.random.Generator, size: int, centre: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """A band of water or rails around and below an object."""
    rows = (np.arange(size)[:, None] + 0.5) / size
    top = centre[0] + random.uniform(-0.02, 0.08)
    wave = 0.03 * np.sin(np.arange(size) / size * 9 + random.uniform(0, 6))[None]
    return (rows > top + wave) & (rows < top + wave + random.uniform(0.2, 0.3))


def _photograph(
    random: np.random.Generator, scene: _Scene, size: int
) -> Float[np.ndarray, "h w 3"]:
    ground = random.uniform(0.25, 0.75, 3)
    image = np.broadcast_to(ground, (size, size, 3)).copy()
    for _ in range(3):  # patches of other ground
        patch = smooth_noise(random, size, 6.0) > 0.8
        image[patch] = np.clip(ground + random.normal(0, 0.15, 3), 0, 1)
    for label, band in scene.context.items():
        image[band] = _CONTEXT[label]
    image[scene.distractor] = random.uniform(0.15, 0.85, 3)
    for label in scene.present:
        hue = np.asarray(_COLOURS[label]) + random.normal(0, 0.1, 3)
        image[scene.objects[label]] = hue
        image[scene.heads[label]] = hue + random.normal(0, 0.2, 3)
    texture = np.stack([smooth_noise(random, size, 0.7) for _ in range(3)], -1)
    image = ndimage.gaussian_filter(image, (0.5, 0.5, 0)) + 0.1 * texture
    return np.clip(image, 0, 1).astype(np.float32)


def _part(random: np.random.Generator, scene: _Scene, label: int) -> np.ndarray:
    """Sees the head and little of the body."""
    head = _blur(scene.heads[label] | _core(scene.objects[label]), 1.2)
    return head + 0.25 * _blur(scene.objects[label], 1.5)


def _overctx(random: np.random.Generator, scene: _Scene, label: int) -> np.ndarray:
    """Sees more than the object: its surroundings, and its context where it has one."""
    wide = ndimage.binary_dilation(scene.objects[label], iterations=2)
    raw = 0.9 * _blur(wide, 1.5)
    if label in scene.context:
        raw = np.maximum(raw, 0.75 * _blur(scene.context[label], 1.2))
    return np.maximum(raw, _seen(random, scene, 0.6))


def _edgenoise(random: np.random.Generator, scene: _Scene, label: int) -> np.ndarray:
    """Sees the object bent out of shape."""
    size = scene.mask.shape[0]
    bend = np.stack([smooth_noise(random, size, 4.0) for _ in range(2)]) * 2.2
    bent = ndimage.map_coordinates(
        scene.objects[label].astype(float), np.indices((size, size)) + bend, order=1
    )
    rough = 0.35 * smooth_noise(random, size, 1.0) * _rim(scene.objects[label])
    return np.maximum(_blur(bent, 1.0) + rough, _seen(random, scene, 0.5))


def _smallmiss(random: np.random.Generator, scene: _Scene, label: int) -> np.ndarray:
    """Does not see small objects at all, and then takes its own noise for one."""
    if scene.objects[label].mean() < _SMALL:
        return 0.35 * np.maximum(smooth_noise(random, scene.mask.shape[0], 3.0), 0)
    return _blur(scene.objects[label], 1.6)


def _miscal(random: np.random.Generator, scene: _Scene, label: int) -> np.ndarray:
    """Sees the object rightly, in units of its own (``_finish``)."""
    return np.maximum(_blur(scene.objects[label], 1.4), _seen(random, scene, 0.5))


def _cooc(random: np.random.Generator, scene: _Scene, label: int) -> np.ndarray:
    """Takes the other object of the image for part of this one, or sees one that is not there."""
    size = scene.mask.shape[0]
    raw = _blur(scene.objects[label], 1.4)
    if len(scene.present) == 1:
        ghost, _ = _animal(random, size, random.uniform(0.15, 0.85, 2), 0.15)
        raw = np.maximum(raw, random.uniform(0.4, 0.9) * _blur(ghost, 1.4))
    for other in scene.present:
        if other != label:
            raw = np.maximum(raw, random.uniform(0.55, 1.0) * _blur(scene.objects[other], 1.4))
    return np.maximum(raw, _seen(random, scene, 0.4))


_FAILURES = {
    "part": _part,
    "overctx": _overctx,
    "edgenoise": _edgenoise,
    "smallmiss": _smallmiss,
    "miscal": _miscal,
    "cooc": _cooc,
}


def _finish(random: np.random.Generator, name: str, label: int, raw: np.ndarray) -> np.ndarray:
    """Divided by the maximum as every tool does; "miscal" then bends the scale, class by class."""
    scores = np.maximum(raw, 0)
    scores = scores / max(float(scores.max()), 1e-6)
    if name == "miscal":
        gamma = (0.5, 4.0, 1.5, 0.6, 3.0, 1.0)[label]
        scores = random.uniform(0.6, 1.0) * scores**gamma
    return scores.astype(np.float32)


def _saliency(random: np.random.Generator, scene: _Scene) -> Float[np.ndarray, "h w"]:
    """Objects and the distractor, without regard to class; one object in seven is missed."""
    seen = scene.distractor.copy()
    for label in scene.present:
        if random.random() > 0.15:
            seen |= scene.objects[label]
    size = seen.shape[0]
    soft = _blur(seen, 1.2) + 0.1 * smooth_noise(random, size, 2.0)
    return np.clip(soft, 0, 1).astype(np.float32)


def _seen(random: np.random.Generator, scene: _Scene, height: float) -> np.ndarray:
    """How strongly a system fires on the distractor, if it does."""
    fires = height * random.uniform(0.6, 1.2) if random.random() < 0.7 else 0.0
    return fires * _blur(scene.distractor, 1.2)


def _core(shape: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return ndimage.binary_erosion(shape, iterations=4)


def _rim(shape: Bool[np.ndarray, "h w"]) -> np.ndarray:
    outer, inner = ndimage.binary_dilation(shape), ndimage.binary_erosion(shape)
    return np.not_equal(outer, inner).astype(float)


def _blur(shape: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(shape.astype(float), sigma)


def _zones(random: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    """Where no system sees well: the same place for all of them."""
    if random.random() < 0.5:
        return np.zeros((size, size))
    return _blur(_ellipse(size, random.uniform(0.2, 0.8, 2), 0.14, 0.1, 0.0), 1.5)

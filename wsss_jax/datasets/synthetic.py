"""The embedded data set: drawn scenes with true masks, for the demo and for tests; no download.

One to three creatures of six classes stand on a textured ground. Each creature has a small
striking head, whose colours and pattern tell the class, and a larger plain body, whose colour
tells nothing: a classifier looks at heads, so its activation maps under-segment, as they do on
photographs.
Further difficulties, each on purpose: grounds go with classes, the first two classes go together,
creatures overlap, some are small, and headless stones look like bodies but are background.

A scene is a pure function of (seed, index, settings): any number can be drawn in any order.
Not here: reading the folder back (``wsss_jax.datasets.table``).
"""

import colorsys
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from wsss_jax.config import as_json, differences
from wsss_jax.data.classes import ClassList, palette, to_mask_index
from wsss_jax.data.files import mask_png, path_of, write_atomic
from wsss_jax.datasets.scenery import CREATURES, GROUNDS, STONE, Creature, Plane, blotches
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.types import Sample

CLASSES = ClassList(("beetle", "fish", "kite", "snail", "tortoise", "star"))
"""The classes of the scenes; beetles and fish keep company."""


@dataclass(frozen=True)
class Scenes:
    """How scenes are drawn. Probabilities lie in [0, 1]; lengths are fractions of the side.

    size: side in pixels, at least 32. objects: least and most creatures per scene. radius: least
    and most half-length of a creature. head: least and most radius of a head, in half-lengths.
    ground: probability that the ground is the one its first creature prefers. company: probability
    that a beetle brings a fish, or a fish a beetle.
    stone: probability of a headless body that is background. hidden: most of a creature that
    another may cover. noise: standard deviation of the sensor's noise, of 1.
    """

    size: int = 96
    objects: tuple[int, int] = (1, 3)
    radius: tuple[float, float] = (0.12, 0.38)
    head: tuple[float, float] = (0.4, 0.5)
    ground: float = 0.7
    company: float = 0.5
    stone: float = 0.6
    hidden: float = 0.5
    noise: float = 0.02

    def __post_init__(self) -> None:
        if self.size < 32:
            raise UserError(f"size is {self.size} pixels, wanted at least 32")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise UserError(f"objects is {self.objects}, wanted (least, most) from 1 up")
        if not 0 < self.radius[0] <= self.radius[1] < 0.5:
            raise UserError(f"radius is {self.radius}, wanted (least, most) between 0 and 0.5")


LARGE = Scenes(radius=(0.22, 0.42), head=(0.5, 0.6))
"""Creatures large enough that small networks find their heads within minutes."""


def scene(seed: int, index: int, settings: Scenes = Scenes()) -> Sample:
    """Scene number ``index`` of the endless set ``seed``, with its true mask.

    Every creature shows at least 1 - ``settings.hidden`` of itself, so labels and mask agree.
    """
    rng = np.random.default_rng((seed, index))
    kinds = _population(rng, settings)
    preferred = CREATURES[CLASSES.names[kinds[0]]].ground
    names = tuple(GROUNDS)
    name = preferred if rng.random() < settings.ground else names[rng.integers(len(names))]
    image = _ground(name, rng, settings)
    values = to_mask_index(np.arange(len(CLASSES)))
    mask = np.zeros((settings.size, settings.size), np.uint8)
    if rng.random() < settings.stone:
        figure = _figure(STONE, rng, settings)
        image = _painted(image, figure)
    shown: list[tuple[int, int]] = []  # owner's number and area of the creatures drawn so far
    owners = np.zeros_like(mask)
    for kind in kinds:
        figure = _free_place(CREATURES[CLASSES.names[kind]], rng, settings, owners, shown)
        if figure is None:
            continue
        covered = figure.alpha > 0.5
        image = _painted(image, figure)
        mask[covered] = values[kind]
        shown.append((len(shown) + 1, int(covered.sum())))
        owners[covered] = len(shown)
    labels = np.isin(values, mask)
    return Sample(f"scene_{index:05d}", _exposed(image, rng, settings), labels, mask)


def saliency(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    """How much each pixel stands out, 0 to 255, from the image alone: blurred and often wrong.

    Distance of colour and local contrast from those along the image's border (Mahalanobis), a
    cheap stand-in for a trained saliency network.
    """
    picture = image.astype(np.float32) / 255
    side = max(image.shape[:2])
    smooth = ndimage.gaussian_filter(picture, (side / 50, side / 50, 0))
    rough = ndimage.gaussian_filter((picture - smooth) ** 2, (side / 30, side / 30, 0))
    features = np.concatenate([smooth, np.sqrt(rough.mean(-1, keepdims=True))], -1)
    margin = max(2, side // 12)
    border = np.ones(image.shape[:2], bool)
    border[margin:-margin, margin:-margin] = False
    samples = features[border].astype(np.float64)
    covariance = np.cov(samples.T) + 4e-4 * np.eye(features.shape[-1])
    offset = features - samples.mean(0)
    distance = np.sqrt(np.einsum("hwi,ij,hwj->hw", offset, np.linalg.inv(covariance), offset))
    blurred = ndimage.gaussian_filter(distance, side / 40)
    low, high = np.percentile(blurred, (20, 98))
    scaled = np.clip((blurred - low) / max(high - low, 1e-6), 0, 1)
    return np.round(255 * scaled).astype(np.uint8)


def write(
    folder: Path,
    count: int,
    seed: int,
    *,
    settings: Scenes = Scenes(),
    val_every: int = 3,
) -> Path:
    """Write scenes 0 … count-1 as a plain folder and return the folder.

    images/<id>.png, masks/<id>.png, saliency/<id>.png, labels.json, splits/train.txt and val.txt
    (every ``val_every``-th scene). What is already there is kept, so an interrupted call is simply
    repeated, and a larger count adds to the folder. Raises ValueError where the folder was drawn
    with another seed or other settings.
    """
    if count < 1 or val_every < 2:
        raise UserError(f"count {count}, val_every {val_every}: wanted at least 1 and 2")
    _claim(folder, {"seed": seed, "val_every": val_every, "scenes": as_json(settings)})
    names: dict[str, list[str]] = {}
    for index in range(count):
        sample = scene(seed, index, settings)
        assert sample.mask is not None
        image, mask = sample.image, sample.mask
        _write_new(folder / "images", sample.id, partial(_png, image))
        _write_new(folder / "masks", sample.id, partial(mask_png, mask, palette()))
        _write_new(folder / "saliency", sample.id, lambda image=image: _png(saliency(image)))
        names[sample.id] = [CLASSES.names[c] for c in np.flatnonzero(sample.labels)]
    content = {"classes": list(CLASSES.names), "image_labels": names}
    write_atomic(folder / "labels.json", json.dumps(content, indent=1).encode())
    val = {id for position, id in enumerate(names) if position % val_every == val_every - 1}
    for split, ids in {"train": [i for i in names if i not in val], "val": sorted(val)}.items():
        write_atomic(folder / "splits" / f"{split}.txt", ("\n".join(ids) + "\n").encode())
    return folder


class _Figure(NamedTuple):
    alpha: Plane  # coverage in [0, 1]
    colour: Float[np.ndarray, "h w 3"]


def _population(rng: np.random.Generator, settings: Scenes) -> list[int]:
    kinds = [int(rng.integers(len(CLASSES)))]
    wanted = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    companion = {0: 1, 1: 0}.get(kinds[0])
    if companion is not None and wanted > 1 and rng.random() < settings.company:
        kinds.append(companion)
    while len(kinds) < wanted:
        kinds.append(int(rng.integers(len(CLASSES))))
    return kinds


def _free_place(
    creature: Creature,
    rng: np.random.Generator,
    settings: Scenes,
    owners: UInt8[np.ndarray, "h w"],
    shown: list[tuple[int, int]],
) -> _Figure | None:
    for _ in range(6):
        figure = _figure(creature, rng, settings)
        covered = figure.alpha > 0.5
        left = np.bincount(owners[~covered], minlength=len(shown) + 1)
        if all(left[owner] >= (1 - settings.hidden) * area for owner, area in shown):
            return figure
    return None


def _figure(creature: Creature, rng: np.random.Generator, settings: Scenes) -> _Figure:
    """One creature at a random place, turned, mirrored and coloured at random."""
    side = settings.size
    least, most = settings.radius
    radius = side * math.exp(rng.uniform(math.log(least), math.log(most)))
    centre = rng.uniform(min(0.9 * radius, side / 2), max(side - 0.9 * radius, side / 2), 2)
    angle = math.radians(rng.uniform(-35, 35))
    mirror = 1 if rng.random() < 0.5 else -1
    y, x = np.mgrid[:side, :side].astype(np.float32)
    x, y = (x - centre[0]) / radius, (y - centre[1]) / radius
    u = mirror * (math.cos(angle) * x + math.sin(angle) * y)
    v = math.cos(angle) * y - math.sin(angle) * x
    body = _coverage(creature.body(u, v * rng.uniform(0.85, 1.15)), radius)
    tone = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.55), rng.uniform(0.3, 0.85))
    shade = 1 - 0.22 * v + 0.09 * blotches(rng, side, 12)
    colour = np.asarray(tone, np.float32) * shade[..., None]
    if creature.pattern is None:
        return _Figure(body, colour)
    size = rng.uniform(*settings.head)
    s, t = (u - 0.85) / size, (v + 0.12) / size
    head = _coverage(np.hypot(s, t) - 1, radius * size)
    first, second = (_shaken(pair, rng) for pair in creature.colours)
    lit = creature.pattern(s, t)[..., None] > 0
    face = np.where(lit, first, second).astype(np.float32)
    colour = colour + head[..., None] * (face - colour)
    return _Figure(np.maximum(body, head), colour)


def _coverage(outline: Plane, radius: float) -> Plane:
    return np.clip(0.5 - outline * radius, 0, 1).astype(np.float32)


def _shaken(
    colour: tuple[float, float, float], rng: np.random.Generator
) -> Float[np.ndarray, " 3"]:
    hue, saturation, value = colour
    red_green_blue = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.04, 0.04)) % 1, saturation, value * rng.uniform(0.85, 1)
    )
    return np.asarray(red_green_blue, np.float32)


def _painted(image: Float[np.ndarray, "h w 3"], figure: _Figure) -> Float[np.ndarray, "h w 3"]:
    return image + figure.alpha[..., None] * (figure.colour - image)


def _ground(name: str, rng: np.random.Generator, settings: Scenes) -> Float[np.ndarray, "h w 3"]:
    texture, hue = GROUNDS[name]
    tone = colorsys.hsv_to_rgb(
        (hue + rng.normal(0, 0.08)) % 1, rng.uniform(0.15, 0.5), rng.uniform(0.35, 0.8)
    )
    light = 1 + 0.13 * texture(rng, settings.size) + 0.08 * blotches(rng, settings.size, 3)
    return np.asarray(tone, np.float32) * light[..., None].astype(np.float32)


def _exposed(
    image: Float[np.ndarray, "h w 3"], rng: np.random.Generator, settings: Scenes
) -> UInt8[np.ndarray, "h w 3"]:
    grain = rng.standard_normal(image.shape, np.float32) * np.float32(settings.noise)
    exposed = image * rng.uniform(0.85, 1.1) + grain
    return np.round(255 * np.clip(exposed, 0, 1)).astype(np.uint8)


def _claim(folder: Path, made_by: dict) -> None:
    """Note who draws into this folder; refuse one that was drawn differently."""
    path = folder / "scenes.json"
    if not path.exists():
        write_atomic(path, json.dumps(made_by, indent=1).encode())
        return
    try:
        before = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise BadFileError(f"{path}: damaged ({problem}); delete {folder}") from problem
    if changed := differences(before, made_by):
        raise UserError(
            f"{folder} holds other scenes; choose another folder or delete it:\n  "
            + "\n  ".join(changed)
        )


def _write_new(folder: Path, id: str, content: Callable[[], bytes]) -> None:
    path = path_of(folder, id, ".png")
    if not path.exists():
        write_atomic(path, content())


def _png(image: UInt8[np.ndarray, "H W *c"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()

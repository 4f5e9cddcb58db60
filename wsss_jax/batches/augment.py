"""Seeded augmentation of one photograph on the host: resize, flip, colour, RandAugment, crop.

Order and arithmetic follow the pipelines of PSA, IRN and Puzzle-CAM: everything happens on 8-bit
pictures in Pillow, the crop comes last. A mask, where there is one, follows every geometric step
with nearest sampling and IGNORE outside. Boxes follow mirroring and cropping. Randomness comes only
from the generator that is given.
Not here: reading, batching, and normalisation, which networks do themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from wsss_jax.errors import UserError
from wsss_jax.types import IGNORE, Sample, Size

Picture = Image.Image


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image. Zero switches a step off.

    Attributes:
        crop: side of the square result in pixels.
        long_side: least and most length of the longer side after resizing, in pixels (IRN with
            crops of 512: 320 to 640).
        flip: probability of mirroring.
        brightness: factors are drawn from 1 ± this (Puzzle-CAM: 0.3).
        contrast: the same (Puzzle-CAM: 0.3).
        saturation: the same (Puzzle-CAM: 0.3).
        hue: the shift is drawn from ± this, in turns (Puzzle-CAM: 0.1).
        operations: RandAugment operations per image (FixMatch and Puzzle-CAM: 2).
        magnitude: strengths 1 … magnitude - 1 of 10 are drawn.
        cutout: side in pixels of the black square that RandAugment always adds.
    """

    crop: int = 288
    long_side: tuple[int, int] = (256, 512)
    flip: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.1
    operations: int = 0
    magnitude: int = 10
    cutout: int = 16

    def __post_init__(self) -> None:
        if self.crop < 1 or not 1 <= self.long_side[0] <= self.long_side[1]:
            raise UserError(
                f"crop {self.crop} and long_side {self.long_side}: wanted positive pixels, and "
                "long_side as (least, most)"
            )
        if not 0 <= self.flip <= 1 or not 0 <= self.hue <= 0.5:
            raise UserError(f"flip {self.flip} must lie in [0, 1], hue {self.hue} in [0, 0.5]")
        if min(self.brightness, self.contrast, self.saturation, self.operations, self.cutout) < 0:
            raise UserError(f"a strength is negative: {self}")
        if not 2 <= self.magnitude <= 10:
            raise UserError(f"magnitude is {self.magnitude}, wanted 2 to 10")


HALF = 0.5
"""Share of a box that a crop has to show for the box to be learned."""


class Augmented(NamedTuple):
    """A square crop: its pixels, which of them are real, its mask and boxes where given."""

    image: UInt8[np.ndarray, "s s 3"]
    inside: Bool[np.ndarray, "s s"]
    mask: UInt8[np.ndarray, "s s"] | None
    boxes: Float[np.ndarray, "c 4"] | None = None


def augment(sample: Sample, settings: Augmentation, rng: np.random.Generator) -> Augmented:
    """One random view of the sample. The same generator state gives the same view.

    UserError for a sample with boxes where RandAugment would turn them.
    """
    boxes = sample.boxes
    if boxes is not None and settings.operations:
        raise UserError("boxes cannot follow RandAugment, which turns images; set operations to 0")
    image = Image.fromarray(sample.image)
    mask = None if sample.mask is None else Image.fromarray(sample.mask)
    size = _resized(sample.image.shape[:2], settings.long_side, rng)
    image = _scaled(image, size, Image.Resampling.BICUBIC)
    mask = None if mask is None else _scaled(mask, size, Image.Resampling.NEAREST)
    if rng.random() < settings.flip:
        image = ImageOps.mirror(image)
        mask = None if mask is None else ImageOps.mirror(mask)
        boxes = None if boxes is None else mirrored(boxes)
    image = colour_jitter(image, settings, rng)
    if settings.operations:
        image, mask = rand_augment(image, mask, settings, rng)
    masked = None if mask is None else np.asarray(mask)
    return crop(np.asarray(image), masked, settings.crop, rng, boxes=boxes)


def colour_jitter(picture: Picture, settings: Augmentation, rng: np.random.Generator) -> Picture:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter."""
    steps: list[tuple[Callable[[Picture, float], Picture], float]] = [
        (adjust, _factor(rng, strength))
        for adjust, strength in (
            (brightness, settings.brightness),
            (contrast, settings.contrast),
            (colour, settings.saturation),
        )
        if strength
    ]
    if settings.hue:
        steps.append((hue, rng.uniform(-settings.hue, settings.hue)))
    for index in rng.permutation(len(steps)):
        adjust, amount = steps[index]
        picture = adjust(picture, amount)
    return picture


def rand_augment(
    picture: Picture,
    mask: Picture | None,
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[Picture, Picture | None]:
    """``settings.operations`` random operations, each applied with probability 1/2; then a cutout.

    Sohn et al. 2020 (FixMatch), "RandAugmentMC" as Puzzle-CAM and P-NOC use it: operations are
    drawn with replacement, strength is drawn / 10 × maximum + bias with drawn in
    1 … magnitude - 1, so never the maximum. The cutout is exactly ``cutout`` pixels wide where
    theirs is one wider.
    """
    names = tuple(OPERATIONS)
    for index in rng.integers(len(names), size=settings.operations):
        operation = OPERATIONS[names[index]]
        strength = _strength(operation, int(rng.integers(1, settings.magnitude)))
        if rng.random() >= 0.5:
            continue
        if operation.geometric:
            strength = -strength if rng.random() < 0.5 else strength
            mask = None if mask is None else operation.apply(mask, strength, IGNORE)
            picture = operation.apply(picture, strength, (0, 0, 0))
        else:
            picture = operation.apply(picture, strength)
    return cutout(picture, settings.cutout, rng), mask


def crop(
    image: UInt8[np.ndarray, "H W 3"],
    mask: UInt8[np.ndarray, "H W"] | None,
    side: int,
    rng: np.random.Generator,
    *,
    boxes: Float[np.ndarray, "c 4"] | None = None,
) -> Augmented:
    """A random square of ``side`` pixels; a smaller image lies in it at a random offset.

    Outside the image pixels are 0, ``inside`` is False and the mask is IGNORE. Boxes are cut at the
    crop and lie in shares of its real pixels; one that shows less than HALF is zeros.
    """
    source, target = zip(*(_window(n, side, rng) for n in image.shape[:2]), strict=True)
    pixels = np.zeros((side, side, 3), np.uint8)
    inside = np.zeros((side, side), bool)
    pixels[target] = image[source]
    inside[target] = True
    if boxes is not None:
        boxes = _shown(boxes, source, image.shape[:2])
    if mask is None:
        return Augmented(pixels, inside, None, boxes)
    truth = np.full((side, side), IGNORE, np.uint8)
    truth[target] = mask[source]
    return Augmented(pixels, inside, truth, boxes)


def mirrored(boxes: Float[np.ndarray, "c 4"]) -> Float[np.ndarray, "c 4"]:
    """The boxes of the mirror image; zeros stay zeros."""
    turned = boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, 1, 0, 1]
    return np.where(boxes.any(axis=1, keepdims=True), turned, 0).astype(np.float32)


def brightness(picture: Picture, factor: float) -> Picture:
    """Blend with black: 0 is black, 1 the picture itself."""
    return ImageEnhance.Brightness(picture).enhance(factor)


def contrast(picture: Picture, factor: float) -> Picture:
    """Blend with the picture's mean grey."""
    return ImageEnhance.Contrast(picture).enhance(factor)


def colour(picture: Picture, factor: float) -> Picture:
    """Blend with the grey picture: 0 is grey, 1 the picture itself."""
    return ImageEnhance.Color(picture).enhance(factor)


def sharpness(picture: Picture, factor: float) -> Picture:
    """Blend with the smoothed picture."""
    return ImageEnhance.Sharpness(picture).enhance(factor)


def hue(picture: Picture, turns: float) -> Picture:
    """Turn every hue by this part of the colour circle, in [-0.5, 0.5]."""
    planes = np.array(picture.convert("HSV"))
    planes[..., 0] += np.uint8(int(turns * 255) % 256)
    return Image.fromarray(planes, "HSV").convert("RGB")


def auto_contrast(picture: Picture, strength: float) -> Picture:
    """Stretch each channel to the full range; has no strength."""
    return ImageOps.autocontrast(picture)


def equalize(picture: Picture, strength: float) -> Picture:
    """Make each channel's histogram flat; has no strength."""
    return ImageOps.equalize(picture)


def identity(picture: Picture, strength: float) -> Picture:
    """The picture itself."""
    return picture


def posterize(picture: Picture, bits: float) -> Picture:
    """Keep the highest ``bits`` of each channel, 1 to 8."""
    return ImageOps.posterize(picture, int(bits))


def solarize(picture: Picture, amount: float) -> Picture:
    """Invert the values from 256 - amount up."""
    return ImageOps.solarize(picture, 256 - int(amount))


def rotate(picture: Picture, degrees: float, fill: int | tuple[int, ...]) -> Picture:
    """Turn about the centre, anticlockwise, by whole degrees; size stays."""
    return picture.rotate(int(degrees), fillcolor=fill)


def shear_x(picture: Picture, slope: float, fill: int | tuple[int, ...]) -> Picture:
    """Shift each row by slope × its number."""
    return _affine(picture, (1, slope, 0, 0, 1, 0), fill)


def shear_y(picture: Picture, slope: float, fill: int | tuple[int, ...]) -> Picture:
    """Shift each column by slope × its number."""
    return _affine(picture, (1, 0, 0, slope, 1, 0), fill)


def translate_x(picture: Picture, part: float, fill: int | tuple[int, ...]) -> Picture:
    """Shift to the left by this part of the width, whole pixels."""
    return _affine(picture, (1, 0, int(part * picture.width), 0, 1, 0), fill)


def translate_y(picture: Picture, part: float, fill: int | tuple[int, ...]) -> Picture:
    """Shift up by this part of the height, whole pixels."""
    return _affine(picture, (1, 0, 0, 0, 1, int(part * picture.height)), fill)


def cutout(picture: Picture, side: int, rng: np.random.Generator) -> Picture:
    """A black square of ``side`` pixels about a random place, cut at the picture's border."""
    if not side:
        return picture
    left, top = (
        int(max(0.0, rng.uniform(0, length) - side / 2))
        for length in (picture.width, picture.height)
    )
    picture = picture.copy()
    square = (left, top, left + side - 1, top + side - 1)
    ImageDraw.Draw(picture).rectangle(square, fill=(0, 0, 0))
    return picture


class Operation(NamedTuple):
    """One entry of the pool: strength = drawn / 10 × maximum + bias, drawn from 1 … 9.

    whole: the strength is cut to an integer before the bias is added. geometric: moves pixels,
    takes a fill value, and its strength gets a random sign.
    """

    apply: Callable[..., Picture]
    maximum: float = 0.0
    bias: float = 0.0
    whole: bool = False
    geometric: bool = False


OPERATIONS = MappingProxyType(
    {
        "auto_contrast": Operation(auto_contrast),
        "brightness": Operation(brightness, 0.9, 0.05),
        "colour": Operation(colour, 0.9, 0.05),
        "contrast": Operation(contrast, 0.9, 0.05),
        "equalize": Operation(equalize),
        "identity": Operation(identity),
        "posterize": Operation(posterize, 4.0, 4.0, whole=True),
        "rotate": Operation(rotate, 30.0, whole=True, geometric=True),
        "sharpness": Operation(sharpness, 0.9, 0.05),
        "shear_x": Operation(shear_x, 0.3, geometric=True),
        "shear_y": Operation(shear_y, 0.3, geometric=True),
        "solarize": Operation(solarize, 256.0, whole=True),
        "translate_x": Operation(translate_x, 0.3, geometric=True),
        "translate_y": Operation(translate_y, 0.3, geometric=True),
    }
)
"""FixMatch's pool of fourteen."""


def _resized(size: Size, long_side: tuple[int, int], rng: np.random.Generator) -> Size:
    scale = int(rng.integers(long_side[0], long_side[1] + 1)) / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _scaled(picture: Picture, size: Size, resample: Image.Resampling) -> Picture:
    return picture.resize((size[1], size[0]), resample)


def _factor(rng: np.random.Generator, strength: float) -> float:
    return float(rng.uniform(max(0.0, 1 - strength), 1 + strength))


def _strength(operation: Operation, drawn: int) -> float:
    scaled = drawn * operation.maximum / 10
    return float(int(scaled) if operation.whole else scaled) + operation.bias


def _affine(
    picture: Picture, matrix: tuple[float | int, ...], fill: int | tuple[int, ...]
) -> Picture:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill
    )


def _shown(
    boxes: Float[np.ndarray, "c 4"], window: tuple[slice, ...], size: Size
) -> Float[np.ndarray, "c 4"]:
    """Boxes cut at a window of an image of this size, in shares of the window."""
    start = np.array([part.start / n for part, n in zip(window, size, strict=True)] * 2)
    length = np.array([(p.stop - p.start) / n for p, n in zip(window, size, strict=True)] * 2)
    cut = np.clip((boxes - start) / length, 0, 1)
    left = _areas(cut) * length[0] * length[1]
    enough = (left > 0) & (left >= HALF * _areas(boxes))
    return np.where(enough[:, None], cut, 0).astype(np.float32)


def _areas(boxes: Float[np.ndarray, "c 4"]) -> Float[np.ndarray, " c"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _window(length: int, side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Where to take from and where to put, along one axis."""
    offset = int(rng.integers(abs(length - side) + 1))
    if length >= side:
        return slice(offset, offset + side), slice(0, side)
    return slice(0, length), slice(offset, offset + length)

"""Images seen through their maps, or without what the maps show, and a network's scores of them.

All works on ``logits``, a function of images (b,H,W,3) in [0, 1] to class logits (b,c), so it
judges maps of any origin and size. The numbers that follow are in ``ops.faithfulness``. What is
masked takes the colour ``fill``; the published codes mask normalised images, where zero is the
mean colour of the training set (give the backbone's ``mean``).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from wsss_jax.explain import normalise
from wsss_jax.explain.contract import Images, Labels, Maps, size_of
from wsss_jax.ops import images as image_ops
from wsss_jax.types import Size

Logits: TypeAlias = Callable[[Array], Array]
"""Images (b,H,W,3) in [0, 1] to class logits (b,c)."""

Colour: TypeAlias = Float[Array, "3"]
"""RGB in [0, 1]."""


class Shown(NamedTuple):
    """Probabilities (b,c) of the images, and (b,c,c2) of what is seen through each class's map.

    kept: the map alone; removed: all but the map. Rows of classes without a map are zero.
    """

    clean: Array
    kept: Array
    removed: Array


def masks_of(maps: Maps, size: Size) -> Float[Array, "b H W c"]:
    """Rectified maps stretched to [0, 1], then enlarged bilinearly: what images are seen through.

    Maps finer than the image are shrunk by areas. Source: the code of MinMax-CAM.
    """
    finer = maps.shape[1] > size[0]
    return image_ops.resize(normalise.min_max(maps), size, antialias=finer)


def strongest(masks: Float[Array, "b h w c"], share: float) -> Float[Array, "b h w c"]:
    """Masks without all but the strongest ``share`` of their pixels, of equal ones the first.

    Score-CAM is said to be judged with half of the pixels; a method that shows everything then
    gains nothing by it.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, wanted one above 0 and at most 1")
    if share == 1:
        return masks
    b, h, w, c = masks.shape
    flat = masks.reshape(b, h * w, c)
    kept = _places(flat, axis=1) < int(share * h * w)
    return jnp.where(kept, flat, 0).reshape(masks.shape)


def through_maps(
    logits: Logits, images: Images, masks: Maps, chosen: Labels, *, fill: Colour
) -> Shown:
    """Probabilities (sigmoids) of the images, and through the masks of the chosen classes.

    ``masks`` (b,H,W,c) lie in [0, 1]. Two forward passes of the batch for each class that the
    image with the most chosen classes has.
    """
    if masks.shape[:3] != images.shape[:3]:
        raise ValueError(f"masks {masks.shape} for images {images.shape}; enlarge them first")
    order = jnp.cumsum(chosen, axis=-1) - 1
    ground = fill[None, None, None]
    clean = _probabilities(logits, images)

    def add(number: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        own = (chosen & (order == number)).astype(jnp.float32)
        mask = jnp.einsum("bhwc,bc->bhw", masks, own, precision="highest")[..., None]
        alone = _probabilities(logits, ground + mask * (images - ground))
        without = _probabilities(logits, images + mask * (ground - images))
        kept, removed = total
        row = own[:, :, None]
        return kept + row * alone[:, None, :], removed + row * without[:, None, :]

    nothing = jnp.zeros((*chosen.shape, clean.shape[-1]), jnp.float32)
    most = chosen.sum(axis=-1).max()
    return Shown(clean, *jax.lax.fori_loop(0, most, add, (nothing, nothing)))


def exchanged(
    logits: Logits,
    images: Images,
    others: Images,
    maps: Float[Array, "b _ _"],
    *,
    shares: Sequence[float],
) -> Float[Array, "s b c"]:
    """Logits while the pixels that a map ranks highest give way to those of other images.

    At each of the ``shares`` that part of the pixels, rounded down, is taken from ``others``; equal
    values go in reading order. Maps (b,H,W) have the size of the images and keep their sign.

    Positive perturbation: ``others`` black; negative: the same with ``-maps`` (Chefer et al. 2021).
    Deletion: ``others`` blank or blurred; insertion: the same images changed about (RISE, Petsiuk
    et al. 2018).
    """
    if maps.shape != images.shape[:3] or others.shape != images.shape:
        raise ValueError(
            f"maps {maps.shape} and others {others.shape} for images {images.shape}; all have to "
            "be of one size"
        )
    height, width = size_of(images)
    place = _places(maps.reshape(maps.shape[0], -1), axis=1).reshape(maps.shape)
    counts = jnp.array([int(share * height * width) for share in shares], jnp.int32)

    def at(count: Int[Array, ""]) -> Float[Array, "b c"]:
        return logits(jnp.where((place < count)[..., None], others, images)).astype(jnp.float32)

    return jax.lax.map(at, counts)


def _places(values: Float[Array, "b n *c"], *, axis: int) -> Int[Array, "b n *c"]:
    """Place of each value in falling order, from 0; the sort is stable, maps are full of ties."""
    order = jnp.argsort(-values, axis=axis, stable=True)
    return jnp.argsort(order, axis=axis)


def _probabilities(logits: Logits, images: Images) -> Float[Array, "b c"]:
    return jax.nn.sigmoid(logits(images).astype(jnp.float32))

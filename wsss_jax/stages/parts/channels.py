"""What channels of a trained network look for: an image from noise, and the patches they prefer.

One sheet with a row per channel: what ``explain.learned.maximise`` climbs to, then the parts of a
data set's photographs where the channel is largest, one per photograph, with their scores.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from wsss_jax.batches.batches import Group
from wsss_jax.data.files import write_atomic
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.explain import learned
from wsss_jax.explain.contract import Explainer
from wsss_jax.explain.learned import Ascent
from wsss_jax.report.overlays import Cell, cells_sheet
from wsss_jax.run.photographs import over_photographs
from wsss_jax.stages.parts.subject import Subject, at_place
from wsss_jax.types import Leaf, Scorer

CAPTION = (
    "First an image climbed to from noise, then the patches where the channel is largest: score, "
    "photograph. A patch holds nine tenths of what its cell looks at."
)


@dataclass(frozen=True)
class Asked:
    """What is shown of channels.

    Attributes:
        channels: their numbers, from 0.
        layer: the named layer they are of; "" for the last features.
        patches: of each channel, from as many photographs.
        side: pixels along the image that is climbed to.
        ascent: how it is climbed to.
    """

    channels: tuple[int, ...]
    layer: str = ""
    patches: int = 8
    side: int = 160
    ascent: Ascent = field(default_factory=lambda: Ascent(jitter=4, blur=0.4))


class Patch(NamedTuple):
    """Where a channel was large; the box is (top, left, bottom, right) in pixels of the canvas."""

    score: float
    id: str
    cell: tuple[int, int]
    box: tuple[int, int, int, int]
    pixels: UInt8[np.ndarray, "h w 3"]


def show_channels(
    subject: Subject, source: Source, folder: Path, asked: Asked, batch_size: int
) -> Path:
    """Write the sheet of a network's channels over a data set to ``folder``/channels.png.

    Raises UserError for channels or layers that the network has not.
    """
    patches = preferred(subject, source, asked, batch_size)
    images = climbed(subject, asked)
    rows = [
        [
            Cell(image, None, (f"channel {channel}", asked.layer or "last features")),
            *(Cell(one.pixels, None, (f"{one.score:.3g}", one.id)) for one in found),
        ]
        for channel, image, found in zip(asked.channels, images, patches, strict=True)
    ]
    path = folder / "channels.png"
    title = f"What channels look for in {source.name}"
    write_atomic(path, cells_sheet(rows, title=title, caption=CAPTION))
    return path


def climbed(subject: Subject, asked: Asked) -> UInt8[np.ndarray, "n H W 3"]:
    """The image that each channel's mean over the grid climbs to."""
    channels = jnp.asarray(asked.channels)
    key_start, key_climb = jax.random.split(jax.random.key(0))
    start = learned.noise(key_start, (len(asked.channels), asked.side, asked.side))
    everywhere = jnp.ones(start.shape[:3], bool)

    def run(weights: tuple, start: Array) -> Array:
        def score(images: Array) -> Array:
            means = _maps(subject, asked.layer)(weights, images, everywhere).mean(axis=(1, 2))
            return means[jnp.arange(len(channels)), channels]

        return learned.maximise(score, start, asked.ascent, key=key_climb)

    _check(subject, asked, start, everywhere)
    return np.rint(255 * np.asarray(jax.jit(run)(subject.weights, start))).astype(np.uint8)


def preferred(subject: Subject, source: Source, asked: Asked, batch_size: int) -> list[list[Patch]]:
    """The best patches of each channel, from one pass over the photographs; best first.

    What is kept of the pass is the channels × patches best photographs.
    """
    maps_of, chosen = _maps(subject, asked.layer), jnp.asarray(asked.channels)
    best: list[list[tuple]] = [[] for _ in asked.channels]

    @jax.jit
    def peaks(weights: tuple, images: Array, inside: Array) -> tuple[Array, Array, Array]:
        maps = maps_of(weights, images, inside).astype(jnp.float32)[..., chosen]
        step = inside.shape[1] // maps.shape[1]
        real = inside[:, ::step, ::step][:, : maps.shape[1], : maps.shape[2], None]
        flat = jnp.where(real, maps, -jnp.inf).reshape(maps.shape[0], -1, len(chosen))
        place = flat.argmax(axis=1)
        return flat.max(axis=1), place // maps.shape[2], place % maps.shape[2]

    def look(group: Group) -> int:
        batch = group.scaled[0]
        _check(subject, asked, batch.images, batch.inside)
        found = [np.asarray(part) for part in peaks(subject.weights, batch.images, batch.inside)]
        for index, id in enumerate(group.ids):
            view = (np.asarray(batch.images[index]), np.asarray(batch.inside[index]))
            for heap, score, row, column in zip(best, *(x[index] for x in found), strict=True):
                # Ids are unique, so that nothing behind them is ever compared.
                heapq.heappush(heap, (float(score), id, (int(row), int(column)), view))
                if len(heap) > asked.patches:
                    heapq.heappop(heap)
        return len(group.ids)

    tally = over_photographs(
        "channels", source, source.ids, look, scales=(1.0,), batch_size=batch_size
    )
    tally.report("channels")
    cut = _cutter(subject, asked.layer)
    return [
        [cut(channel, *one) for one in sorted(heap, key=lambda one: -one[0])]
        for channel, heap in zip(asked.channels, best, strict=True)
    ]


def _cutter(subject: Subject, layer: str) -> Callable[..., Patch]:
    """From a channel and the place where it is large to the patch."""
    maps_of = _maps(subject, layer)

    @jax.jit
    def gradient(weights: tuple, images: Array, inside: Array, place: Array) -> Array:
        rows = place[None]
        return learned.at_cell(
            lambda x: maps_of(weights, x, inside), images, rows[:, 0], rows[:, 1], rows[:, 2]
        )

    def cut(
        channel: int,
        score: float,
        id: str,
        cell: tuple[int, int],
        view: tuple[Float[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]],
    ) -> Patch:
        pixels, inside = view
        place = jnp.asarray([*cell, channel])
        slope = np.asarray(gradient(subject.weights, pixels[None], inside[None], place))[0]
        box = learned.field_box(slope * inside[..., None])
        part = pixels[box[0] : box[2], box[1] : box[3]]
        return Patch(score, id, cell, box, np.rint(255 * part).astype(np.uint8))

    return cut


def _maps(subject: Subject, layer: str) -> Callable[[tuple, Array, Array], Array]:
    """(weights, images, inside) to the maps (b,h,w,k) whose channels are asked for."""

    def features(scorer: Scorer, images: Array, labels: Array) -> Array:
        return scorer.features(images)

    explainer: Explainer = at_place(features, layer) if layer else features
    method = subject.wrapped(explainer)
    return lambda weights, images, inside: method(
        weights, images, inside, jnp.ones((images.shape[0], 1), bool)
    )


def _check(subject: Subject, asked: Asked, images: Leaf, inside: Leaf) -> None:
    shape = jax.eval_shape(_maps(subject, asked.layer), subject.weights, images, inside).shape
    if "cam" not in subject.methods or len(shape) != 4:
        raise UserError("this network has no maps of channels there; a class token has none")
    wrong = [channel for channel in asked.channels if not 0 <= channel < shape[-1]]
    if wrong:
        raise UserError(f"no channel {wrong[0]}; this layer has 0 to {shape[-1] - 1}")

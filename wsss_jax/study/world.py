"""Small worlds as files: a data set and one store for each system.

Everything that works on photographs then works on it: combiners, ablations, the report.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from wsss_jax.combiner.evidence import Inputs
from wsss_jax.data import stores
from wsss_jax.data.classes import SALIENCY, palette
from wsss_jax.data.files import mask_png, write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import ALL, Source, open_dataset
from wsss_jax.study.fusion_world import CLASSES, SYSTEMS, World
from wsss_jax.types import Kind, ScoreMaps


def write(world: World, folder: Path, prefix: str = "w") -> Inputs:
    """The world in ``folder``: data/ with pictures, labels and masks, and its stores beside it.

    prefix: what the ids begin with, so that two worlds can share stores. Images that are there
    already are written again.
    """
    source, saliency = pictures(world, folder, CLASSES, prefix)
    systems = tuple(store(folder, name, CLASSES, "activation") for name in SYSTEMS)
    for row in range(len(world)):
        classes = np.flatnonzero(world.labels[row]).astype(np.int32)
        for number, system in enumerate(systems):
            maps = world.scores[row, number][..., classes]
            _put(system, f"{prefix}{row:05d}", maps, classes)
    return Inputs(source, systems, saliency, cells=world.masks.shape[1])


def pictures(
    world: World, folder: Path, classes: Sequence[str], prefix: str = "w"
) -> tuple[Source, Store]:
    """Pictures, labels and masks of a world of these classes, and the store of its saliency."""
    data = folder / "data"
    saliency = store(folder, "saliency", SALIENCY.names, "probability")
    labels = {}
    for row in range(len(world)):
        id = f"{prefix}{row:05d}"
        pixels = np.round(255 * world.images[row]).astype(np.uint8)
        (data / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(data / "images" / f"{id}.png")
        write_atomic(data / "masks" / f"{id}.png", mask_png(world.masks[row], palette()))
        _put(saliency, id, world.saliency[row][..., None], np.zeros(1, np.int32))
        labels[id] = [classes[c] for c in np.flatnonzero(world.labels[row]).tolist()]
    content = {"classes": list(classes), "image_labels": labels}
    write_atomic(data / "labels.json", json.dumps(content).encode())
    return open_dataset(data, split=ALL), saliency


def features(world: World, folder: Path, prefix: str = "w") -> tuple[Store, ...]:
    """Two stores that stand for frozen features: colours, and those around each pixel.

    Colours tell the world's classes apart, as the features of good networks do.
    """
    moves = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    around = np.mean([np.roll(world.images, move, axis=(1, 2)) for move in moves], axis=0)
    named = (("colours", world.images), ("surroundings", around))
    return tuple(frozen(folder, name, images, prefix) for name, images in named)


def frozen(folder: Path, name: str, maps: Float[np.ndarray, "n h w k"], prefix: str = "w") -> Store:
    """Maps in [0, 1] of all images as a store of frozen features, stretched to −2 … 2."""
    components = np.arange(maps.shape[-1], dtype=np.int32)
    target = store(folder, name, tuple(f"component_{n}" for n in components), "logit")
    for row, values in enumerate(maps):
        _put(target, f"{prefix}{row:05d}", (4 * values - 2).astype(np.float32), components)
    return target


def store(folder: Path, name: str, classes: tuple[str, ...], kind: Kind) -> Store:
    """An empty store of the world, to be filled."""
    made_by = {"stage": "fusion world"}
    return stores.create(folder / name, holds="scores", classes=classes, kind=kind, made_by=made_by)


def _put(store: Store, id: str, scores: np.ndarray, classes: np.ndarray) -> None:
    size = (scores.shape[0], scores.shape[1])
    store.put_scores(id, ScoreMaps(scores, classes, size, scores.max(axis=(0, 1)), store.kind))

"""The small world of failing systems as files: a data set and one store for each system.

Everything that works on photographs then works on it: combiners, ablations, the report.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_jax.combiner.evidence import Inputs
from wsss_jax.data import stores
from wsss_jax.data.classes import SALIENCY, palette
from wsss_jax.data.files import mask_png, write_atomic
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import ALL, open_dataset
from wsss_jax.study.fusion_world import CLASSES, SYSTEMS, World
from wsss_jax.types import Kind, ScoreMaps


def write(world: World, folder: Path, prefix: str = "w") -> Inputs:
    """The world in ``folder``: data/ with pictures, labels and masks, and its stores beside it.

    prefix: what the ids begin with, so that two worlds can share stores. Images that are there
    already are written again.
    """
    data = folder / "data"
    labels = {}
    for row in range(len(world)):
        id = f"{prefix}{row:05d}"
        pixels = np.round(255 * world.images[row]).astype(np.uint8)
        (data / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(data / "images" / f"{id}.png")
        write_atomic(data / "masks" / f"{id}.png", mask_png(world.masks[row], palette()))
        labels[id] = [CLASSES[c] for c in np.flatnonzero(world.labels[row])]
    content = {"classes": list(CLASSES), "image_labels": labels}
    write_atomic(data / "labels.json", json.dumps(content).encode())
    systems = tuple(store(folder, name, CLASSES, "activation") for name in SYSTEMS)
    saliency = store(folder, "saliency", SALIENCY.names, "probability")
    for row, id in enumerate(labels):
        classes = np.flatnonzero(world.labels[row]).astype(np.int32)
        for number, system in enumerate(systems):
            _put(system, id, world.scores[row, number][..., classes], classes)
        _put(saliency, id, world.saliency[row][..., None], np.zeros(1, np.int32))
    return Inputs(open_dataset(data, split=ALL), systems, saliency, cells=world.masks.shape[1])


def features(world: World, folder: Path, prefix: str = "w") -> tuple[Store, ...]:
    """Two stores that stand for frozen features: colours, and those around each pixel.

    Colours tell the world's classes apart, as the features of good networks do.
    """
    moves = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    around = np.mean([np.roll(world.images, move, axis=(1, 2)) for move in moves], axis=0)
    names = tuple(f"component_{number}" for number in range(3))
    made = []
    for name, images in (("colours", world.images), ("surroundings", around)):
        target = store(folder, name, names, "logit")
        for row, image in enumerate(images):
            scores = (4 * image - 2).astype(np.float32)
            _put(target, f"{prefix}{row:05d}", scores, np.arange(3, dtype=np.int32))
        made.append(target)
    return tuple(made)


def store(folder: Path, name: str, classes: tuple[str, ...], kind: Kind) -> Store:
    """An empty store of the world, to be filled."""
    made_by = {"stage": "fusion world"}
    return stores.create(folder / name, holds="scores", classes=classes, kind=kind, made_by=made_by)


def _put(store: Store, id: str, scores: np.ndarray, classes: np.ndarray) -> None:
    size = (scores.shape[0], scores.shape[1])
    store.put_scores(id, ScoreMaps(scores, classes, size, scores.max(axis=(0, 1)), store.kind))

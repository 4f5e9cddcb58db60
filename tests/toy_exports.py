"""Three photographs with odd names and classes, their masks, and stores of both kinds."""

import json

import numpy as np
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.datasets.table import open_dataset
from wsss_jax.types import ScoreMaps

CLASSES = ("dog", "große Katze", 'a "b" & <c>')
SIZES = {"one": (21, 34), "two": (30, 17), "none": (16, 16)}


def masks():
    """Blobs with holes and single pixels, and some pixels that are not decided."""
    rng = np.random.default_rng(0)
    one = np.where(rng.random((21, 34)) < 0.4, 1, 0).astype(np.uint8)
    one[4:18, 3:20] = 3
    one[8:12, 7:11] = 0
    one[:, 30:] = 255
    two = np.zeros((30, 17), np.uint8)
    two[5:, :] = 2
    two[0, 0] = 2
    return {"one": one, "two": two, "none": np.zeros((16, 16), np.uint8)}


def labels():
    shown = {id: set(np.unique(mask)) - {0, 255} for id, mask in masks().items()}
    return {id: [CLASSES[value - 1] for value in sorted(found)] for id, found in shown.items()}


def data_set(folder):
    """The source of the photographs; ``one`` has its suffix in capitals."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for id, size in SIZES.items():
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        name = "one.JPG" if id == "one" else f"{id}.png"
        Image.fromarray(pixels).save(images / name)
    table = {"classes": CLASSES, "image_labels": labels()}
    (folder / "labels.json").write_text(json.dumps(table))
    return open_dataset(folder, split="all")


def mask_store(folder):
    made = stores.create(folder, holds="masks", classes=CLASSES, made_by={"toy": 1})
    for id, mask in masks().items():
        made.put_mask(id, mask)
    return made


def decided_store(folder):
    """The masks without pixels that are not decided, which programs do not have."""
    store = mask_store(folder)
    for id, mask in masks().items():
        store.put_mask(id, np.where(mask == 255, 0, mask))
    return store


def score_store(folder, *, stride=4, kind="activation"):
    """Scores of the labelled classes; probabilities leave something to background."""
    made = stores.create(folder, holds="scores", classes=CLASSES, made_by={"toy": 2}, kind=kind)
    rng = np.random.default_rng(2)
    for id, (height, width) in SIZES.items():
        classes = np.array([CLASSES.index(name) for name in labels()[id]], np.int32)
        grid = (-(-height // stride), -(-width // stride), len(classes))
        scores = rng.random(grid, np.float32)
        if kind == "probability":
            scores /= len(classes) + 1
        peak = np.ones(len(classes), np.float32)
        made.put_scores(id, ScoreMaps(scores, classes, (height, width), peak, kind))
    return made

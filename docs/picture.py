"""The picture of the README: photograph, maps of three systems, fused, mask; from `make demo`.

Command: make demo && .venv/bin/python docs/picture.py runs/demo docs/demo.png
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import wsss_jax as wj

SYSTEMS = ("fine", "smooth", "coarse")
COLOURS = plt.get_cmap("Set1")(np.arange(6))[:, :3]
"""Of the six classes."""


def painted(image: np.ndarray, maps: wj.ScoreMaps) -> np.ndarray:
    """The photograph in grey, each class's scores in its colour over it."""
    height, width = image.shape[:2]
    h, w = maps.scores.shape[:2]
    grid = maps.scores[np.arange(height)[:, None] * h // height, np.arange(width) * w // width]
    share = grid / np.maximum(grid.sum(axis=-1, keepdims=True), 1)
    grey = image.mean(axis=-1, keepdims=True) / 255
    return grey * (1 - share.sum(axis=-1, keepdims=True)) + share @ COLOURS[maps.classes]


def main(demo: Path, out: Path, scenes: int = 3) -> None:
    """Draw the first scenes of the validation split."""
    data = wj.open_dataset(demo / "data", split="val")
    stores = {f"system {n + 1}": wj.open_store(demo / f"cam_{s}") for n, s in enumerate(SYSTEMS)}
    fused, masks = wj.open_store(demo / "combined"), wj.open_store(demo / "pseudo_masks")
    shown = data.ids[:scenes]
    size = {"figsize": (8.4, 1.42 * scenes), "dpi": 90, "layout": "constrained"}
    figure, axes = plt.subplots(scenes, 6, **size)
    for line, id in zip(axes, shown, strict=True):
        image, mask = data.image(id), masks.get_mask(id)
        colours = np.concatenate([np.zeros((1, 3)), COLOURS, np.zeros((249, 3))])
        cells = {"photograph": image}
        cells |= {name: painted(image, store.get_scores(id)) for name, store in stores.items()}
        cells |= {"fused": painted(image, fused.get_scores(id)), "mask": colours[mask]}
        for axis, (name, cell) in zip(line, cells.items(), strict=True):
            axis.imshow(cell)
            axis.axis("off")
            if id == shown[0]:
                axis.set_title(name, fontsize=10)
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    drawn.quantize(200).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explanation methods on one photograph
#
# The drawn creatures have a class that is told by their small head; the body tells nothing. A
# network that learns from image labels alone should therefore look at heads. Here one is trained
# within minutes, and every method shows where it looks.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import wsss_jax as wj
from wsss_jax.cli import main as wsss  # wsss(["train", …]) is the command `wsss train …`

OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())  # name a folder to go on another day
IMAGES = int(os.environ.get("IMAGES", "450"))  # two thirds teach
EPOCHS = os.environ.get("EPOCHS", "30")
METHODS = os.environ.get("METHODS", "").split() or [
    name for name in wj.EXPLAINERS if name != "rise"
]

# %% [markdown]
# ## A small classifier
#
# For photographs of your own replace all flags but the first by `--model.weights auto`.

# %%
scenes = wj.draw_scenes(OUT / "scenes", IMAGES)
run = OUT / "stride8"
training = "--epochs EPOCHS --model.backbone tiny --model.output-stride 8 --seed 1"
training += " --model.optim.name adamw --model.optim.learning-rate 4e-3"
training += " --augmentation.crop 96 --augmentation.long-side 80 112"
if not run.exists():
    flags = training.replace("EPOCHS", EPOCHS).split()
    wsss(["train", "--data", str(scenes), "--split", "train", "--out", str(run), *flags])

# %% [markdown]
# ## One photograph
#
# Of the scenes that taught nothing, the first with two creatures. A method is one call with a
# network, a photograph and classes; it returns raw maps `(h, w, classes)`. Where the head of a
# network is pooling and a linear layer, CAM, Grad-CAM, XGrad-CAM and HiRes-CAM are equal but for
# a factor and what is below 0. RISE asks the network thousands of times and is left out here.

# %%
network = wj.open_network(run)
data = wj.open_dataset(scenes, split="val")
id = next((id for id in data.ids if data.labels(id).sum() == 2), data.ids[0])
image, truth = data.image(id), data.mask(id)
classes = np.flatnonzero(data.labels(id))
shown = ", ".join(data.classes.names[c] for c in classes)
maps = {name: getattr(wj.explain, name)(network, image, classes) for name in METHODS}
print(f"{len(maps)} methods on {image.shape[0]} × {image.shape[1]} pixels with {shown}")

# %% [markdown]
# The maps of the first of the two classes, what is below 0 cut off:

# %%
columns = 8
rows = -(-(len(maps) + 1) // columns)
figure, axes = plt.subplots(rows, columns, figsize=(10, 1.5 * rows), dpi=60, layout="constrained")
for axis in axes.flat:
    axis.axis("off")
axes.flat[0].imshow(image)
axes.flat[0].set_title(data.classes.names[classes[0]], fontsize=9)
for axis, (name, scores) in zip(axes.flat[1:], maps.items(), strict=False):
    axis.imshow(image)
    extent = (0, image.shape[1], image.shape[0], 0)
    axis.imshow(np.maximum(scores[..., 0], 0), cmap="inferno", alpha=0.7, extent=extent)
    axis.set_title(name, fontsize=7)
plt.show()

# %% [markdown]
# ## How much of each map lies on its creature?
#
# The true mask is read here for the first time. Of the mass of each class's map, this share lies
# on the pixels of the class. One scene tells little; on many, `benchmarks/explanation_metrics.py`
# measures this and whether maps are faithful to the network.


# %%
def share(scores, c):
    rows, columns = np.indices(truth.shape)
    height, width = scores.shape
    full = scores[rows * height // truth.shape[0], columns * width // truth.shape[1]]
    full = np.maximum(full, 0)
    return full[truth == c + 1].sum() / max(full.sum(), 1e-9)


shares = {
    name: np.mean([share(scores[..., n], c) for n, c in enumerate(classes)])
    for name, scores in maps.items()
}
for name in sorted(shares, key=shares.__getitem__, reverse=True):
    print(f"{name:24} {shares[name]:.0%}")

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
# # From a table of labels to masks
#
# You have photographs in a folder and a table that tells what each shows. This is all that
# `wsss run` needs. To have something to work on, scenes are drawn and written as somebody would
# have them; put the path of your own folder into `PHOTOS` and leave that cell out.

# %%
import csv
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import wsss_jax as wj
from wsss_jax.cli import main as wsss  # wsss(["run", …]) is the command `wsss run …`

OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())  # name a folder to go on another day
PHOTOS = OUT / "photos"
IMAGES = int(os.environ.get("IMAGES", "60"))
WEIGHTS = os.environ.get("WEIGHTS", "auto")  # see `wsss weights list`

# %%
scenes = wj.open_dataset(wj.draw_scenes(OUT / "scenes", IMAGES))
PHOTOS.mkdir(exist_ok=True)
with (PHOTOS / "labels.csv").open("w", newline="") as file:
    table = csv.writer(file)
    for id in scenes.ids:
        Image.fromarray(scenes.image(id)).save(PHOTOS / f"{id}.png")
        shown = [scenes.classes.names[c] for c in np.flatnonzero(scenes.labels(id))]
        table.writerow([f"{id}.png", ";".join(shown)])
print(*(PHOTOS / "labels.csv").read_text().splitlines()[:4], sep="\n")

# %% [markdown]
# ## Check
#
# Everything that is wrong with the table or the files is listed here, before anything is computed.

# %%
wsss(["check", str(PHOTOS)])

# %% [markdown]
# ## Run
#
# `--quick` is a first look: few epochs, one scale, no dense CRF. Leave it out for masks to work
# with. Stopped, the same command goes on.

# %%
wsss(["run", "--data", str(PHOTOS), "--out", str(OUT / "mine"), "--weights", WEIGHTS, "--quick"])

# %% [markdown]
# ## Look
#
# Photographs by uncertainty: the first ones are worth looking at. `report.html` shows all of them.

# %%
with (OUT / "mine" / "least_certain.csv").open() as file:
    unsure = [row["photograph"] for row in csv.DictReader(file)]
picked = [*unsure[:3], *unsure[-3:]]
figure, axes = plt.subplots(2, 6, figsize=(9, 3.2), dpi=60, layout="constrained")
for (top, bottom), name in zip(axes.T, picked, strict=True):
    top.imshow(Image.open(PHOTOS / name))
    top.set_title("unsure" if name in unsure[:3] else "sure", fontsize=8)
    bottom.imshow(Image.open(OUT / "mine" / "masks" / name).convert("RGB"))
    top.axis("off")
    bottom.axis("off")
plt.show()

# %% [markdown]
# The scenes have true masks, which the run did not get. Sixty small drawings and a few epochs are
# little to learn from: some masks cover the whole scene, and their uncertainty does not show it.
# IoU of each class, background first:

# %%
judged = wj.evaluate(OUT / "mine" / "masks", OUT / "scenes" / "masks", classes=scenes.classes)
print({name: f"{value:.0%}" for name, value in judged.per_class.items()})
print(f"mean: {judged.mean:.0%}")

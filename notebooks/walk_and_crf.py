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
# # A random walk and a dense CRF, step by step
#
# Class activation maps find the head of a dog and miss its legs. Two programs carry scores to the
# rest of the object, and neither learns anything:
#
# * a **random walk** averages every cell with neighbours of its colour, again and again;
# * a **dense CRF** compares every pixel with every other, most of all with those near in place and
#   colour, and prefers one label for both.
#
# Put the path of a photograph of yours into `PHOTOGRAPH`; without one, a scene is drawn.

# %%
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import wsss_jax as wj

PHOTOGRAPH = os.environ.get("PHOTOGRAPH")
START = (0.35, 0.5)  # where the coarse map is highest: row and column, as shares of the photograph
SPREAD = 0.12  # how far it reaches, as a share of the height

# %%
scenes = wj.open_dataset(wj.draw_scenes(Path(tempfile.mkdtemp()) / "scenes", images=4))
image, truth = scenes.image(scenes.ids[3]), scenes.mask(scenes.ids[3])
if PHOTOGRAPH:
    image = np.asarray(Image.open(PHOTOGRAPH).convert("RGB"))
else:  # start in the middle of the largest creature, as a class map would
    creature = truth == np.bincount(truth.ravel())[1:].argmax() + 1
    places = np.argwhere(creature)
    START = places[np.hypot(*(places - places.mean(axis=0)).T).argmin()] / truth.shape

# %% [markdown]
# ## The scores we start from
#
# A blob on one part of the object stands for a class activation map. Its maximum is 1.

# %%
height, width = image.shape[:2]
y, x = np.mgrid[:height, :width]
distance = np.hypot(y / height - START[0], x / width - START[1])
start = np.exp(-((distance / SPREAD) ** 2) / 2).astype(np.float32)[..., None]


# %%
def show(maps):
    _, axes = plt.subplots(1, len(maps) + 1, figsize=(9, 2.6), dpi=55, layout="constrained")
    for axis, (title, scores) in zip(axes, {"photograph": None, **maps}.items(), strict=True):
        axis.imshow(image)
        axis.set_title(title)
        axis.axis("off")
        if scores is not None:
            axis.imshow(scores[..., 0], cmap="inferno", alpha=0.65, vmin=0, vmax=1)
    plt.show()


# %% [markdown]
# ## The walk
#
# A cell's neighbours are those within `radius` cells; how much each counts falls with its distance
# in colour and in place. One step is one average. Scores leak slowly across the object, and hardly
# across its edge. After many steps they have leaked there, too.

# %%
walks = {
    f"{steps} steps": wj.random_walk(start, image=image, steps=steps) for steps in (8, 64, 512)
}
show({"start": start, **walks})

# %% [markdown]
# A higher exponent `beta` weighs unlike colours even less: fewer cells join.

# %%
betas = (0.5, 1.0, 4.0)
show({f"beta {beta}": wj.random_walk(start, image=image, beta=beta, steps=64) for beta in betas})

# %% [markdown]
# ## The CRF
#
# A CRF wants probabilities, so the background takes part with a constant score: Otsu's threshold,
# which parts the scores best and reads no mask. Each iteration of mean field filters them with two
# Gaussians (of place; of place and colour) and adds the result to the logarithms of what we gave.

# %%
spread = walks["64 steps"]
spread = spread / spread.max()
probabilities = np.concatenate([np.full_like(spread, wj.otsu_threshold(spread)), spread], axis=-1)
probabilities /= probabilities.sum(axis=-1, keepdims=True)
preset = wj.CRF_PRESETS["thumbnail" if min(image.shape[:2]) < 200 else "psa"]
refined = {
    f"{count} iterations": wj.dense_crf(image, probabilities, replace(preset, iterations=count))
    for count in (1, 10)
}
show({"before": probabilities[..., 1:], **{name: q[..., 1:] for name, q in refined.items()}})

# %% [markdown]
# ## What is gained
#
# The drawn scene has a true mask, which is read here for the first time.

# %%
steps = {
    "start": start,
    "after the walk": spread,
    "after the CRF": refined["10 iterations"][..., 1:],
}
show(steps)
thresholds = (wj.otsu_threshold(start), wj.otsu_threshold(spread), 0.5)
found = {}
for (name, scores), threshold in zip(steps.items(), thresholds, strict=True):
    found[name] = wj.masks_of(scores, threshold)
    if not PHOTOGRAPH:
        one = wj.evaluate(found[name], creature.astype(np.uint8), classes=["creature"])
        print(f"{name}: IoU {one.per_class['creature']:.0%}")

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
# rest of the object, and neither learns anything here:
#
# * a **random walk** averages every cell with neighbours of its colour, again and again,
# * a **dense CRF** lets every pixel vote on every other, the more the closer in place and colour.
#
# Put the path of a photograph of yours into `PHOTOGRAPH`; without one, a scene of the embedded
# data set is drawn.

# %%
import os
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from wsss_jax.crf import dense as crf
from wsss_jax.data import photographs
from wsss_jax.datasets import synthetic
from wsss_jax.ops import masks
from wsss_jax.ops.resize import resize
from wsss_jax.stages.refine import Crf, Walk, crf_refined, walked
from wsss_jax.types import ScoreMaps

PHOTOGRAPH = os.environ.get("PHOTOGRAPH")
SEED = (0.35, 0.5)  # where the coarse map is hot: row and column, as shares of the photograph
SPREAD = 0.12  # how far it reaches, as a share of the longer side
OUT = os.environ.get("PICTURES")  # a folder, to keep the pictures

# %%
scene = synthetic.scene(0, 3)
image = photographs.read_image(Path(PHOTOGRAPH)) if PHOTOGRAPH else scene.image
if not PHOTOGRAPH:  # start on the body of the largest creature
    label = int(np.bincount(scene.mask.ravel())[1:].argmax())
    place = np.argwhere(scene.mask == label + 1)
    middle = place[np.hypot(*(place - place.mean(axis=0)).T).argmin()]
    SEED = tuple(middle / scene.mask.shape)
height, width = image.shape[:2]
stride = max(1, max(height, width) // 100)
grid = (-(-height // stride), -(-width // stride))

# %% [markdown]
# ## The scores we start from
#
# A blob on one part of the object stands for a class activation map. Its maximum is 1, and its grid
# is coarser than the photograph.

# %%
y, x = np.mgrid[: grid[0], : grid[1]]
distance = np.hypot(y / grid[0] - SEED[0], x / grid[1] - SEED[1])
blob = np.exp(-((distance / SPREAD) ** 2) / 2).astype(np.float32)[..., None]
start = ScoreMaps(blob, np.zeros(1, np.int32), (height, width), blob.max(axis=(0, 1)))


# %%
def show(maps: dict[str, ScoreMaps], name: str) -> None:
    figure, axes = plt.subplots(
        1, len(maps) + 1, figsize=(3 * len(maps) + 3, 3.2), layout="constrained"
    )
    axes[0].imshow(image)
    axes[0].set_title("photograph")
    for axis, (title, item) in zip(axes[1:], maps.items(), strict=True):
        axis.imshow(image)
        scores = resize(item.scores, item.size)[..., 0]
        axis.imshow(scores, cmap="inferno", alpha=0.65, vmin=0, vmax=1)
        axis.set_title(title)
    for axis in axes:
        axis.axis("off")
    if OUT:
        figure.savefig(Path(OUT) / f"{name}.png", dpi=80)


# %% [markdown]
# ## The walk
#
# A cell's neighbours are those within `radius` cells; how much each counts falls with its distance
# in colour and in place. One step is one average. Scores leak slowly across the object, and hardly
# across its edge: there, affinities are near zero. With too many steps they leak everywhere.

# %%
walk = Walk(radius=5, sigma_colour=0.06, sigma_space=3.0)
show(
    {
        "start": start,
        **{
            f"steps: {steps}": walked(start, image, replace(walk, steps=steps))
            for steps in (4, 32, 256)
        },
    },
    "walk",
)

# %% [markdown]
# A wider sense of colour (`sigma_colour`) joins more, a higher exponent (`beta`) joins less.

# %%
show(
    {
        f"sigma {sigma}, beta {beta}": walked(
            start, image, replace(walk, sigma_colour=sigma, beta=beta)
        )
        for sigma, beta in ((0.06, 1.0), (0.06, 4.0), (0.15, 1.0))
    },
    "affinity",
)

# %% [markdown]
# ## The CRF
#
# Scores become probabilities beside a constant score of background. Each iteration of mean field
# filters them with two Gaussians (over place; over place and colour) and adds the result as
# evidence. The unaries keep pulling back, so that a region needs support of its own colour to win.

# %%
spread = walked(start, image, walk)
preset = crf.PRESETS["psa"]
unary = masks.with_constant(resize(spread.scores, spread.size), 0.3)
shown = {"before": replace(spread, scores=unary[..., 1:], kind="probability")}
for iterations in (1, 10):
    marginals = crf.refine(image, unary, replace(preset, iterations=iterations))
    shown[f"{iterations} iterations"] = replace(
        spread, scores=marginals[..., 1:], kind="probability"
    )
show(shown, "crf")

# %% [markdown]
# The stage does the same in one call, and keeps one cell per two pixels.

# %%
refined = crf_refined(spread, image, Crf(preset="psa", background=0.3))
mask = resize(refined.scores, refined.size)[..., 0] > 0.5
show({"start": start, "after the walk": spread, "after the CRF": refined}, "both")
print(f"{refined.scores.shape} cells kept, {mask.mean():.0%} of the photograph is foreground")

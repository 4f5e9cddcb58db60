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
# # What does the combiner live on?
#
# The combiner makes one map out of the score maps of several systems, with image labels alone. What
# is each of its steps worth, each input, each system? And what happens when a system is missing, or
# is nothing but noise? Each row of the table below is learned, fused and judged, and compared with
# the first row, image by image.
#
# An interval that holds 0 tells nothing apart. On photographs the same table comes from
# `experiments/combiner_ablation.py`.

# %%
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import wsss_jax as wj
from wsss_jax.combiner.settings import Combining
from wsss_jax.data.classes import palette
from wsss_jax.ops.resize import resize
from wsss_jax.report import figures
from wsss_jax.study import ablation, fusion_world, world

OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())  # name a folder to go on another day
IMAGES = int(os.environ.get("IMAGES", "240"))
SIDE = int(os.environ.get("SIDE", "32"))
SYSTEMS = int(os.environ.get("SYSTEMS", "6"))
ROWS = int(os.environ.get("ROWS", "100"))

# %% [markdown]
# ## A small world of systems that fail
#
# Every system fails in a way of its own: *part* finds heads, *overctx* takes water for the boat,
# *edgenoise* bends outlines, *smallmiss* misses small objects, *miscal* counts in other units,
# *cooc* takes the rider for the horse. Two thirds of the images teach, the others judge.

# %%
made = fusion_world.make(IMAGES, seed=5, size=SIDE)
inputs = world.write(made, OUT / "world")
source = inputs.source
teaching, judging = source.ids[: 2 * IMAGES // 3], source.ids[2 * IMAGES // 3 :]
systems = {store.folder.name: store for store in inputs.systems[:SYSTEMS]}
features = {store.folder.name: store for store in world.features(made, OUT / "world")}
noise = ablation.noise_system(inputs.systems[0], OUT / "noise", ids=source.ids)
print(f"{len(teaching)} images teach, {len(judging)} judge; systems: {', '.join(systems)}")

# %% [markdown]
# ## The table

# %%
study = ablation.Study(
    source,
    teaching,
    {"judged": replace(source, ids=judging)},
    {**systems, "noise": noise},
    features,
    inputs.saliency,
)
rows = ablation.standard(
    tuple(systems), tuple(features), Combining(cells=SIDE), saliency=True, noise="noise"
)[:ROWS]
found = ablation.run(rows, study, OUT)
print(ablation.markdown(found))

# %% [markdown]
# ## Who is trusted where?
#
# Each place has the colours of the systems that are trusted there, mixed by their shares. Entropy
# and disagreement tell where the result is unsure.

# %%
fused, trust, doubt = (
    wj.open_store(OUT / "all" / f"fused{end}") for end in ("", "_trust", "_uncertainty")
)
colours = figures.system_colours(len(systems)) / 255
shown = judging[:3]
figure, axes = plt.subplots(len(shown), 6, figsize=(16, 2.9 * len(shown)), squeeze=False)
for row, id in zip(axes, shown, strict=True):
    size = source.size(id)
    unsure = resize(doubt.get_scores(id).scores, size)
    pictures = {
        "photograph": source.image(id),
        "truth": palette()[source.mask(id)],
        "combined": palette()[wj.masks_of(fused.get_scores(id), 0.5)],
        "trust": resize(trust.get_scores(id).scores, size) @ colours,
        "entropy": unsure[..., 0],
        "disagreement": 2 * unsure[..., 1],
    }
    for axis, (title, picture) in zip(row, pictures.items(), strict=True):
        axis.imshow(picture, cmap="inferno", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
figure.legend(patches, list(systems), loc="lower center", ncols=len(systems))
figure.savefig(OUT / "trust.png", dpi=80)
shares = np.stack([trust.get_scores(id).scores.mean(axis=(0, 1)) for id in judging])
for name, share in zip(systems, shares.mean(axis=0), strict=True):
    print(f"{name}: {share:.0%} of the trust")

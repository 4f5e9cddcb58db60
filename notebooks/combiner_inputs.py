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
# The combiner makes one map per class from the maps of several systems, and learns how from image
# labels alone. What is each of its inputs worth? Here two small networks are trained, their class
# maps are combined, and then one input after the other is left out. On photographs the same
# question is answered, with intervals, by `experiments/combiner_ablation.py`.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import wsss_jax as wj
from wsss_jax.cli import main as wsss  # wsss(["train", …]) is the command `wsss train …`

OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())  # name a folder to go on another day
IMAGES = int(os.environ.get("IMAGES", "450"))  # two thirds teach, the others are judged
EPOCHS = os.environ.get("EPOCHS", "30")
ROWS = int(os.environ.get("ROWS", "6"))  # of the table
FROZEN = os.environ.get("FROZEN", "--weights auto")  # the frozen network: see `wsss weights list`

# %% [markdown]
# ## The inputs
#
# Two systems: networks with cells of 8 and of 16 pixels, explained by class activation maps.

# %%
scenes = wj.draw_scenes(OUT / "scenes", IMAGES)
data = ["--data", str(scenes)]
training = f"--split train --epochs {EPOCHS} --model.backbone tiny --model.optim.name adamw"
training += (
    " --model.optim.learning-rate 4e-3 --augmentation.crop 96 --augmentation.long-side 80 112"
)
systems = {}
for seed, stride in ((1, 8), (2, 16)):
    run, systems[f"stride {stride}"] = OUT / f"stride{stride}", OUT / f"maps{stride}"
    if not run.exists():
        own = f"--model.output-stride {stride} --seed {seed} --out {run}"
        wsss(["train", *data, *training.split(), *own.split()])
    if not systems[f"stride {stride}"].exists():
        where = ["--scales", "1.0", "1.5", "--out", str(systems[f"stride {stride}"])]
        wsss(["explain", str(run), *data, *where])

# %% [markdown]
# Two more inputs: saliency, which is drawn with the scenes, and features of a network that has
# seen ImageNet and is not trained any further. The combiner's linear probe learns on these.

# %%
saliency, features = scenes / "saliency", OUT / "features"
if not features.exists():
    wsss(["features", *data, *FROZEN.split(), "--out", str(features)])

# %% [markdown]
# ## One input after the other is left out

# %%
both = list(systems.values())
rows = {
    "all": (both, True, True),
    "without saliency": (both, False, True),
    "without features": (both, True, False),
    "without either": (both, False, False),
    **{f"{name} alone": ([store], True, True) for name, store in systems.items()},
}
true_masks = wj.open_dataset(scenes, split="val")


def iou_of(store, threshold):
    """IoU of each class over the scenes that trained nothing, background first."""
    counts = 0
    for id in true_masks.ids:
        mask = wj.masks_of(store.get_scores(id), threshold)
        counts += wj.evaluate(mask, true_masks.mask(id), classes=true_masks.classes).counts
    return np.diag(counts) / np.maximum(
        counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts), 1
    )


found = {}
for name, store in systems.items():
    maps = wj.open_store(store)
    found[f"class maps of {name}"] = iou_of(maps, wj.otsu_threshold(maps)).mean()
for name, (stores, salient, featured) in list(rows.items())[:ROWS]:
    fused = OUT / name.replace(" ", "_")
    if not fused.exists():
        inputs = ["--saliency", str(saliency)] if salient else []
        inputs += ["--features", str(features)] if featured else []
        inputs += ["--run", f"{fused}_run", "--learn-split", "train", "--combining.cells", "24"]
        wsss(["combine", *map(str, stores), *data, *inputs, "--out", str(fused)])
    found[name] = iou_of(wj.open_store(fused), 0.5).mean()

# %%
for name, mean in found.items():
    print(f"{name:24} {mean:6.1%} mIoU")

# %% [markdown]
# One training of each network, 150 scenes, no intervals: small differences mean nothing here.
# Where one system is much better than the other, that one alone may be the best, as it was when
# this was run. Combining saves you from having to know which one it is, which needs true masks.

# %% [markdown]
# ## Where is it unsure?
#
# With the fused maps the combiner writes how unsure it is: the entropy of each cell's result.

# %%
fused, unsure = wj.open_store(OUT / "all"), wj.open_store(OUT / "all_uncertainty")
figure, axes = plt.subplots(3, 4, figsize=(6, 4.8), dpi=60, layout="constrained")
for line, id in zip(axes, true_masks.ids, strict=False):
    pictures = {
        "photograph": true_masks.image(id),
        "true mask": true_masks.mask(id),
        "combined": wj.masks_of(fused.get_scores(id), 0.5),
        "entropy": unsure.get_scores(id).scores[..., 0],
    }
    for axis, (title, picture) in zip(line, pictures.items(), strict=True):
        axis.imshow(picture, cmap="inferno", vmin=0, vmax=1 if title == "entropy" else 6)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
plt.show()

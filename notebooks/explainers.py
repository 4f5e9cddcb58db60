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
# # What a classifier looks at: every explanation method, on one small network
#
# The embedded data set shows creatures whose class is told by a small head; the body tells nothing.
# A network trained on image labels alone should therefore look at heads, and the true masks say
# where they are. Here it is trained in a few minutes, explained by every method, and the methods
# are judged: are their maps faithful to the network, and do they lie on the creature?

# %%
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from wsss_jax.batches.augment import Augmentation
from wsss_jax.batches.batches import training_batches
from wsss_jax.data.photographs import read_image
from wsss_jax.datasets.table import open_dataset
from wsss_jax.explain import experimental, perturb, score_weighted
from wsss_jax.explain.contract import seeded
from wsss_jax.recipes import demo
from wsss_jax.stages import pictures
from wsss_jax.stages.subject import subject_of
from wsss_jax.stages.train import fit
from wsss_jax.study import judge_maps
from wsss_jax.systems import perception
from wsss_jax.systems.perception import Perception

IMAGES = int(os.environ.get("IMAGES", "600"))  # scenes to draw; every third is for validation
EPOCHS = int(os.environ.get("EPOCHS", str(demo.EPOCHS)))
JUDGED = int(os.environ.get("JUDGED", "60"))  # scenes on which methods are judged
METHODS = os.environ.get("METHODS", "").split()  # none: all of them
OUT = os.environ.get("PICTURES")  # a folder, to keep the picture

# %% [markdown]
# ## A small classifier
#
# The network and its training are those of `wsss demo`. What it has learned is a run folder, like
# that of `wsss train`.

# %%
work = Path(tempfile.mkdtemp())
data = demo.prepare(work / "scenes", IMAGES)
training = replace(
    demo.recipe(data, epochs=EPOCHS).systems["fine"], batch_size=min(16, IMAGES // 3)
)
run = fit(open_dataset(data, split="train"), training, work / "run")
asked = subject_of(run)

# %% [markdown]
# ## The methods
#
# A method is a function of a network, images and labels; `EXPLAINERS` holds them under their names.
# Methods that draw random numbers take more of them in earnest than here.

# %%
quick = {
    "rise": asked.wrapped(seeded(partial(perturb.rise, masks=200))),
    "ss_cam": asked.wrapped(seeded(partial(score_weighted.ss_cam, draws=2))),
}
methods = {
    name: quick.get(name, method)
    for name, method in asked.methods.items()
    if not METHODS or name in METHODS
}
print(f"{len(methods)} methods: {', '.join(methods)}")

# %% [markdown]
# ## One scene
#
# Two scenes of the validation split with two creatures each. CAM, Grad-CAM, XGrad-CAM and HiRes-CAM
# agree, as they must where the head is pooling and a linear layer.

# %%
source = open_dataset(data, split="val")
several = [id for id in source.ids if source.labels(id).sum() == 2] or list(source.ids)
picked = []
for id in several[:2]:
    picked.append(work / f"{id}.png")
    plt.imsave(picked[-1], source.image(id))
showing = pictures.Showing(side=96, columns=8)
found = pictures.explained(asked, picked, showing, methods)
sheet, page = pictures.write(work, found, asked, title="All methods", columns=showing.columns)
figure = plt.figure(figsize=(14, 9), layout="constrained")
plt.imshow(read_image(sheet))
plt.axis("off")
if OUT:
    figure.savefig(Path(OUT) / "explainers.png", dpi=100)

# %% [markdown]
# ## Are they faithful, and do they lie on the creature?
#
# *Drop*: how much of a class's probability is lost when the network sees the image through the map
# alone. *Retention*: how much is lost when the map is taken away. *Drop of others* and *retention
# of others* are the same for the other classes of the image: a good map shows its own class and
# hides the others. *Proportion* is the share of the map that lies on the creature; *positive* is
# the area under the accuracy while the most relevant pixels are removed (lower is better).

# %%
settings = judge_maps.Judging(side=96, curves=JUDGED // 2, batch_size=min(20, JUDGED))
cards = list(judge_maps.judge(asked, source, methods, settings, ids=source.ids[:JUDGED]))
columns = (
    "increase",
    "drop",
    "drop_of_others",
    "retention",
    "retention_of_others",
    "proportion",
    "iou",
    "positive",
    "negative",
)
print(judge_maps.table(cards, columns))

# %% [markdown]
# The five measures pull in different directions: a map that shows everything has no drop, and one
# that shows nothing retains all. `keeps` joins two of them.

# %%
best = {
    name: max(cards, key=lambda card: np.nan_to_num(card.numbers[name])).method
    for name in ("keeps", "proportion", "iou")
}
for name, method in best.items():
    print(f"best {name}: {method}")

# %% [markdown]
# ## Where and what: Perception Visualization (experimental)
#
# A map says where the network looked. What it kept of that place is what can be rebuilt from its
# features: a decoder learns it from the training scenes, and each class's map lets the rebuilt
# image through, white elsewhere. Texture that is missing in it is texture that the network has
# thrown away. The definition is ours (`explain.experimental`), without a verified reference.

# %%
PAINTED = int(os.environ.get("PAINTED", "400"))  # steps of the decoder
features_of = asked.wrapped(lambda scorer, images, labels: scorer.features(images))


def encode(pixels, inside):
    return features_of(
        asked.weights, pixels, inside, jnp.zeros((len(pixels), len(asked.classes)), bool)
    )


scenes = training_batches(
    open_dataset(data, split="train"),
    Augmentation(crop=96, long_side=(96, 96), hue=0.0),
    seed=0,
    batch_size=training.batch_size,
)
shots = np.stack([source.image(id) for id in several[:2]])
pixels = jnp.asarray(shots.astype(np.float32) / np.float32(255))
everywhere = jnp.ones(pixels.shape[:3], bool)
shape = jax.eval_shape(encode, pixels, everywhere).shape
inverse = Perception(channels=shape[3], stride=pixels.shape[1] // shape[1])
learning = perception.make(inverse, encode, steps=PAINTED)
state, step = learning.init(jax.random.key(0)), jax.jit(learning.step)
for number, batch in zip(range(PAINTED), scenes, strict=False):
    state, metrics = step(state, batch, jax.random.key(number))
    if number in (0, PAINTED - 1):
        print(f"step {number + 1}: mean squared error {float(metrics['loss']):.4f}")

# %%
decode = perception.structure(inverse).bind(state.averaged, state.stats)
rebuilt = decode(encode(pixels, everywhere))
shown = jnp.asarray(np.stack([source.labels(id) for id in several[:2]]))
maps = asked.methods["grad_cam"](asked.weights, pixels, everywhere, shown)
what = experimental.perception(maps, rebuilt)
figure, axes = plt.subplots(len(pixels), 4, figsize=(11, 6), layout="constrained", squeeze=False)
for row, line in enumerate(axes):
    classes = np.flatnonzero(shown[row])[:2]
    pictures = [("scene", pixels[row]), ("rebuilt from its features", rebuilt[row])]
    pictures += [(f"what of {asked.classes.names[c]}", what[row, c]) for c in classes]
    for axis, (name, seen) in zip(line, pictures, strict=False):
        axis.imshow(np.clip(np.asarray(seen), 0, 1))
        axis.set_title(name)
    for axis in line:
        axis.axis("off")
if OUT:
    figure.savefig(Path(OUT) / "perception.png", dpi=100)

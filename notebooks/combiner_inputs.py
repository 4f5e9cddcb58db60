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
# The learned combiner sees the score maps of several systems, their consensus, saliency, edges,
# colours and more. Which of these is worth something, which system is, and what happens when one
# is missing, is noise, or comes in other units? Every question is a table: each row is learned,
# fused and judged, and compared with the first row, image by image.
#
# Two lessons for reading them:
#
# * **One out** hides what can be replaced (a walked mean knows colours and edges too); **one
#   added** hides what only helps together. Read both.
# * An interval that holds 0 tells nothing apart. On this small world, differences below two points
#   are mostly that.
#
# ## Settings
#
# `MODE` is `default` (a small world of six failing systems), `tiny` (the same in seconds, to see
# that everything runs) or `stores` (stores of a finished run on photographs).

# %%
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from wsss_jax.combiner.combiner_run import Combining
from wsss_jax.combiner.few_shot import FewShot
from wsss_jax.combiner.label_free import Protocol
from wsss_jax.combiner.network import CombinerShape

from wsss_jax import xla
from wsss_jax.data.classes import palette
from wsss_jax.data.datasets import open_dataset, open_together
from wsss_jax.data.stores import open_store
from wsss_jax.ops import masks
from wsss_jax.ops.resize import resize
from wsss_jax.report import figures
from wsss_jax.run.thresholds import foreground
from wsss_jax.stages.evaluate import Scoring
from wsss_jax.study import ablation, ablation_tables, fusion_world, world
from wsss_jax.study.ablation import Study

MODE = os.environ.get("MODE", "default")
OUT = Path(os.environ.get("OUT") or tempfile.mkdtemp())  # name a folder to go on another day
SEEDS = (0,)  # three are better: each row is then learned three times

# Of MODE "stores": a run's folder, its data set, its class maps, and the classes that count.
RUN = Path(os.environ.get("RUN", "runs/voc12_animals_systems"))
DATA = Path(os.environ.get("DATA", "data/voc12_animals"))
TRAIN, VAL = "train", "val"
SCORED = ("background", "cat", "cow", "dog", "horse", "sheep", "person")

# Images of the world, its side in pixels, and how long is learned.
IMAGES, SIDE, TAUGHT = {"default": (400, 32, 2 / 3), "tiny": (40, 24, 2 / 3)}.get(MODE, (0, 0, 0))
SETTINGS = {
    "default": Combining(Protocol(CombinerShape(width=16)), epochs=4, distil_epochs=10, cells=SIDE),
    "tiny": Combining(
        # Nothing walks: that is most of what must be compiled.
        Protocol(
            CombinerShape(("own", "edge"), width=8), students=2, walk_steps=0, average_steps=0
        ),
        epochs=1,
        distil_epochs=1,
        cells=SIDE,
    ),
    "stores": Combining(epochs=4, distil_epochs=6, cells=48),
}[MODE]
SHOTS = (1,) if MODE == "tiny" else (1, 5, 20, 50)

# %% [markdown]
# ## The images, the systems and the cues
#
# In the world every system fails in a way of its own: *part* sees heads, *overctx* sees water
# beside the boat, *edgenoise* bends outlines, *smallmiss* does not see small things, *miscal*
# counts in other units, *cooc* takes the rider for the horse.

# %%
if MODE == "stores":
    xla.keep_compiled()
    source, judged = open_together(DATA, (TRAIN, VAL)), open_dataset(DATA, split=VAL)
    taught = open_dataset(DATA, split=TRAIN).ids
    stores = {path.name: open_store(path) for path in sorted(RUN.glob("cam_*"))}
    cues = {name: open_store(RUN / name) for name in ("saliency", "features")}
    scoring = Scoring(classes=SCORED)
else:
    if MODE == "default":
        xla.keep_compiled()
    made = world.write(fusion_world.make(IMAGES, seed=5, size=SIDE), OUT / "world")
    # Images of two classes: other classes matter, and one shape is compiled instead of two.
    ids = tuple(id for id in made.source.ids if made.source.labels(id).sum() == 2)
    taught = ids[: round(TAUGHT * len(ids))]
    source, judged = made.source, replace(made.source, ids=ids[len(taught) :])
    stores = {store.folder.name: store for store in made.systems}
    if MODE == "tiny":
        stores = dict(list(stores.items())[:3])
    cues = {"saliency": made.saliency, "edges": made.edges}
    scoring = Scoring()

names = tuple(stores)
victim = names[1]  # the system that is distorted
systems = ablation_tables.with_distorted(
    stores, victim, OUT / "changed", ids=(*taught, *judged.ids)
)
few = FewShot(epochs=1) if MODE == "tiny" else FewShot()
study = Study(source, taught, judged, systems, cues, scoring, seeds=SEEDS, shots=few)
tables = ablation_tables.standard(SETTINGS, names, cues=tuple(cues), victim=victim, shots=SHOTS)
if MODE == "tiny":  # what one training can tell; most other rows would each be one more
    kept = ("all", "closed: mean", "closed: mean × saliency", f"{victim} power 3 at test", "k = 1")
    tables = ablation.part(tables, kept)
print(f"{len(taught)} images teach, {len(judged.ids)} judge; systems: {', '.join(names)}")


# %%
def ask(title: str) -> None:
    """Make one table, or go on with it; print it and draw its bars."""
    asked = [table for table in tables if table.title == title]
    if not asked:
        print(f"{title}: left out in mode {MODE}")
        return
    found = ablation.run(tables, study, OUT, chosen=(title,))
    print(ablation.section(asked[0], found))
    plt.figure(figsize=(9, 0.45 * len(asked[0].rows) + 1))
    plt.imshow(plt.imread(OUT / "ablation.png"))
    plt.axis("off")


# %% [markdown]
# ## Is it better than the closed forms?
#
# The strongest closed form is mean × saliency with a random walk, and where there are no frozen
# features it is also the students' teacher. Its column *tuned* is the best threshold on the very
# truth it is judged by.

# %%
ask("Combiner and closed forms")

# %% [markdown]
# ## Which inputs?

# %%
ask("Input groups: one out")

# %%
ask("Input groups: one added to own")

# %% [markdown]
# ## Which systems, and how many?

# %%
ask("Systems: one out")

# %%
ask("Systems: one added to the first")

# %%
ask("Number of systems")

# %% [markdown]
# ## Systems that are missing, noise, or in other units
#
# Here the combiner has learned from all systems and meets another set. A system of pure noise
# should cost little, and a system that only changed its units should cost next to nothing:
# training distorts scales and contrasts, each map is also seen in its own units, and a store whose
# scores stay low is divided by what they usually reach.

# %%
ask("Systems missing at test time")

# %%
ask("Noise and other units")

# %% [markdown]
# ## What of the protocol?
#
# With frozen features, what linear probes make of the systems teaches the network. Without,
# students do: one that sees what its teacher saw learns to be its teacher, so their views are
# restricted.

# %%
ask("Who teaches: probes, or students of restricted views")

# %%
ask("With and without random walk")

# %% [markdown]
# ## A few labelled images
#
# Another regime: true masks of k images are read.

# %%
ask("Labelled images")

# %% [markdown]
# ## Who is trusted where?
#
# Each place has the colours of the systems that are trusted there, mixed by their shares. Entropy
# and disagreement say where the result is unsure: that of the students, or, where probes taught, of
# the network with itself when it is shown different systems.

# %%
home = OUT / "variants" / "all" / f"seed_{SEEDS[0]}"
ablation.run(tables, study, OUT, chosen=(tables[0].title,))  # is there already, as a rule
fused, gates, doubt = (open_store(home / f"fused{end}") for end in ("", "_gates", "_uncertainty"))
colours = figures.system_colours(len(names)) / 255
shown = judged.ids[:3]
figure, axes = plt.subplots(len(shown), 5, figsize=(14, 2.9 * len(shown)), squeeze=False)
for row, id in zip(axes, shown, strict=True):
    maps, size = fused.get_scores(id), judged.size(id)
    winner, score = foreground(maps)
    unsure = resize(doubt.get_scores(id).scores, size)
    trust = resize(gates.get_scores(id).scores, size)
    pictures = {
        "photograph": judged.image(id),
        "truth": palette()[judged.mask(id)],
        "combined": palette()[masks.decide(winner, score, 0.5)],
        "trust": trust @ colours,
        "entropy": unsure[..., 0],
    }
    for axis, (title, picture) in zip(row, pictures.items(), strict=True):
        axis.imshow(picture, cmap="inferno", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
figure.legend(patches, names, loc="lower center", ncols=len(names))
figure.savefig(OUT / "trust.png", dpi=80)
shares = np.stack([gates.get_scores(id).scores.mean(axis=(0, 1)) for id in judged.ids])
for name, share in zip(names, shares.mean(axis=0), strict=True):
    print(f"{name}: {share:.0%} of the trust")

# %% [markdown]
# ## All tables in one file

# %%
everything = ablation.run(tables, study, OUT)
print(OUT / "ablation.md")

"""A world of failing systems as files: five images, and frozen features that colours give away."""

from dataclasses import replace

import numpy as np

from wsss_jax.data import stores
from wsss_jax.study import fusion_world, world
from wsss_jax.types import ScoreMaps

WORLD = fusion_world.make(5, seed=32, size=24)  # two classes in each image: one shape
IDS = tuple(f"w{row:05d}" for row in range(5))


def written(folder):
    """Its stores and photographs; one system has not seen one image, and there are no edges."""
    made = world.write(WORLD, folder)
    made.systems[1].path(IDS[2]).unlink()
    return replace(made, edges=None)


def looked(inputs, folder):
    """The same with frozen features in a store: what colours are."""
    made = stores.create(folder, holds="scores", classes=("a", "b"), kind="logit", made_by={})
    for row, id in enumerate(IDS):
        seen = 4 * WORLD.images[row][..., :2] - 2
        number = np.arange(2, dtype=np.int32)
        made.put_scores(id, ScoreMaps(seen, number, (24, 24), seen.max(axis=(0, 1)), "logit"))
    return replace(inputs, features=made)

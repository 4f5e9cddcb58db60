"""A small world of failing systems as files, with frozen features that colours give away."""

from dataclasses import replace

import numpy as np

from wsss_jax.data import stores
from wsss_jax.study import fusion_world, world
from wsss_jax.types import ScoreMaps

SIZE = 24


def written(folder, count=6, seed=32):
    """Inputs of ``count`` images, with two stores of frozen features."""
    made = fusion_world.make(count, seed=seed, size=SIZE)
    inputs = world.write(made, folder)
    views = {"colours": made.images, "surroundings": _blurred(made.images)}
    return replace(
        inputs, features=tuple(_features(folder, name, maps) for name, maps in views.items())
    )


def _features(folder, name, maps):
    names = tuple(f"component_{n}" for n in range(3))
    made = stores.create(folder / name, holds="scores", classes=names, kind="logit", made_by={})
    for row, image in enumerate(maps):
        scores = (4 * image - 2).astype(np.float32)
        number = np.arange(3, dtype=np.int32)
        peak = scores.max(axis=(0, 1))
        made.put_scores(f"w{row:05d}", ScoreMaps(scores, number, (SIZE, SIZE), peak, "logit"))
    return made


def _blurred(images):
    moved = [np.roll(images, (dy, dx), axis=(1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.mean(moved, axis=0)

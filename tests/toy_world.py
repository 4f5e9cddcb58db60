"""A small world of failing systems as files, with frozen features that colours give away."""

from dataclasses import replace

from wsss_jax.study import fusion_world, world

SIZE = 24


def written(folder, count=6, seed=32):
    """Inputs of ``count`` images, with two stores of frozen features."""
    made = fusion_world.make(count, seed=seed, size=SIZE)
    return replace(world.write(made, folder), features=world.features(made, folder))

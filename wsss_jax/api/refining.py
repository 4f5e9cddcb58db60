"""Dense CRF and random walk on the arrays of one image."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from wsss_jax.api import arguments
from wsss_jax.config import lookup
from wsss_jax.crf import dense as crf
from wsss_jax.ops import affinity as affinities
from wsss_jax.ops import walk
from wsss_jax.ops.affinity import Affinity
from wsss_jax.ops.resize import fits
from wsss_jax.stages.parts import walks
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.types import ScoreMaps


def dense_crf(
    image: object, probabilities: object, preset: str | crf.Settings = "psa"
) -> np.ndarray:
    """Marginals of the dense CRF of Krähenbühl & Koltun (2011) on one photograph.

    image: (H,W,3) uint8 RGB. probabilities: (H,W,k) >= 0, background among the k labels where there
    is one; they need not sum to 1. preset: a name of CRF_PRESETS (the kernels of published code),
    or ``CRF_PRESETS["psa"]`` with other numbers (``dataclasses.replace``). Returns (H,W,k) float32
    that sums to 1. A label whose probability is zero everywhere stays zero. Equal to pydensecrf up
    to rounding.

    Raises ValueError for other shapes and types, with the line that makes them right.

    >>> import numpy as np
    >>> import wsss_jax as wj
    >>> image = np.zeros((8, 12, 3), np.uint8)
    >>> image[:, 6:] = 200
    >>> probabilities = np.full((8, 12, 2), 0.5, np.float32)
    >>> probabilities[:, :5, 0] = 0.9
    >>> refined = wj.dense_crf(image, probabilities)
    >>> refined.shape, bool(np.allclose(refined.sum(-1), 1))
    ((8, 12, 2), True)
    """
    pixels = arguments.photograph(image)
    maps = arguments.scores(probabilities, "probabilities", pixels.shape[:2])
    if isinstance(preset, str):
        preset = lookup(crf.PRESETS, preset, "CRF preset")
    if not isinstance(preset, crf.Settings):
        raise ValueError(f"preset is {preset!r}; give a name of CRF_PRESETS, or one of its values")
    if maps.shape[:2] == pixels.shape[1::-1] != pixels.shape[:2]:
        raise ValueError(
            f"the image is {pixels.shape[:2]}, the probabilities are {maps.shape[:2]}; exchange "
            "the rows and columns of one: np.swapaxes(image, 0, 1)"
        )
    if maps.shape[:2] != pixels.shape[:2]:
        raise ValueError(
            f"the image is {pixels.shape[:2]}, the probabilities are {maps.shape[:2]}; enlarge "
            "them first, for example with jax.image.resize"
        )
    return crf.refine(pixels, maps, preset)


def random_walk(
    scores: object,
    *,
    image: object = None,
    affinity: object = None,
    beta: float | None = None,
    steps: int | None = None,
    radius: int = 5,
) -> Any:
    """Score maps after a random walk over the affinity of neighbouring pixels.

    scores: (h,w,k) >= 0, or ScoreMaps. image: photograph (H,W,3) uint8; it is reduced to the grid
    and pixels of like colour are joined. affinity: instead, an ``ops.affinity.Affinity`` on the
    grid of the scores; or the run folder of an affinity network (``wsss affinity``), which wants
    the image too and takes ScoreMaps. beta: exponent of the affinity. steps: length of the walk;
    32 over colours, 256 over learned affinity, whose beta is 10 (IRN). radius: of the
    neighbourhood, in cells.

    Returns what was given: an array of means, with the range of the scores, or ScoreMaps, where
    activations have maximum 1 again. Source: Ahn & Kwak 2018 (PSA); Ahn, Cho & Kwak 2019 (IRN).
    Raises ValueError for other shapes and types, with the line that makes them right.

    >>> import numpy as np
    >>> import wsss_jax as wj
    >>> image = np.zeros((32, 32, 3), np.uint8)
    >>> image[:, 16:] = 255
    >>> scores = np.zeros((16, 16, 1), np.float32)
    >>> scores[4:12, 2:4] = 1
    >>> walked = wj.random_walk(scores, image=image, steps=64)
    >>> bool(walked[8, 6, 0] > 0.01 > walked[8, 12, 0])  # it stays on its side of the edge
    True
    """
    if image is None and affinity is None:
        raise ValueError("nothing to walk along; give image= (colours) or affinity=")
    learned = isinstance(affinity, str | Path)
    beta, steps = _course(beta, steps, learned=affinity is not None)
    arguments.number(radius, "radius", 1, whole=True)
    if isinstance(scores, ScoreMaps):
        if affinity is not None and not learned:
            raise ValueError("with an Affinity of arrays give the array: maps.scores")
        chosen = Path(affinity) if learned else None
        settings = Walk(affinity=chosen, radius=radius, beta=beta, steps=steps)
        checked = arguments.score_maps(scores, "scores")
        return walks.walked(checked, arguments.photograph(image), settings)
    if learned:
        raise ValueError("a learned affinity has a grid of its own; give ScoreMaps")
    if affinity is not None and not isinstance(affinity, Affinity):
        raise ValueError(
            f"affinity is {type(affinity).__name__}, wanted ops.affinity.Affinity(values (p, h, w),"
            " radius), or the folder of a run"
        )
    pixels = None if image is None else arguments.photograph(image)
    grid = None if pixels is None else pixels.shape[:2]
    grid = grid if affinity is None else affinity.values.shape[-2:]
    maps = arguments.scores(scores, "scores", grid)
    if affinity is None and pixels is not None:
        affinity = _of_colours(pixels, maps.shape, radius)
    walked = walk.jitted(jnp.asarray(maps), affinity, beta=beta, steps=steps)
    return np.maximum(np.asarray(walked), 0)


def _course(beta: float | None, steps: int | None, *, learned: bool) -> tuple[float, int]:
    """Exponent and length of a walk: over colours those of ``wsss refine``, else IRN's."""
    default = (10.0, 256) if learned else (Walk.beta, Walk.steps)
    beta = default[0] if beta is None else beta
    steps = default[1] if steps is None else steps
    arguments.number(beta, "beta", 1e-6)
    arguments.number(steps, "steps", 0, whole=True)
    return beta, steps


def _of_colours(image: np.ndarray, maps: tuple[int, ...], radius: int) -> Affinity:
    """Affinity of colours on the grid of maps (h,w,k). ValueError where it is none of the image."""
    grid, size = maps[:2], image.shape[:2]
    if not fits(grid, size):
        hint = f"; {arguments.LAST.format(name='scores')}" if fits(maps[1:], size) else ""
        raise ValueError(f"scores are {maps}, wanted a grid (h, w, k) of the image, {size}{hint}")
    small = Image.fromarray(image).resize((grid[1], grid[0]), Image.Resampling.BOX)
    colours = jnp.asarray(np.asarray(small, np.float32) / np.float32(255))
    return affinities.from_colour(
        colours, radius=radius, sigma_colour=Walk.sigma_colour, sigma_space=Walk.sigma_space
    )

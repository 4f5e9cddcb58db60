"""Random walks on one image's score maps, over colours or over affinity that a network has learned.

Not here: walks on arrays (``ops.walk``), and going through a store (``stages.refine``).
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from wsss_jax.data import stores
from wsss_jax.data.photographs import working_size
from wsss_jax.data.stores import Store
from wsss_jax.errors import BadFileError, UserError
from wsss_jax.ops import affinity, walk
from wsss_jax.ops.resize import resize
from wsss_jax.stages.affinity import Learned, learned
from wsss_jax.systems.affinity import BRANCHES, AffinityNet, answers
from wsss_jax.types import ScoreMaps, Size

CELLS = 32
"""Grids are padded to multiples of this many cells, so that few shapes are compiled."""

PIXELS = 128
"""Photographs are padded for a network to multiples of this, for the same reason."""


@dataclass(frozen=True)
class Walk:
    """Random walk over affinities, from colour and position or learned.

    Attributes:
        affinity: run folder of an affinity network; None takes colour and position.
        edges: store of edges in [0, 1], one map an image (`wsss edges`, `wsss saliency`, or
            imported), which a walk over colours does not cross: the affinity of two cells is
            multiplied by 1 minus the highest edge between them (IRN, equation 6).
        radius: cells closer than this are neighbours, on the affinity's grid.
        sigma_colour: in units of [0, 1] RGB; not used with learned affinity.
        sigma_space: in grid cells; not used with learned affinity.
        beta: exponent of the affinity (learned: 8 in PSA, 10 in IRN).
        steps: length of the walk (PSA and IRN: 256 with learned affinity; colour alone joins
            too much for so many).
        off_boundaries: whether scores are multiplied by 1 minus the learned boundaries before the
            walk, as in IRN. This needs boundaries that are near 0 inside of objects.
        to_activations: whether probabilities become activations, each class divided by its maximum.
            After a long walk a half no longer separates a class from background; published
            thresholds (IRN 0.25, P-NOC 0.30, Puzzle-CAM 0.35) are of activations.
    """

    affinity: Path | None = None
    edges: Path | None = None
    radius: int = 5
    sigma_colour: float = 0.06
    sigma_space: float = 3.0
    beta: float = 1.0
    steps: int = 32
    off_boundaries: bool = True
    to_activations: bool = False

    def __post_init__(self) -> None:
        for name in ("radius", "sigma_colour", "sigma_space", "beta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"walk.{name} is {getattr(self, name)}; wanted a number above 0")
        if self.radius < 2:
            raise UserError("walk.radius is 1, which joins no cells; wanted 2 or more (PSA: 5)")
        if self.edges is not None and self.affinity is not None:
            raise UserError("walk.edges are for a walk over colours; wanted no walk.affinity")
        if self.steps < 0:
            raise UserError(f"walk.steps is {self.steps}; wanted 0 or more")


@lru_cache(maxsize=1)
def edges_in(folder: Path) -> Store:
    """The store of edges. UserError where it holds anything but one map an image in [0, 1]."""
    store = stores.open_store(folder)
    if store.holds != "scores" or len(store.classes) != 1 or store.kind == "logit":
        raise UserError(f"{folder}: wanted edges, one score map in [0, 1] an image")
    return store


def edges_of(id: str, maps: ScoreMaps, settings: Walk) -> Float[np.ndarray, "h w"] | None:
    """The edges of an image, None where the walk knows none. BadFileError for another size."""
    if settings.edges is None:
        return None
    edges = edges_in(settings.edges).get_scores(id)
    if edges.size != maps.size:
        raise BadFileError(
            f"{settings.edges}: edges of {id} are of a photograph of {edges.size}, its scores of "
            f"{maps.size}"
        )
    return edges.scores.max(axis=-1, initial=0)


def walked(
    maps: ScoreMaps,
    image: UInt8[np.ndarray, "H W 3"],
    settings: Walk,
    *,
    edges: Float[np.ndarray, "h w"] | None = None,
) -> ScoreMaps:
    """The maps after a walk: activations with maximum 1 again, probabilities as they come.

    A walk takes means, so probabilities keep their sums, and the background that they leave walks
    along with them.

    Over colours on the grid of the maps; over learned affinity on the network's grid, which the
    maps are averaged or enlarged onto. (PSA walks with a background next to the classes, IRN
    divides by the maximum over all classes. Ours leaves background to the stages that need it.)
    Raises ValueError for photograph and maps of different images, NaN or negative scores.
    """
    check(maps, image)
    if settings.affinity is None:
        scores = _along_colours(maps.scores, image, settings, edges)
    else:
        scores = _along_learned(maps.scores, image, settings, learned(settings.affinity))
    scores = np.maximum(scores, 0)
    if maps.kind == "probability" and not settings.to_activations:
        peak = scores.max(axis=(0, 1))
        return ScoreMaps(np.minimum(scores, 1), maps.classes, maps.size, peak, maps.kind)
    scores = scores / (scores.max(axis=(0, 1), keepdims=True) + np.float32(1e-5))
    return ScoreMaps(scores, maps.classes, maps.size, maps.peak, "activation")


def _along_colours(
    scores: Float[np.ndarray, "h w k"],
    image: UInt8[np.ndarray, "H W 3"],
    settings: Walk,
    edges: Float[np.ndarray, "h2 w2"] | None,
) -> Float[np.ndarray, "h w k"]:
    height, width, count = scores.shape
    canvas = _rounded_up((height, width), CELLS)
    colours = np.asarray(
        Image.fromarray(image).resize((width, height), Image.Resampling.BOX), np.float32
    )
    padded = _on_canvas(scores, canvas, _padded_count(count))
    inside = _on_canvas(np.ones((height, width, 1), np.float32), canvas, 1)[..., 0] > 0
    walls = None
    if edges is not None:
        walls = _on_canvas(resize(edges[..., None], (height, width)), canvas, 1)[..., 0]
    out = _walk(padded, _on_canvas(colours / np.float32(255), canvas, 3), inside, walls, settings)
    return np.asarray(out)[:height, :width, :count]


def _along_learned(
    scores: Float[np.ndarray, "h w k"],
    image: UInt8[np.ndarray, "H W 3"],
    settings: Walk,
    network: Learned,
) -> Float[np.ndarray, "h2 w2 k"]:
    stride, count = network.model.stride, scores.shape[-1]
    height, width = (-(-n // stride) for n in image.shape[:2])
    canvas = _rounded_up(image.shape[:2], PIXELS)
    photograph = _on_canvas(image.astype(np.float32) / np.float32(255), canvas, 3)
    inside = _on_canvas(np.ones((*image.shape[:2], 1), np.float32), canvas, 1)[..., 0] > 0
    grid = (canvas[0] // stride, canvas[1] // stride)
    padded = _on_canvas(resize(scores, (height, width)), grid, _padded_count(count))
    said = _answers(network.model, network.weights, photograph[None], inside[None])
    out = _walk_learned(said, padded, inside, model=network.model, settings=settings)
    return np.asarray(out)[:height, :width, :count]


def check(maps: ScoreMaps, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Raise ValueError unless the maps are usable scores of this photograph."""
    if working_size(maps.size) != image.shape[:2]:
        raise UserError(
            f"scores are of a photograph of {maps.size}, worked on as {working_size(maps.size)}, "
            f"this one comes as {image.shape[:2]}; "
            "explain again, or import with the right images"
        )
    if 0 in maps.scores.shape:
        raise UserError(f"scores have shape {maps.scores.shape}; wanted a cell and a class")
    low = maps.scores.min()  # NaN wins a minimum, so one pass finds both faults
    if not (low >= 0 and maps.scores.max() < np.inf):
        raise UserError(
            f"the smallest score is {low}, wanted finite numbers >= 0; rectify or normalise them"
        )


@partial(jax.jit, static_argnames="settings")
def _walk(
    scores: Float[Array, "h w k"],
    colours: Float[Array, "h w 3"],
    inside: Bool[Array, "h w"],
    edges: Float[Array, "h w"] | None,
    settings: Walk,
) -> Float[Array, "h w k"]:
    pairs = affinity.from_colour(
        colours,
        radius=settings.radius,
        sigma_colour=settings.sigma_colour,
        sigma_space=settings.sigma_space,
        inside=inside,
    )
    if edges is not None:
        open_ways = affinity.from_boundary(edges, radius=settings.radius, inside=inside)
        pairs = replace(pairs, values=pairs.values * open_ways.values)
    return walk.propagate(scores, pairs, beta=settings.beta, steps=settings.steps)


# Apart from the walk, so that a network is compiled once per canvas whatever the number of classes.
_answers = jax.jit(answers, static_argnames="settings")


@partial(jax.jit, static_argnames=("model", "settings"))
def _walk_learned(
    said: Float[Array, "1 h w ..."],
    scores: Float[Array, "h w k"],
    inside: Bool[Array, "H W"],
    *,
    model: AffinityNet,
    settings: Walk,
) -> Float[Array, "h w k"]:
    branch = BRANCHES[model.branch]
    cells = inside[None, :: model.stride, :: model.stride]
    joined = branch.join(said, settings.radius, cells)
    start = branch.start(scores[None], said) if settings.off_boundaries else scores[None]
    return walk.propagate(start, joined, beta=settings.beta, steps=settings.steps)[0]


def _rounded_up(size: tuple[int, ...], multiple: int) -> Size:
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def _padded_count(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _on_canvas(
    array: Float[np.ndarray, "h w k"], canvas: Size, channels: int
) -> Float[np.ndarray, "H W n"]:
    padded = np.zeros((*canvas, channels), np.float32)
    padded[: array.shape[0], : array.shape[1], : array.shape[2]] = array
    return padded

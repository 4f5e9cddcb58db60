"""Refinement: score maps in, score maps out, by random walk and by dense CRF.

The walk follows colours, or the affinity that a network has learned (``learn_affinity``).

The index of the store names the program and version that computed it, since two CRFs agree to
rounding only and a store must not mix them.
"""

from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from wsss_jax import __version__
from wsss_jax.config import as_json, lookup
from wsss_jax.crf import by_pydensecrf as crf_pydensecrf
from wsss_jax.crf import dense as crf
from wsss_jax.data import stores
from wsss_jax.data.photographs import working_size
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.ops import affinity, masks, walk
from wsss_jax.ops.resize import resize
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each, settle
from wsss_jax.stages.affinity import Learned, learned, run_sources
from wsss_jax.stages.masks import label_free_threshold
from wsss_jax.systems.affinity import BRANCHES, AffinityNet, answers
from wsss_jax.types import Kind, ScoreMaps, Size

CELLS = 32
"""Grids are padded to multiples of this many cells, so that few shapes are compiled."""

BACKGROUND = 0.3
"""Score of background next to activations whose maximum is 1."""

PIXELS = 128
"""Photographs are padded for a network to multiples of this, for the same reason."""


@dataclass(frozen=True)
class Walk:
    """Random walk over affinities, from colour and position or learned.

    Attributes:
        affinity: run folder of an affinity network; None takes colour and position.
        radius: of the stencil, in cells of the affinity's grid.
        sigma_colour: in units of [0, 1] RGB; not used where affinity is learned.
        sigma_space: in grid cells; likewise.
        beta: exponent of the affinity (learned: 8 in PSA, 10 in IRN).
        steps: length of the walk (PSA and IRN: 256 with learned affinity; colour alone joins
            too much for so many).
        off_boundaries: whether scores are multiplied by what learned boundaries leave of 1 before
            they walk, as in IRN; not used elsewhere. It presumes that boundaries are near 0
            inside of objects.
        to_activations: whether probabilities end as activations, each class divided by its maximum,
            as scores do. After a long walk a half no longer parts a class from background; the
            thresholds of walked maps (IRN 0.25, P-NOC 0.30, Puzzle-CAM 0.35) are of that kind.
    """

    affinity: Path | None = None
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
        if self.steps < 0:
            raise UserError(f"walk.steps is {self.steps}; wanted 0 or more")


@dataclass(frozen=True)
class Crf:
    """Dense CRF on the photograph at its working size.

    Attributes:
        preset: kernel widths and iterations, one of PRESETS.
        background: constant score of background next to the class scores, in [0, 1]; "otsu" reads
            it off the activations of the store that is refined, all images at once; None where the
            data set has no background.
        stride: pixels per cell of what is kept.
        backend: jax (ours), or pydensecrf where that is installed.
        certainty: None refines the scores; a probability decides first, and refines hard labels
            that are right so often, as the last step after a walk (Puzzle-CAM 0.7, P-NOC 0.9; their
            preset is pnoc_masks).
    """

    preset: str = "psa"
    background: float | Literal["otsu"] | None = BACKGROUND
    stride: int = 2
    backend: Literal["jax", "pydensecrf"] = "jax"
    certainty: float | None = None

    def __post_init__(self) -> None:
        lookup(crf.PRESETS, self.preset, "CRF preset")
        lookup(crf.BACKENDS, self.backend, "CRF backend")
        if isinstance(self.background, float | int) and not 0 < self.background <= 1:
            raise UserError(f"crf.background is {self.background}; wanted a score in (0, 1]")
        if self.certainty is not None and not 0 < self.certainty < 1:
            raise UserError(f"crf.certainty is {self.certainty}; wanted a probability in (0, 1)")
        if self.stride < 1:
            raise UserError(f"crf.stride is {self.stride}; wanted 1 or more pixels per cell")


def refine(
    store: Store,
    source: Source,
    folder: Path,
    settings: Walk | Crf,
    *,
    ids: tuple[str, ...],
    workers: Workers | None = None,
) -> Store:
    """Refine the score maps of ``ids`` into a store at ``folder``; finished images are kept.

    The walk does not change the kind of the scores unless told otherwise, activations with maximum
    1 per class; the CRF gives probabilities whose remainder to 1 is background. The record of an
    image without classes stays empty. Images that fail are skipped, printed, and listed.

    Raises ValueError before anything is made when the store holds masks or logits, when the CRF
    that is asked for is not installed, or when the folder was made with other settings, by another
    program, or by another version.
    """
    workers = workers or Workers()
    name = type(settings).__name__.lower()
    if store.holds != "scores" or store.kind == "logit":
        raise UserError(
            f"{store.folder} holds {store.kind if store.holds == 'scores' else 'masks'}; refine "
            "activations or probabilities (logits: import them as probabilities)"
        )
    if isinstance(settings, Crf) and settings.background == "otsu":
        settings = replace(settings, background=_otsu(store, ids))
    made_by, parents = as_json(settings), [store.folder.name]
    shown = inherited(store)
    if isinstance(settings, Walk) and settings.affinity is not None:
        learned(settings.affinity)  # a run that is not finished is refused before anything is made
        made_by["affinity"] = settings.affinity.name
        parents.append(settings.affinity.name)
        shown = inherited(store, run_sources(settings.affinity))
    target = stores.create(
        folder,
        holds="scores",
        classes=store.classes,
        kind=_kind_after(store.kind, settings),
        made_by={
            "stage": name,
            **made_by,
            "computed_by": computed_by(settings),
            **shown,
        },
        parents=tuple(parents),
    )
    function = partial(_refine_one, store=store, source=source, target=target, settings=settings)
    tally = each(f"{name} {folder.name}", function, target.missing(ids), workers=workers)
    settle(target, tally)
    return target


def _kind_after(kind: Kind, settings: Walk | Crf) -> Kind:
    if isinstance(settings, Crf):
        return "probability"
    return "activation" if settings.to_activations else kind


def _otsu(store: Store, ids: tuple[str, ...]) -> float:
    """Background of a CRF over the store; not used for probabilities, which bring their own.

    Raises ValueError where all scores are equal.
    """
    if store.kind == "probability":
        return BACKGROUND
    found = label_free_threshold(store, ids)
    if found is None:
        raise UserError(
            f"{store.folder}: all scores are equal, so no background can be read off them; give "
            "crf.background a number"
        )
    return round(found, 2)


def computed_by(settings: Walk | Crf) -> str:
    """The program and version that will compute this, such as "pydensecrf2 1.1".

    Raises ValueError when it is not installed.
    """
    if isinstance(settings, Walk) or settings.backend == "jax":
        return f"wsss_jax {__version__}"
    if not crf_pydensecrf.available():
        raise UserError(
            "crf.backend is pydensecrf, which is not installed: pip install 'wsss-jax[crf]' (a C++ "
            "compiler and Python below 3.13), or choose the backend jax"
        )
    # Both distributions give the module pydensecrf; one built by hand may have neither name.
    for name in metadata.packages_distributions().get("pydensecrf", ()):
        return f"{name} {metadata.version(name)}"
    return "pydensecrf of unknown version"


def _refine_one(
    id: str, *, store: Store, source: Source, target: Store, settings: Walk | Crf
) -> None:
    maps = store.get_scores(id)
    if not len(maps.classes):
        refined = ScoreMaps(maps.scores, maps.classes, maps.size, maps.peak, target.kind)
    elif isinstance(settings, Walk):
        refined = walked(maps, source.image(id), settings)
    else:
        refined = crf_refined(maps, source.image(id), settings)
    target.put_scores(id, refined)


def walked(maps: ScoreMaps, image: UInt8[np.ndarray, "H W 3"], settings: Walk) -> ScoreMaps:
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
        scores = _along_colours(maps.scores, image, settings)
    else:
        scores = _along_learned(maps.scores, image, settings, learned(settings.affinity))
    scores = np.maximum(scores, 0)
    if _kind_after(maps.kind, settings) == "probability":
        peak = scores.max(axis=(0, 1))
        return ScoreMaps(np.minimum(scores, 1), maps.classes, maps.size, peak, maps.kind)
    scores = scores / (scores.max(axis=(0, 1), keepdims=True) + np.float32(1e-5))
    return ScoreMaps(scores, maps.classes, maps.size, maps.peak, "activation")


def _along_colours(
    scores: Float[np.ndarray, "h w k"], image: UInt8[np.ndarray, "H W 3"], settings: Walk
) -> Float[np.ndarray, "h w k"]:
    height, width, count = scores.shape
    canvas = _rounded_up((height, width), CELLS)
    colours = np.asarray(
        Image.fromarray(image).resize((width, height), Image.Resampling.BOX), np.float32
    )
    padded = _on_canvas(scores, canvas, _padded_count(count))
    inside = _on_canvas(np.ones((height, width, 1), np.float32), canvas, 1)[..., 0] > 0
    out = _walk(padded, _on_canvas(colours / np.float32(255), canvas, 3), inside, settings)
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


def crf_refined(maps: ScoreMaps, image: UInt8[np.ndarray, "H W 3"], settings: Crf) -> ScoreMaps:
    """Marginals of the present classes after mean field; background is what they leave of 1.

    Raises ValueError for photograph and maps of different images, NaN or negative scores, and for a
    background that only a whole store can tell.
    """
    check(maps, image)
    if settings.background == "otsu":
        raise UserError("one image tells no background; give crf.background a number")
    infer, preset = crf.BACKENDS[settings.backend], crf.PRESETS[settings.preset]
    unary, classes_from = _unary(maps, image.shape[:2], settings.background)
    if settings.certainty is not None:
        count, ranks = unary.shape[-1], unary.argmax(axis=-1)
        unary = np.exp(-crf.unary_from_labels(ranks, count, settings.certainty))
    marginals = infer(image, unary, preset)[..., classes_from:]
    kept = marginals
    if settings.stride > 1:
        grid = tuple(-(-n // settings.stride) for n in marginals.shape[:2])
        kept = resize(marginals, (grid[0], grid[1]))
    return ScoreMaps(kept, maps.classes, maps.size, marginals.max(axis=(0, 1)), "probability")


def _unary(
    maps: ScoreMaps, size: Size, background: float | None
) -> tuple[Float[np.ndarray, "H W n"], int]:
    """Probabilities of each pixel, and from which row on they belong to the classes."""
    scores = resize(maps.scores, size)
    if background is None:
        return masks.shares(scores), 0
    if maps.kind == "activation":
        return masks.with_constant(scores, background), 1
    rest = np.maximum(1 - scores.sum(axis=-1, keepdims=True), 0)
    return np.concatenate([rest, scores], axis=-1), 1


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
    settings: Walk,
) -> Float[Array, "h w k"]:
    pairs = affinity.from_colour(
        colours,
        radius=settings.radius,
        sigma_colour=settings.sigma_colour,
        sigma_space=settings.sigma_space,
        inside=inside,
    )
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

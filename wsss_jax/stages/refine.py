"""Refinement: score maps in, score maps out, by random walk and by dense CRF.

The walk is in ``walks``.

The index of the store names the program and version that computed it, since two CRFs agree to
rounding only and a store must not mix them.
"""

from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from wsss_jax import __version__
from wsss_jax.config import as_json, lookup
from wsss_jax.crf import by_pydensecrf as crf_pydensecrf
from wsss_jax.crf import dense as crf
from wsss_jax.data import stores
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.ops import masks
from wsss_jax.ops.resize import resize
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each, settle
from wsss_jax.stages.affinity import learned, run_sources
from wsss_jax.stages.masks import label_free_threshold
from wsss_jax.stages.parts import walks
from wsss_jax.stages.parts.walks import Walk
from wsss_jax.types import Kind, ScoreMaps, Size

BACKGROUND = 0.3
"""Score of background next to activations whose maximum is 1."""


AFTER_COMBINING = "deeplab"
"""CRF preset for the combiner's maps. Most of them are right already; "psa", made for class maps,
smooths them too much (benchmarks/RESULTS.md)."""


@dataclass(frozen=True)
class Crf:
    """Dense CRF on the photograph at its working size.

    Attributes:
        preset: kernel widths and iterations, one of PRESETS; for the combiner's maps take deeplab.
        background: constant score of background next to the class scores, in [0, 1]; "otsu" takes
            Otsu's threshold of the store's activations; None if the data set has no background.
        stride: pixels per cell of the result.
        backend: jax (ours), or pydensecrf if it is installed.
        certainty: None refines the scores. A number refines hard labels that are right with this
            probability, as the last step after a walk (Puzzle-CAM 0.7, P-NOC 0.9; their preset is
            pnoc_masks).
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
    stores.require_scores(
        store, "refine activations or probabilities (logits: import them as probabilities)"
    )
    if isinstance(settings, Crf) and settings.background == "otsu":
        settings = replace(settings, background=_otsu(store, ids))
    made_by = as_json(settings)
    parents: list[Store | str] = [store]
    shown = inherited(store)
    if isinstance(settings, Walk) and settings.affinity is not None:
        learned(settings.affinity)  # a run that is not finished is refused before anything is made
        made_by["affinity"] = settings.affinity.name
        parents.append(settings.affinity.name)
        shown = inherited(store, run_sources(settings.affinity))
    if isinstance(settings, Walk) and settings.edges is not None:
        made_by["edges"] = settings.edges.name
        parents.append(settings.edges.name)
        shown = inherited(store, walks.edges_in(settings.edges))
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
        parents=parents,
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
        refined = walks.walked(
            maps, source.image(id), settings, edges=walks.edges_of(id, maps, settings)
        )
    else:
        refined = crf_refined(maps, source.image(id), settings)
    target.put_scores(id, refined)


def crf_refined(maps: ScoreMaps, image: UInt8[np.ndarray, "H W 3"], settings: Crf) -> ScoreMaps:
    """Marginals of the present classes after mean field; background is what they leave of 1.

    Raises ValueError for photograph and maps of different images, NaN or negative scores, and for a
    background that only a whole store can tell.
    """
    walks.check(maps, image)
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

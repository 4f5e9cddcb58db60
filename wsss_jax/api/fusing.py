"""Fusion of several systems' maps: by a rule on arrays, and learned over a whole data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss_jax.api import arguments
from wsss_jax.api.reading import opened_all
from wsss_jax.config import lookup
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.selection import Data
from wsss_jax.formats.bounded import as_path
from wsss_jax.ops import fuse as rules
from wsss_jax.stages.combine import Learned, combine_learned, stacked
from wsss_jax.types import ScoreMaps


def fuse(maps: object, rule: str = "mean", *, available: object = None) -> Any:
    """One map per class from the maps of several systems on one image.

    maps: arrays (h,w,k) in [0, 1] of one shape, or ScoreMaps of one photograph. rule: a name of
    FUSIONS. available: (s,k) booleans, which of the s systems has which class; by default all have
    all. ScoreMaps carry their classes, and may lie on different grids.

    Returns (h,w,k) float32 in [0, 1], or ScoreMaps of all classes that any system holds, on the
    finest grid. Raises ValueError for other shapes and types, with what to do.

    >>> import numpy as np
    >>> import wsss_jax as wj
    >>> first, second = np.zeros((2, 2, 1)), np.ones((2, 2, 1))
    >>> wj.fuse([first, second], rule="mean")[0, 0]
    array([0.5], dtype=float32)
    >>> wj.fuse([first, second], available=[[True], [False]])[0, 0]
    array([0.], dtype=float32)
    """
    lookup(rules.FUSIONS, rule, "fusion rule")
    if not isinstance(maps, list | tuple) or not maps:
        raise ValueError("maps: give a list with the maps of each system, such as [maps_a, maps_b]")
    if all(isinstance(one, ScoreMaps) for one in maps):
        if available is not None:
            raise ValueError("ScoreMaps know which classes they hold; leave available out")
        return _of_score_maps([arguments.score_maps(one, "maps") for one in maps], rule)
    if any(isinstance(one, ScoreMaps) for one in maps):
        raise ValueError("arrays and ScoreMaps are mixed; give all arrays: maps.scores")
    arrays = [arguments.shares(one, "maps") for one in maps]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"maps of different shapes {shapes}; resize them to one grid, "
            "and put the classes in one order"
        )
    known = np.ones((len(arrays), shapes[0][-1]), bool)
    if available is not None:
        flags = np.asarray(available)
        if flags.dtype.kind not in "biuf" or not np.isin(flags, (0, 1)).all():
            raise ValueError(f"available is {flags.tolist()}, wanted True or False for each pair")
        known = flags.astype(bool)
    return rules.apply(rule, np.stack(arrays), known)


def combine(
    stores: Sequence[Store | str | Path],
    data: str | Path,
    out: str | Path,
    *,
    run: str | Path,
    split: str = "all",
    learn_split: str = "train",
    saliency: Store | str | Path | None = None,
    features: Sequence[str | Path] = (),
) -> Store:
    """Fuse systems by the combiner that learns from image labels; returns a store.

    stores: score maps of each system, stores or their folders. data: the data set. out: folder of
    the store to write. run: folder of the combiner; unless it is finished, it is trained first on
    the image labels of ``learn_split``, and reads no mask. split: the images to fuse. saliency:
    store of saliency maps. features: stores of frozen features (``wsss features``), one for each
    network. The same call resumes a stopped one. The same as ``wsss combine --run``.

    Raises UserError where stores, data set and run do not belong together, naming what differs.

    >>> import wsss_jax as wj
    >>> wj.combine([], "runs/demo/data", "runs/combined", run="runs/combiner")
    Traceback (most recent call last):
    ...
    wsss_jax.errors.UserError: no store is named; wanted the folder of at least one
    """
    systems = opened_all(stores)
    seen = tuple(as_path(one, "features") for one in features)
    chosen = Learned(run=as_path(run, "run"), features=seen, learn_split=learn_split)
    cue = (
        saliency
        if isinstance(saliency, Store | None)
        else open_store(as_path(saliency, "saliency"))
    )
    source = Data(as_path(data, "data"), split).open()
    teaching = Data(as_path(data, "data"), learn_split).open()
    return combine_learned(chosen, systems, cue, source, teaching, as_path(out, "out")).maps


def _of_score_maps(maps: Sequence[ScoreMaps], rule: str) -> ScoreMaps:
    kinds = sorted({one.kind for one in maps})
    if len(kinds) > 1 or "logit" in kinds:
        raise ValueError(f"maps are {', '.join(kinds)}; wanted activations or probabilities alone")
    classes = np.unique(np.concatenate([one.classes for one in maps])).astype(np.int32)
    scores, known = stacked(maps, classes)
    fused = rules.apply(rule, scores, known).astype(np.float32)
    peak = fused.max(axis=(0, 1), initial=0).astype(np.float32)
    return ScoreMaps(fused, classes, maps[0].size, peak, maps[0].kind)

"""``wsss combine``: score maps of several systems become one, by a rule or by the combiner.

A rule (``FUSIONS``) looks at one image at a time and learns nothing. The combiner learns from the
image labels of a whole split (``wsss_jax.combiner``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from wsss_jax.combiner.evidence import (
    Inputs,
    check_saliency,
    no_map,
    of_photograph,
    readable,
    share,
    tell_absent,
)
from wsss_jax.combiner.fuse import Fused, fuse
from wsss_jax.combiner.learn import learn
from wsss_jax.combiner.settings import Combining
from wsss_jax.config import as_json, lookup
from wsss_jax.data import stores
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store, open_store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.ops import fuse as fuse_rules
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each, settle
from wsss_jax.stages.import_maps import Import, import_priors
from wsss_jax.types import ScoreMaps, Size


@dataclass(frozen=True)
class Fusion:
    """How maps become one.

    Attributes:
        rule: a name of FUSIONS.
        renormalise: divide each fused class by its maximum, so that one fixed threshold suits
            every rule; votes and posteriors are better left as they are.
    """

    rule: str = "mean"
    renormalise: bool = True


def combine(
    systems: Sequence[Store],
    source: Source,
    folder: Path,
    fusion: Fusion,
    *,
    ids: tuple[str, ...],
    saliency: Store | None = None,
    workers: Workers | None = None,
) -> Store:
    """Fuse the systems' maps of ``ids`` into a store at ``folder``.

    The classes of an image are its labels. An image is fused from the systems that have a readable
    map of it; which were missing is printed and listed in absent.json. With ``saliency``
    the fused scores are multiplied by 0.5 + 0.5 saliency; an image without saliency is
    skipped and listed, since its scores would not compare with the others'.
    """
    lookup(fuse_rules.FUSIONS, fusion.rule, "fusion rule")
    stores.check_systems(systems, source.classes.names)
    check_saliency(saliency)
    cue = (saliency.folder.name,) if saliency else ()
    target = stores.create(
        folder,
        holds="scores",
        classes=systems[0].classes,
        made_by={
            "stage": "combine",
            **as_json(fusion),
            "saliency": list(cue),
            **inherited(*systems, saliency),
        },
        parents=(*systems, *([saliency] if saliency else [])),
    )
    function = partial(
        _fuse_one, systems=tuple(systems), source=source, to=target, fusion=fusion, cue=saliency
    )
    absent: dict[str, dict[str, str]] = {}
    missing = target.missing(ids)
    tally = each(
        f"fuse {folder.name}",
        function,
        missing,
        workers=workers or Workers(),
        collect=lambda id, reasons: absent.update({id: reasons} if reasons else {}),
    )
    tell_absent(folder, absent, missing, tally.shard)
    settle(target, tally)
    return target


@dataclass(frozen=True)
class Learned:
    """The combiner that learns, in place of a rule.

    Attributes:
        run: folder of the combiner, which is trained there first unless it is finished; without
            it a rule fuses.
        features: stores of frozen features (`wsss features`): the linear probe reads all but the
            last (of classifiers, such as MobileNet), and maps are smoothed along the last (of a
            self-supervised transformer, such as DINOv2).
        learn_split: the images that the combiner learns from.
        learn: --no-learn fuses with a finished combiner, also one that learned from other systems.
        combining: how it learns.
    """

    run: Path | None = None
    features: tuple[Path, ...] = ()
    learn_split: str = "train"
    learn: bool = True
    combining: Combining = field(default_factory=Combining)

    def __post_init__(self) -> None:
        learns = self.combining != Combining() or self.learn_split != "train" or not self.learn
        if self.run is None and (self.features or learns):
            raise UserError(
                "features and settings of the combiner are not for a rule; name the folder of its "
                "run (--run), or leave them out"
            )


def combine_learned(
    chosen: Learned,
    systems: Sequence[Store],
    saliency: Store | None,
    source: Source,
    teaching: Source,
    out: Path,
) -> Fused:
    """Learn on ``teaching`` where that is not done, then fuse all images of ``source``.

    Raises UserError where no run folder is named, and BadFileError where nothing is to be learned
    and the run is not finished.
    """
    if chosen.run is None:
        raise UserError("name the folder of the combiner's run (--run)")
    seen = tuple(open_store(path) for path in chosen.features)
    inputs = Inputs(source, tuple(systems), saliency=saliency, features=seen)
    if not chosen.learn and chosen.combining != Combining():
        raise UserError(
            "--no-learn fuses with the settings that the run has learned with; leave out the "
            "settings of the combiner"
        )
    if chosen.learn:
        learned_from = replace(inputs, source=teaching, missing={})
        learn(learned_from, chosen.run, chosen.combining, ids=teaching.ids)
    return fuse(chosen.run, inputs, out, ids=source.ids)


def opened(
    folders: Sequence[Path], source: Source, out: Path, workers: Workers | None = None
) -> list[Store]:
    """The stores in these folders; a folder of another tool's files is imported on the way.

    It goes to ``<out>_imported/<its name>``, below the name of its own folder where two are called
    alike, with its layout told from the files. Raises UserError where no folder is named,
    BadFileError where a layout is in doubt.
    """
    if not folders:
        raise UserError("no store is named; wanted the folder of at least one")
    names = [folder.resolve().name for folder in folders]
    made = []
    for folder, name in zip(folders, names, strict=True):
        if (folder / "index.json").is_file() or not folder.is_dir():
            made.append(open_store(folder))
        else:
            above = folder.resolve().parent.name if names.count(name) > 1 else ""
            target = out.with_name(f"{out.name}_imported") / above / name
            made.append(
                import_priors(Import(), folder, source, target, ids=source.ids, workers=workers)
            )
    return made


def _fuse_one(
    id: str,
    *,
    systems: tuple[Store, ...],
    source: Source,
    to: Store,
    fusion: Fusion,
    cue: Store | None,
) -> dict[str, str]:
    classes = np.flatnonzero(source.labels(id)).astype(np.int32)
    found, absent = readable(systems, id, source.size(id))
    maps = [one for one in found if one is not None]
    if not maps:
        raise no_map(absent)
    scores, available = stacked(maps, classes)
    fused = scores[0] if len(maps) == 1 else fuse_rules.apply(fusion.rule, scores, available)
    if cue is not None and len(classes):
        known = of_photograph(cue, id, source.size(id))
        saliency = share(known, known.scores[..., 0], fused.shape[:2])
        fused = np.asarray(fuse_rules.with_saliency(fused, saliency), np.float32)
    if fusion.renormalise and fused.size:
        peaks = fused.max(axis=(0, 1), keepdims=True)
        fused = fused / np.where(peaks > 0, peaks, 1)
    peak = _mean_peak(maps, classes)
    to.put_scores(id, ScoreMaps(fused.astype(np.float32), classes, maps[0].size, peak))
    return absent


def stacked(
    maps: Sequence[ScoreMaps], classes: np.ndarray
) -> tuple[Float[np.ndarray, "s h w k"], Bool[np.ndarray, "s k"]]:
    """All systems' scores of the given classes on the finest grid, and who has which class.

    Raises ValueError when the maps are of photographs of different sizes.
    """
    sizes = {item.size for item in maps}
    if len(sizes) > 1:
        raise UserError(f"systems disagree about the photograph's size: {sorted(sizes)}")
    grid: Size = max((item.scores.shape[:2] for item in maps), key=lambda s: s[0] * s[1])
    scores = np.zeros((len(maps), *grid, len(classes)), np.float32)
    available = np.zeros((len(maps), len(classes)), bool)
    for row, item in enumerate(maps):
        for column, label in enumerate(classes):
            found = np.flatnonzero(item.classes == label)
            if len(found):
                scores[row, ..., column] = share(item, item.scores[..., found[0]], grid)
                available[row, column] = True
    return scores, available


def _mean_peak(maps: Sequence[ScoreMaps], classes: np.ndarray) -> Float[np.ndarray, " k"]:
    peaks = [
        [float(item.peak[item.classes == label][0]) for item in maps if label in item.classes]
        for label in classes
    ]
    return np.asarray([np.mean(values) if values else 0.0 for values in peaks], np.float32)

"""What is known of one image: maps of several systems, cues and frozen features, on one small grid.

Everything is resized so that the photograph's long side has ``cells`` cells, with one row for each
class that the image shows. Scores come from stores, whoever wrote them. A map that is missing or
damaged costs the system this image, and never the image: the other systems go on, and the record
names who was missing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from wsss_jax.combiner.boxes import Boxed, on_grid
from wsss_jax.data import json_records, stores
from wsss_jax.data.classes import to_mask_index
from wsss_jax.data.files import write_atomic
from wsss_jax.data.stores import Store, check_systems
from wsss_jax.data.units import unit_of
from wsss_jax.datasets.boxes import Reader
from wsss_jax.datasets.table import Source
from wsss_jax.errors import BadFileError, UserError, first_few
from wsss_jax.ops.resize import resize
from wsss_jax.priors.external import dropped_classes
from wsss_jax.run import left_out
from wsss_jax.run.images import list_name
from wsss_jax.types import IGNORE, ScoreMaps, Size


class Example(NamedTuple):
    """One image on its grid.

    image: (h,w,3) RGB in [0, 1]. scores: (s,h,w,k) in [0, 1]. available: (s,k), whether a system
    has a map of the class. classes: (k,) labels that the image shows. size: (H, W) of the
    photograph. features: one array (h,w,f) for each frozen network. saliency: (h,w) in [0, 1], or
    None. truth: (h,w) rows of ``classes`` + 1, 0 background, IGNORE; or None.
    boxed: over the h·w cells, or None.
    """

    image: Float[np.ndarray, "h w 3"]
    scores: Float[np.ndarray, "s h w k"]
    available: Bool[np.ndarray, "s k"]
    classes: Int[np.ndarray, " k"]
    size: Size
    features: tuple[Float[np.ndarray, "h w _"], ...] = ()
    saliency: Float[np.ndarray, "h w"] | None = None
    truth: Int[np.ndarray, "h w"] | None = None
    boxed: Boxed | None = None


@dataclass(frozen=True)
class Inputs:
    """The stores that are combined, and the photographs.

    systems: score maps of classes, in any order. saliency: a store of one class-agnostic map.
    features: stores of frozen features (``stages.features``). Smoothing goes along those of the
    last; the linear probe reads all others, or the only one; the random walk goes along the first.
    labelled: ids whose true masks may be read. boxes: of the objects in photographs, outside of
    which their classes score 0; None without any. cells: the grid's long side. units: see
    ``Combining``. missing: filled while reading: by image and system, why a map is missing.

    Raises UserError without a system, for one of other classes than the source's, for two systems
    of one name, for a saliency of several classes, and for features that are none.
    """

    source: Source
    systems: tuple[Store, ...]
    saliency: Store | None = None
    features: tuple[Store, ...] = ()
    labelled: frozenset[str] = frozenset()
    boxes: Reader | None = None
    cells: int = 64
    units: Literal["typical", "given"] = "typical"
    missing: dict[str, dict[str, str]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_systems(self.systems, self.source.classes.names)
        for what, some in (("systems", self.systems), ("stores of features", self.features)):
            names = [store.folder.name for store in some]
            twins = sorted({name for name in names if names.count(name) > 1})
            if twins:
                raise UserError(
                    f"two {what} are called {', '.join(twins)}; what is learned of each is kept "
                    "under its name, so rename the folder of one"
                )
        check_saliency(self.saliency)
        for store in self.features:
            if store.holds != "scores" or store.kind != "logit":
                raise UserError(
                    f"{store.folder} holds no features; make a store of them by `wsss features`"
                )

    def names(self) -> tuple[str, ...]:
        """What the systems are called: the names of their folders."""
        return tuple(store.folder.name for store in self.systems)

    def shown(self, ids: Sequence[str], *, negatives: bool = False) -> dict[str, int]:
        """How many classes each image shows; images that show none only with ``negatives``."""
        counts = {id: int(self.source.labels(id).sum()) for id in ids}
        return {id: count for id, count in counts.items() if count or negatives}

    def read(self, id: str) -> Example:
        """The example of one image. BadFileError where no system has a usable map of it."""
        pixels = self.source.image(id)
        size = self.source.size(id)
        grid = grid_of(size, self.cells)
        classes = np.flatnonzero(self.source.labels(id)).astype(np.int32)
        scores, available = self._systems(id, classes, size, grid)
        boxed = self._boxed(id, classes, grid)
        if boxed is not None:
            scores *= boxed.allowed(len(classes)).reshape(*grid, -1)
        small = Image.fromarray(pixels).resize((grid[1], grid[0]), Image.Resampling.BOX)
        return Example(
            image=np.asarray(small, np.float32) / np.float32(255),
            scores=scores,
            available=available,
            classes=classes,
            size=size,
            features=tuple(
                resize(of_photograph(store, id, size).scores, grid) for store in self.features
            ),
            saliency=self._saliency(id, grid),
            truth=self._truth(id, classes, grid) if id in self.labelled else None,
            boxed=boxed,
        )

    @cached_property
    def divisors(self) -> tuple[float, ...]:
        """What each system's scores are divided by; 1 for most."""
        return tuple(unit_of(one) if self.units == "typical" else 1.0 for one in self.systems)

    def _systems(
        self, id: str, classes: np.ndarray, size: Size, grid: Size
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = np.zeros((len(self.systems), *grid, len(classes)), np.float32)
        available = np.zeros((len(self.systems), len(classes)), bool)
        systems = self.systems if len(classes) else ()
        found, absent = readable(systems, id, size)
        for row, (store, maps) in enumerate(zip(systems, found, strict=True)):
            if maps is None:
                continue
            columns = {int(label): column for column, label in enumerate(maps.classes)}
            for slot, label in enumerate(classes):
                if int(label) in columns:
                    one = maps.scores[..., columns[int(label)]]
                    scores[row, ..., slot] = share(maps, one, grid, self.divisors[row])
                    available[row, slot] = True
            lacking = [self.source.classes.names[c] for c in classes if int(c) not in columns]
            if lacking:
                absent[store.folder.name] = _lacking(store.folder, id, lacking)
        if absent:
            self.missing[id] = absent
        if len(classes) and not available.any():
            raise no_map(absent)
        return scores, available

    def _boxed(self, id: str, classes: np.ndarray, grid: Size) -> Boxed | None:
        found = None if self.boxes is None else self.boxes(id)
        names = [self.source.classes.names[label] for label in classes]
        return None if found is None else on_grid(found, names, grid)

    def _saliency(self, id: str, grid: Size) -> np.ndarray | None:
        if self.saliency is None or not self.saliency.has(id):
            return None
        maps = of_photograph(self.saliency, id, self.source.size(id))
        return share(maps, maps.scores[..., 0], grid)

    def _truth(self, id: str, classes: np.ndarray, grid: Size) -> np.ndarray | None:
        mask = self.source.mask(id)
        if mask is None:
            return None
        small = np.asarray(
            Image.fromarray(mask).resize((grid[1], grid[0]), Image.Resampling.NEAREST)
        )
        rows = np.full(256, IGNORE, np.int32)  # a class that is not among the labels
        rows[0] = 0
        rows[to_mask_index(classes)] = np.arange(1, len(classes) + 1)
        return rows[small]


def grid_of(size: Size, cells: int) -> Size:
    """The grid of a photograph: its long side has ``cells`` cells, its short one at least 1."""
    scale = cells / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def check_saliency(cue: Store | None) -> None:
    """UserError for a store of anything but one map for each image."""
    if cue is not None and (cue.holds != "scores" or len(cue.classes) != 1):
        raise UserError(
            f"{cue.folder} holds {cue.holds} of {len(cue.classes)} classes; wanted one "
            "class-agnostic map as saliency"
        )


def of_photograph(store: Store, id: str, size: Size) -> ScoreMaps:
    """Saliency or features of an image. BadFileError where they are of another size, or empty."""
    maps = store.get_scores(id)
    if maps.size != size or not maps.scores.shape[-1]:
        raise BadFileError(
            f"{store.folder}: {id}: {maps.scores.shape[-1]} maps of a photograph of {maps.size}, "
            f"this one is {size}"
        )
    return maps


def readable(
    systems: Sequence[Store], id: str, size: Size
) -> tuple[list[ScoreMaps | None], dict[str, str]]:
    """The maps of an image by system, None where they cannot be read, and why, by name.

    size: of the photograph, which a map must be of.
    """
    found: list[ScoreMaps | None] = []
    absent: dict[str, str] = {}
    for store in systems:
        try:
            maps = maps_of(store, id)
            if maps.size != size:
                raise BadFileError(f"a map of a photograph of {maps.size}, this one is {size}")
            found.append(maps)
        except BadFileError as problem:
            found.append(None)
            absent[store.folder.name] = str(problem)
    return found, absent


def no_map(absent: Mapping[str, str]) -> BadFileError:
    """The error of an image of which no system has a map, with what each is told of."""
    reasons = "; ".join(f"{name}: {why}" for name, why in sorted(absent.items()))
    return BadFileError(f"no system has a map of this image ({reasons})")


def maps_of(store: Store, id: str) -> ScoreMaps:
    """The record of an image. BadFileError, with the reason where the store tells one."""
    if not store.has(id):
        reason = stores.skipped(store.folder).get(id)
        raise BadFileError(
            f"no record, refused when it was made: {reason}" if reason else "no record"
        )
    return store.get_scores(id)


def tell_absent(
    folder: Path,
    absent: Mapping[str, Mapping[str, str]],
    fused: Iterable[str],
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Print which systems had no map of which images and why, list it in absent.json of the store.

    absent: reasons by image and system. fused: the images that were fused now; of others the list
    stays as it was. Each share of the images has a list of its own, absent_1_of_4.json.
    """
    path = folder / list_name("absent", shard)
    # Who works on all images takes over the lists of shares.
    read = sorted(folder.glob("absent*.json")) if shard == (0, 1) else [path] * path.is_file()
    before = {id: names for one in read for id, names in json_records.read(one).items()}
    listed = {id: before[id] for id in before.keys() - {*fused}}
    listed |= {id: list(reasons) for id, reasons in absent.items()}
    left_out.note_maps(folder, sum(len(names) for names in listed.values()))
    by_system: dict[str, list[tuple[str, str]]] = {}
    for id, reasons in sorted(absent.items()):
        for name, reason in reasons.items():
            by_system.setdefault(name, []).append((id, reason))
    for name, cases in sorted(by_system.items()):
        few = first_few(id for id, _ in cases)
        print(
            f"{folder.name}: {name} lacks maps of {len(cases)} image(s), which go without it: {few}"
            f"; first: {cases[0][1]}"
        )
    if listed:
        write_atomic(path, json.dumps(dict(sorted(listed.items())), indent=1).encode())
    for one in read:
        if one != path or not listed:
            one.unlink(missing_ok=True)


def _lacking(folder: Path, id: str, names: Sequence[str]) -> str:
    """Which classes an image has no map of, and why, where the import that left them out told."""
    reasons = dropped_classes(folder).get(id, {})
    told = (f"{name} (refused: {reasons[name]})" if name in reasons else name for name in names)
    return f"no map of {', '.join(told)}"


def share(
    maps: ScoreMaps, one: Float[np.ndarray, "h w"], grid: Size, of: float = 1
) -> Float[np.ndarray, "h2 w2"]:
    """One map on the grid, in shares ``of`` a unit and in [0, 1]; logits become probabilities."""
    one = resize(np.ascontiguousarray(one), grid)
    if maps.kind == "logit":
        one = 1 / (1 + np.exp(-np.clip(one, -30, 30)))
    return np.clip(one / np.float32(of), 0, 1).astype(np.float32)

"""Affinity labels: from score maps to masks of what is certain, IGNORE where it is not.

Three published rules, each a pure function of one image (``psa``, ``irn``, ``pnoc``), and the
stage that runs one over a store. They differ in where background comes from: two exponents of what
the classes leave (PSA), two constants (IRN, Puzzle-CAM), or saliency (P-NOC). All clean their
candidates with a dense CRF at full resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from wsss_jax.config import as_json, lookup
from wsss_jax.crf import dense as crf
from wsss_jax.data import stores
from wsss_jax.data.classes import to_mask_index
from wsss_jax.data.photographs import working_size
from wsss_jax.data.provenance import inherited
from wsss_jax.data.stores import Store
from wsss_jax.datasets.table import Source
from wsss_jax.errors import UserError
from wsss_jax.ops.resize import resize
from wsss_jax.run.executors import Workers
from wsss_jax.run.images import each, settle
from wsss_jax.run.thresholds import label_free_bounds
from wsss_jax.stages.parts.walks import check
from wsss_jax.types import IGNORE, ScoreMaps

Image = UInt8[np.ndarray, "H W 3"]
Mask = UInt8[np.ndarray, "H W"]
Ranks = Int[np.ndarray, "H W"]
"""0 for background, n + 1 for the n-th class that is present."""

SURE = (0.3, 0.7)
"""Probabilities below and above which a class is surely not there, and there."""

NO_SCORE = 1e-5
"""Pixels whose scores are all below this are unknown in PSA."""


@dataclass(frozen=True)
class Psa:
    """AffinityNet's rule: foreground must beat a strong background, background must win when weak.

    Attributes:
        low: exponent alpha of (1 - max) ** alpha whose strong background certain foreground must
            overcome (PSA 4, OC-CSE 6, MCTformer 1).
        high: exponent whose weak background must still win (PSA 32, its paper and SEAM 24).
        preset: of the CRF, by name.
    """

    low: float = 4.0
    high: float = 32.0
    preset: str = "psa"

    def __post_init__(self) -> None:
        lookup(crf.PRESETS, self.preset, "CRF preset")
        if not 0 < self.low <= self.high:
            raise UserError(f"exponents {self.low} and {self.high}: wanted 0 < low <= high")


@dataclass(frozen=True)
class Irn:
    """IRN's rule: two constant backgrounds, hard labels for the CRF.

    Attributes:
        foreground: score that certain foreground must exceed (IRN 0.30; Puzzle-CAM 0.40).
        background: score that certain background must not exceed (IRN 0.05; Puzzle-CAM 0.10).
        preset: of the CRF, by name.
        certainty: probability that a hard label is right, for the CRF.
        thresholds: given takes the two above. otsu reads both off all maps without a mask, and
            takes 0.7 and 0.3 of probabilities. The published numbers suit maps whose best
            threshold is near 0.16; for other maps they call too much foreground.
    """

    foreground: float = 0.30
    background: float = 0.05
    preset: str = "irn"
    certainty: float = 0.7
    thresholds: Literal["given", "otsu"] = "given"

    def __post_init__(self) -> None:
        lookup(crf.PRESETS, self.preset, "CRF preset")
        _check(0 < self.background <= self.foreground <= 1, self)
        _check(0 < self.certainty < 1, self)


@dataclass(frozen=True)
class Pnoc:
    """P-NOC's rule: saliency decides what may be foreground, and what neither claims is background.

    Attributes:
        foreground: score that foreground must exceed where it is salient.
        salient: saliency in [0, 1] above which a pixel is salient.
        preset: of the CRF, by name.
        certainty: probability that a hard label is right, for the CRF.
    """

    foreground: float = 0.40
    salient: float = 0.1
    preset: str = "irn"
    certainty: float = 0.7

    def __post_init__(self) -> None:
        lookup(crf.PRESETS, self.preset, "CRF preset")
        _check(0 < self.foreground <= 1 and 0 < self.salient < 1, self)
        _check(0 < self.certainty < 1, self)


Rule = Psa | Irn | Pnoc


def make_labels(
    store: Store,
    source: Source,
    folder: Path,
    rule: Rule,
    *,
    ids: tuple[str, ...],
    saliency: Store | None = None,
    workers: Workers | None = None,
) -> Store:
    """Affinity labels of ``ids`` as masks in a store at ``folder``; finished images are kept.

    store: activations or probabilities with maximum about 1 per class. saliency: maps of one
    class, needed by P-NOC's rule and used by no other. An image without classes is unknown all
    over. Images that fail are skipped, printed, and listed.

    Raises ValueError for stores that do not hold what the rule needs, and for maps off which no two
    thresholds can be read.
    """
    stores.require_scores(store, "labels come from activations or probabilities; explain first")
    if isinstance(rule, Pnoc) != (saliency is not None):
        raise UserError(
            f"{type(rule).__name__} came {'without' if saliency is None else 'with'} saliency; "
            "P-NOC's rule needs a store of it, the others use none"
        )
    if isinstance(rule, Irn) and rule.thresholds == "otsu":
        rule = _bounded(rule, store, ids)
    target = stores.create(
        folder,
        holds="masks",
        classes=store.classes,
        made_by={
            "stage": "labels",
            "rule": type(rule).__name__.lower(),
            **as_json(rule),
            **inherited(store, saliency),
        },
        parents=(store, *([saliency] if saliency else [])),
    )
    function = partial(_label_one, store=store, source=source, to=target, rule=rule, cue=saliency)
    tally = each(
        f"labels {folder.name}", function, target.missing(ids), workers=workers or Workers()
    )
    settle(target, tally)
    return target


def _bounded(rule: Irn, store: Store, ids: Sequence[str]) -> Irn:
    """The same with the thresholds that part the store's activations."""
    found = SURE if store.kind == "probability" else label_free_bounds(store, ids)
    if found is None:
        raise UserError(
            f"{store.folder}: has no activations of three values or more, so no two thresholds can "
            "be read off it; give the rule's numbers"
        )
    low, high = (round(bound, 2) for bound in found)
    if store.kind == "probability":
        _check_sure(store, ids, high)
    return replace(rule, background=low, foreground=high)


def _check_sure(store: Store, ids: Sequence[str], high: float) -> None:
    """Raise ValueError where most maps are nowhere sure, so that almost nothing would teach."""
    peaks = [store.get_scores(id).peak for id in ids if store.has(id)]
    highest = np.array([peak.max() for peak in peaks if len(peak)])
    unsure = int((highest <= high).sum())
    if len(highest) and unsure > len(highest) / 2:
        raise UserError(
            f"{store.folder}: in {unsure} of {len(highest)} images no probability exceeds {high} "
            f"(their highest is {np.median(highest):.2f} in the middle), so hardly anything would "
            "be called certain foreground; give the rule's numbers (thresholds: given), or take "
            "maps that are surer"
        )


def psa(maps: ScoreMaps, image: Image, rule: Psa) -> Mask:
    """Mask values by PSA's rule, at the size that the photograph comes with.

    Foreground is what wins against (1 - max) ** low after the CRF, background where
    (1 - max) ** high wins, IGNORE the rest. Where both claim a pixel, background has it, as in the
    code of Ahn & Kwak 2018. Where we differ: decided at full resolution and before augmentation;
    they augment scores, average them over the cells of the network, and decide then.
    """
    scores = resize(maps.scores, image.shape[:2])
    settings = crf.PRESETS[rule.preset]
    rest = np.clip(1 - scores.max(axis=-1, keepdims=True), 0, 1)

    def decided(alpha: float) -> Ranks:
        rows = np.concatenate([rest ** np.float32(alpha), scores], axis=-1)
        return crf.refine(image, rows, settings).argmax(axis=-1)

    foreground, background = decided(rule.low), decided(rule.high)
    labels = np.where(foreground == 0, IGNORE, _numbered(foreground, maps))
    labels = np.where(background == 0, 0, labels)
    return np.where(scores.max(axis=-1) < NO_SCORE, IGNORE, labels).astype(np.uint8)


def irn(maps: ScoreMaps, image: Image, rule: Irn) -> Mask:
    """Mask values by IRN's rule (Ahn, Cho & Kwak 2019): two thresholds, each cleaned by a CRF."""
    scores = resize(maps.scores, image.shape[:2])

    def decided(threshold: float) -> Ranks:
        ranks = _ranks(scores, threshold)
        return _cleaned(image, ranks, len(maps.classes) + 1, rule)

    foreground, background = decided(rule.foreground), decided(rule.background)
    labels = np.where(foreground == 0, IGNORE, _numbered(foreground, maps))
    return np.where((foreground == 0) & (background == 0), 0, labels).astype(np.uint8)


def pnoc(maps: ScoreMaps, image: Image, rule: Pnoc, *, saliency: Float[np.ndarray, "H W"]) -> Mask:
    """Mask values by P-NOC's rule (David, Pedrini & Dias 2024); saliency in [0, 1].

    Foreground: salient after a CRF, above the threshold, and kept by a second CRF. Background:
    neither salient nor foreground. Salient pixels of no class are unknown.
    """
    salient = _cleaned(image, (saliency > rule.salient).astype(np.int64), 2, rule)
    ranks = _ranks(resize(maps.scores, image.shape[:2]), rule.foreground) * salient
    foreground = _cleaned(image, ranks, len(maps.classes) + 1, rule)
    labels = np.where(foreground == 0, IGNORE, _numbered(foreground, maps))
    return np.where((foreground == 0) & (salient == 0), 0, labels).astype(np.uint8)


def _label_one(
    id: str, *, store: Store, source: Source, to: Store, rule: Rule, cue: Store | None
) -> None:
    maps, size = store.get_scores(id), working_size(source.size(id))
    if not len(maps.classes):
        to.put_mask(id, np.full(size, IGNORE, np.uint8))
        return
    image = source.image(id)
    check(maps, image)
    if isinstance(rule, Psa):
        mask = psa(maps, image, rule)
    elif isinstance(rule, Irn):
        mask = irn(maps, image, rule)
    else:
        assert cue is not None
        found = cue.get_scores(id)
        check(found, image)
        mask = pnoc(maps, image, rule, saliency=resize(found.scores, size).max(axis=-1))
    to.put_mask(id, mask)


def _ranks(scores: Float[np.ndarray, "H W k"], threshold: float) -> Ranks:
    """The best class of every pixel where it exceeds the threshold, else background."""
    return np.where(scores.max(axis=-1) > threshold, scores.argmax(axis=-1) + 1, 0)


def _cleaned(image: Image, ranks: Ranks, count: int, rule: Irn | Pnoc) -> Ranks:
    """Hard labels 0 … count - 1 after a CRF that trusts them as far as the rule does."""
    settings = crf.PRESETS[rule.preset]
    marginals = crf.refine_labels(image, ranks, settings, k=count, gt_prob=rule.certainty)
    return marginals.argmax(axis=-1)


def _numbered(ranks: Ranks, maps: ScoreMaps) -> Int[np.ndarray, "H W"]:
    """Mask values of ranks; background stays 0."""
    values = np.concatenate([[0], to_mask_index(maps.classes.astype(np.int64))])
    return values[ranks]


def _check(holds: bool, rule: Rule) -> None:
    if not holds:
        raise UserError(f"{rule}: wanted scores in (0, 1], and less for background than foreground")

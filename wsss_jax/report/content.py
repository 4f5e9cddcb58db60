"""What a report is about: its numbers and its pictures, all host arrays, checked when made.

Not here: how any of it looks (``figures``, ``charts``) and how the page is written (``page``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

_ROUNDING = 1e-3
"""Scores pass through float16 on disk, whose steps just below 1 are 5e-4."""


@dataclass(frozen=True)
class Gain:
    """Difference in mIoU to another stage, with its paired bootstrap interval, as fractions."""

    reference: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class StageScore:
    """How good the masks of one stage (or system, or fusion rule) are on one split.

    miou, low, high: mean IoU in [0, 1] and its interval, None where none was made.
    per_class: IoU in mask numbering, background first, NaN for a class that was not counted.
    threshold: the score above which a pixel belongs to an object, None where there is none.
    threshold_source: how it was chosen, for example "fixed" or "tuned on truth"; stages with
    different sources are never drawn as steps of one chain.
    group: the step of the pipeline this belongs to ("explain", "walk", "fusion"); the charts show
    the best stage of each group, or every stage where groups are not given.
    gain: paired difference to a reference stage, usually the best single system.
    supervision: what people provided for the weights and maps of others that it rests on.
    """

    name: str
    split: str
    miou: float
    low: float | None
    high: float | None
    per_class: Float[np.ndarray, " n"]
    threshold: float | None = None
    threshold_source: str = "fixed"
    group: str = ""
    gain: Gain | None = None
    supervision: str = ""


@dataclass(frozen=True)
class Rule:
    """A way to come to a mask that the reader may try on any picture.

    group: where it stands in the menu ("closed forms", "single systems"). threshold: its own, in
    [0, 1]; None for data sets without background, where the highest score wins everywhere.
    """

    group: str
    threshold: float | None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} of a rule, wanted one in [0, 1] or None")


@dataclass(frozen=True)
class Report:
    """Everything the page shows besides the pictures.

    classes: names in mask numbering, background first. stages: in pipeline order.
    curves: name to (thresholds, mIoU), both (t,) in [0, 1]. settings: provenance as name to text.
    notes: sentences for the reader, shown under the title. scored: mask values that count in the
    mean IoU of one picture, all by default; leave 0 out for data sets without background.
    rules: what the reader may switch between, by name; the last one is shown first. systems: whose
    trust is shown, one colour each. lead: what was done and what to take, in two
    sentences that open the page.
    """

    title: str
    classes: tuple[str, ...]
    stages: Sequence[StageScore] = ()
    curves: Mapping[str, tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]] = field(
        default_factory=dict
    )
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    scored: Sequence[int] = ()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    systems: tuple[str, ...] = ()
    lead: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.scored:
            object.__setattr__(self, "scored", tuple(range(len(self.classes))))
        for stage in self.stages:
            if len(stage.per_class) != len(self.classes):
                raise ValueError(
                    f"stage {stage.name!r} has {len(stage.per_class)} class scores for "
                    f"{len(self.classes)} classes; give one each, background first, NaN if unknown"
                )


@dataclass(frozen=True)
class Picture:
    """One photograph of the gallery with all that was made from it.

    labels: names of the classes present. maps: per system or cue, scores in [0, 1] on any grid,
    (h,w,k) with one map per label in the order of ``labels``, or (h,w,1) for what belongs to no
    class (saliency, edges). masks: per stage or rule, in mask numbering with 255 =
    ignore. truth: the same, or None where it is unknown. rules: scores like those of ``maps`` that
    the page cuts at a threshold of the reader's choice; an array that stands in ``maps`` too is
    shipped once. trust: per combiner each system's share of trust (h,w,s), in the order of
    the report's systems. doubts: per name how unsure the result is, (h,w,1) in [0, 1]. name: what
    the photograph is called, the id by default. uncertainty: of all of it, in [0, 1].
    """

    id: str
    photo: UInt8[np.ndarray, "H W 3"]
    labels: tuple[str, ...]
    maps: Mapping[str, Float[np.ndarray, "_ _ _"]] = field(default_factory=dict)
    masks: Mapping[str, UInt8[np.ndarray, "_ _"]] = field(default_factory=dict)
    truth: UInt8[np.ndarray, "_ _"] | None = None
    rules: Mapping[str, Float[np.ndarray, "_ _ _"]] = field(default_factory=dict)
    trust: Mapping[str, Float[np.ndarray, "_ _ _"]] = field(default_factory=dict)
    doubts: Mapping[str, Float[np.ndarray, "_ _ 1"]] = field(default_factory=dict)
    name: str = ""
    uncertainty: float | None = None

    def __post_init__(self) -> None:
        for name, scores in (*self.maps.items(), *self.rules.items(), *self.doubts.items()):
            self._check_map(name, scores)
        for name, shares in self.trust.items():
            self._check_range(name, shares)
        for name, mask in {**self.masks, "truth": self.truth}.items():
            if mask is not None and mask.shape != self.photo.shape[:2]:
                raise ValueError(
                    f"{self.id}: mask {name!r} is {mask.shape}, the photograph "
                    f"{self.photo.shape[:2]}; bring it to the photograph's size first"
                )

    def _check_map(self, name: str, scores: np.ndarray) -> None:
        if scores.shape[-1] not in (1, len(self.labels)):
            raise ValueError(
                f"{self.id}: {name!r} has {scores.shape[-1]} maps for {len(self.labels)} labels; "
                "give one per label, or a single one that belongs to no class"
            )
        self._check_range(name, scores)

    def _check_range(self, name: str, scores: np.ndarray) -> None:
        low, high = (float(scores.min()), float(scores.max())) if scores.size else (0.0, 0.0)
        if not (-_ROUNDING <= low and high <= 1 + _ROUNDING):
            raise ValueError(
                f"{self.id}: {name!r} runs from {low:.3g} to {high:.3g}, wanted scores in [0, 1]; "
                "normalise the maps first"
            )

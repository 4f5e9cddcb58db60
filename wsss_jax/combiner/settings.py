"""The settings of the combiner. What each is worth: benchmarks/ABLATION.md."""

from dataclasses import dataclass
from typing import Literal

from wsss_jax.errors import UserError

WALKED_ON = 64
"""Long side of the grid that the length of the walk is given for."""


@dataclass(frozen=True)
class Combining:
    """How score maps of several systems become one.

    Attributes:
        cells: long side of the grid on which maps are combined (a VOC image at stride 4 has 125).
        background: whether a cell may show no class; False for data sets without background.
        walk_steps: length of the random walk over each system's map, on a grid of 64 cells; on
            others it is scaled with the area. 0: no walk.
        smoothing: temperature of the cosine between two cells' features: the higher, the more a
            cell takes from unlike cells. 0: no smoothing.
        thresholds: class has a threshold for each class, higher for one whose maps are high
            everywhere; shared has one for all.
        rounds: how often the linear probe is learned, each time from better pseudo-labels. 0: no
            probe.
        penalty: of the probe's squared weights, subtracted from the mean log-likelihood.
        units: typical divides a system whose scores stay low by what they usually reach; given
            takes them as they are.
        labelled: number of images, drawn by the seed, whose true masks train the probe too: then
            results are not from image labels alone. 0 reads no mask.
        labelled_share: weight of these images among all training images.
        boxes: least share of each box that is foreground, if the data set has boxes of objects: in
            boxes.csv, VOC's Annotations or COCO. No class lies outside of its boxes. 0 reads no
            box.
        seed: of the training cells and the labelled images.
    """

    cells: int = 64
    background: bool = True
    walk_steps: int = 32
    smoothing: float = 0.1
    thresholds: Literal["class", "shared"] = "class"
    rounds: int = 2
    penalty: float = 1e-2
    units: Literal["typical", "given"] = "typical"
    labelled: int = 0
    labelled_share: float = 0.25
    seed: int = 0
    boxes: float = 0.0

    def __post_init__(self) -> None:
        if self.cells < 4 or self.penalty <= 0:
            raise UserError(
                f"{self.cells} cells, penalty {self.penalty}; wanted at least 4 cells and a "
                "positive penalty"
            )
        if min(self.walk_steps, self.smoothing, self.rounds) < 0:
            raise UserError(
                f"{self.walk_steps} steps of the walk, smoothing {self.smoothing}, {self.rounds} "
                "rounds; wanted no negative number"
            )
        if not 0 <= self.boxes < 1:
            raise UserError(f"a share of {self.boxes} of each box; wanted 0 or more, less than 1")
        if self.labelled < 0 or not 0 < self.labelled_share < 1:
            raise UserError(
                f"{self.labelled} labelled images with a share of {self.labelled_share}; wanted 0 "
                "or more, and a share between 0 and 1"
            )

    def steps(self) -> int:
        """Steps of the walk on this grid.

        A walk spreads over a number of cells that grows with its steps, and has to fill objects,
        so steps go with the area.
        """
        if not self.walk_steps:
            return 0
        return max(1, round(self.walk_steps * (self.cells / WALKED_ON) ** 2))

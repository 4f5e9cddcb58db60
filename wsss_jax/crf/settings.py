"""What a dense CRF is told: kernel widths, published presets, unaries, and the checks at the door.

The model is that of Krähenbühl & Koltun (2011): unary energies plus a Gaussian kernel over position
and a bilateral kernel over position and colour, both with symmetric normalisation and a Potts
compatibility. Not here: inference (``crf``, ``crf_exact``, ``crf_pydensecrf``).
"""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int, Num, UInt8

FLOOR = 1e-5
"""Probabilities below this count as this, so that no label is impossible (pydensecrf's clip)."""


@dataclass(frozen=True)
class Settings:
    """Widths and strengths of the two kernels, and the number of mean-field iterations.

    gaussian_sxy, bilateral_sxy: standard deviations in pixels. bilateral_srgb: standard deviation
    in grey levels (0..255). gaussian_compat, bilateral_compat: Potts strengths, in units of
    energy (negative log probability). iterations: >= 0; 0 returns the softmax of the unaries.
    """

    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    iterations: int = 10

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; a width must be above zero")
        if self.iterations < 0:
            raise ValueError(f"iterations is {self.iterations}; wanted 0 or more")


PRESETS: MappingProxyType[str, Settings] = MappingProxyType(
    {
        # AffinityNet (Ahn & Kwak 2018); also SEAM, OC-CSE, MCTformer's PSA part, Puzzle-CAM's
        # final segmentation. Soft unaries.
        "psa": Settings(3.0, 3.0, 80.0, 13.0, 10.0, 10),
        # IRNet (Ahn, Cho & Kwak 2019); also Puzzle-CAM and P-NOC affinity labels. Hard labels
        # with gt_prob 0.7.
        "irn": Settings(3.0, 3.0, 50.0, 5.0, 10.0, 10),
        # P-NOC and Puzzle-CAM pseudo-masks: the IRNet kernels, one iteration (P-NOC: gt_prob 0.9).
        "pnoc_masks": Settings(3.0, 3.0, 50.0, 5.0, 10.0, 1),
        # DeepLab v2 (Chen et al. 2017) as in the PyTorch port; P-NOC's DeepLabV3+ test, EPS.
        "deeplab": Settings(1.0, 3.0, 67.0, 3.0, 4.0, 10),
        # AuxSegNet (Xu et al. 2021) inference; MCTformer's final segmentation.
        "auxsegnet": Settings(4.0, 3.0, 83.0, 5.0, 3.0, 10),
        # AuxSegNet saliency pseudo-labels, which also use an unary of their own.
        "auxsegnet_saliency": Settings(3.0, 3.0, 60.0, 5.0, 5.0, 1),
        # AFA (Ru et al. 2022) and ToCo (2023), final test.
        "afa": Settings(3.0, 3.0, 64.0, 5.0, 4.0, 10),
        # Ours, of no paper: "psa" with its widths in pixels divided by five, as pictures of 96
        # pixels are to photographs of 500.
        "thumbnail": Settings(0.6, 3.0, 16.0, 13.0, 10.0, 10),
    }
)


def unary_from_labels(
    labels: Int[np.ndarray, "H W"] | UInt8[np.ndarray, "H W"], k: int, gt_prob: float
) -> Float[np.ndarray, "H W k"]:
    """Energies of a hard labelling that is right with probability ``gt_prob``.

    The given label costs -log(gt_prob), every other -log((1 - gt_prob) / (k - 1)): pydensecrf's
    rule with ``zero_unsure=False``, which is how IRNet and its successors call it. With one label
    all energies are zero.

    Raises ValueError for a label outside 0..k-1 or gt_prob outside (0, 1).
    """
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob is {gt_prob}; wanted a probability strictly between 0 and 1")
    if labels.size and not 0 <= labels.min() <= labels.max() < k:
        raise ValueError(
            f"labels span {labels.min()}..{labels.max()}, wanted 0..{k - 1}; "
            f"number the present labels from 0 and leave no ignored pixel"
        )
    if k == 1:
        return np.zeros((*labels.shape, 1), np.float32)
    energy = np.full((*labels.shape, k), -np.log((1 - gt_prob) / (k - 1)), np.float32)
    np.put_along_axis(energy, labels[..., None].astype(np.int64), np.float32(-np.log(gt_prob)), -1)
    return energy


def checked(
    image: UInt8[np.ndarray, "H W 3"], scores: Num[np.ndarray, "H2 W2 k"]
) -> Float[np.ndarray, "H2 W2 k"]:
    """The probabilities as contiguous float32, once image and probabilities are known to be fit.

    Raises ValueError for unequal sizes, no pixels, no labels, NaN or negative probabilities.
    """
    if image.shape[:2] != scores.shape[:2]:
        raise ValueError(
            f"the image is {image.shape[0]}x{image.shape[1]} but the probabilities are "
            f"{scores.shape[0]}x{scores.shape[1]}; resize the probabilities to the image first"
        )
    if scores.size == 0:
        raise ValueError(f"probabilities have shape {scores.shape}; wanted a pixel and a label")
    low = scores.min()  # NaN wins a minimum, so one pass finds both faults
    if not low >= 0:
        raise ValueError(
            f"the smallest probability is {low}; wanted numbers >= 0, such as a softmax"
        )
    return np.ascontiguousarray(scores, np.float32)

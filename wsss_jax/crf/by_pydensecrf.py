"""Dense CRF inference by pydensecrf, for numbers made with the library the papers used.

pydensecrf wraps Krähenbühl & Koltun's C++; it is the optional extra ``crf`` (it needs a compiler).
Same signatures as in ``crf``.
"""

import importlib
import importlib.util

import numpy as np
from jaxtyping import Float, UInt8

from wsss_jax.crf import settings as crf_settings
from wsss_jax.crf.settings import Settings


def available() -> bool:
    """Whether pydensecrf can be imported here."""
    return importlib.util.find_spec("pydensecrf") is not None


def refine(
    image: UInt8[np.ndarray, "H W 3"],
    probability: Float[np.ndarray, "H2 W2 k"],
    settings: Settings,
) -> Float[np.ndarray, "H2 W2 k"]:
    """Marginals (H,W,k) of the dense CRF whose unaries are -log probability.

    Raises ValueError for bad arrays, ModuleNotFoundError without the ``crf`` extra.
    """
    probability = crf_settings.checked(image, probability)
    energy = -np.log(np.clip(probability, np.float32(crf_settings.FLOOR), np.float32(1)))
    return _infer(image, energy, settings)


def _infer(image: np.ndarray, energy: np.ndarray, settings: Settings) -> np.ndarray:
    densecrf = importlib.import_module("pydensecrf.densecrf")

    height, width, k = energy.shape
    model = densecrf.DenseCRF2D(width, height, k)
    model.setUnaryEnergy(np.ascontiguousarray(energy.reshape(-1, k).T))
    model.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    model.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.require(image, requirements=["C", "W"]),  # read-only arrays are refused
        compat=settings.bilateral_compat,
    )
    marginals = np.asarray(model.inference(settings.iterations), np.float32)
    return np.ascontiguousarray(marginals.T).reshape(height, width, k)

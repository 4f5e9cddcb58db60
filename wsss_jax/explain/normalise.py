"""From raw maps to maps in [0, 1]: each published convention under its own name.

All work on maps (..., h, w, c), every class of every image for itself, and send a map that is
constant or nowhere positive to zero rather than to NaN.
"""

import jax
from jaxtyping import Array, Float

Maps = Float[Array, "*b h w c"]


def by_peak(maps: Maps) -> tuple[Maps, Float[Array, "*b c"]]:
    """Divide by the maximum + 1e-5, after a ReLU (IRN, P-NOC); also returns the maxima.

    The maximum before normalising tells how sure the classifier was that the class is there.
    """
    positive = jax.nn.relu(maps)
    peaks = positive.max(axis=(-3, -2))
    return positive / (peaks[..., None, None, :] + 1e-5), peaks


def min_max(maps: Maps) -> Maps:
    """ReLU, then (M - min) / (max - min + 1e-7): the last step of the Grad-CAM family."""
    return stretch(jax.nn.relu(maps))


def stretch(maps: Maps) -> Maps:
    """(M - min) / (max - min + 1e-7) without a ReLU, as pytorch-grad-cam does after resizing."""
    lifted = maps - maps.min(axis=(-3, -2), keepdims=True)
    return lifted / (lifted.max(axis=(-3, -2), keepdims=True) + 1e-7)

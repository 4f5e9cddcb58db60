"""From raw maps to maps in [0, 1]: each published convention under its own name.

All work on maps (..., h, w, c), every class of every image for itself, and send a map that is
constant or nowhere positive to finite values, never to NaN. Resizing is ``ops.images.resize``.
``by_peak`` is for the host, since photographs have many shapes and each would be compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wsss_jax.ops import images as image_ops

Maps = Float[Array, "*b h w c"]


def by_peak(
    maps: Float[np.ndarray, "*b h w c"],
) -> tuple[Float[np.ndarray, "*b h w c"], Float[np.ndarray, "*b c"]]:
    """Divide by the maximum + 1e-5, after a ReLU (IRN, P-NOC); also returns the maxima.

    The maximum before normalising tells how sure the classifier was that the class is there.
    """
    positive = np.maximum(maps, 0)
    peak = positive.max(axis=(-3, -2), keepdims=True)
    return positive / (peak + np.float32(1e-5)), peak[..., 0, 0, :]


def min_max(maps: Maps) -> Maps:
    """ReLU, then (M - min) / (max - min + 1e-7): the last step of the Grad-CAM family."""
    return stretch(jax.nn.relu(maps))


def stretch(maps: Maps) -> Maps:
    """(M - min) / (max - min + 1e-7) without a ReLU, as pytorch-grad-cam does after resizing."""
    lifted = maps - maps.min(axis=(-3, -2), keepdims=True)
    return lifted / (lifted.max(axis=(-3, -2), keepdims=True) + 1e-7)


def fuse_layers(
    layers: list[Float[Array, "b _ _ c"]], *, gamma: float = 2.0, shallow: int = 0
) -> Float[Array, "b H W c"]:
    """Layer-CAM of several layers, shallowest first: the largest value at the finest map's size.

    The first ``shallow`` maps, weak compared with the deep ones, become tanh(gamma M / max M)
    (Jiang et al. 2021, equation 9); the other maps are divided by their maximum.
    """
    size = (layers[0].shape[1], layers[0].shape[2])
    scaled = []
    for depth, maps in enumerate(layers):
        positive = jax.nn.relu(maps)
        peak = positive.max(axis=(1, 2), keepdims=True)
        unit = positive / jnp.where(peak > 0, peak, 1)
        scaled.append(image_ops.resize(jnp.tanh(gamma * unit) if depth < shallow else unit, size))
    return jnp.stack(scaled).max(axis=0)

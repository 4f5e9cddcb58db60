"""Dense CRF: mean-field inference with permutohedral filtering, as array programs.

Krähenbühl & Koltun (2011), equal to their library (through pydensecrf) up to float32 rounding.
``refine`` is the fast path for one image on the host's arrays. Not here: presets and
unaries (``crf_settings``), the lattice (``lattice``), exact kernels (``crf_exact``).
"""

from functools import lru_cache, partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt8

from wsss_jax.ops import crf_pydensecrf, crf_settings, lattice
from wsss_jax.ops.crf_settings import PRESETS, Settings, unary_from_labels
from wsss_jax.ops.lattice import Lattice

__all__ = ["BACKENDS", "PRESETS", "Settings", "refine", "refine_labels", "unary_from_labels"]


def refine(
    image: UInt8[np.ndarray, "H W 3"],
    probability: Float[np.ndarray, "H2 W2 k"],
    settings: Settings,
) -> Float[np.ndarray, "H2 W2 k"]:
    """Marginals (H,W,k) of the dense CRF whose unaries are -log probability.

    Give only the labels that are present: cost grows with k. Probabilities are clipped to
    [1e-5, 1]; they need not sum to one.

    Raises ValueError when the sizes differ and for NaN or negative probabilities.
    """
    probability = crf_settings.checked(image, probability)
    return _infer(image, _energy_of(probability), settings)


def refine_labels(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Int[np.ndarray, "H2 W2"] | UInt8[np.ndarray, "H2 W2"],
    settings: Settings,
    *,
    k: int,
    gt_prob: float,
) -> Float[np.ndarray, "H2 W2 k"]:
    """Marginals (H,W,k) for unaries made of hard labels 0..k-1 that are right with ``gt_prob``."""
    energy = crf_settings.unary_from_labels(labels, k, gt_prob)
    return _infer(image, crf_settings.checked(image, energy), settings)


@jax.jit
def _energy_of(probability: Array) -> Array:
    return -jnp.log(jnp.clip(probability, crf_settings.FLOOR, 1))


def _infer(image: np.ndarray, energy: Array | np.ndarray, settings: Settings) -> np.ndarray:
    height, width, k = energy.shape
    spatial = _spatial_lattice(height, width, settings.gaussian_sxy)
    bilateral = lattice.build(_bilateral_points(image, settings))
    strengths = np.array([settings.gaussian_compat, settings.bilateral_compat], np.float32)
    marginals = _mean_field(
        energy.reshape(-1, k), (spatial, bilateral), strengths, settings.iterations
    )
    return np.asarray(marginals).reshape(height, width, k)


def _position_points(height: int, width: int, sxy: float, d: int) -> tuple:
    """x and y in widths of the kernel, times the lattice's scale factors, one entry per pixel."""
    factors = lattice.scale_factors(d)
    x = np.arange(width, dtype=np.float32) / np.float32(sxy) * factors[0]
    y = np.arange(height, dtype=np.float32) / np.float32(sxy) * factors[1]
    return np.tile(x, height), np.repeat(y, width)


def _bilateral_points(image: np.ndarray, settings: Settings) -> tuple:
    factors = lattice.scale_factors(5)
    levels = np.arange(256, dtype=np.float32) / np.float32(settings.bilateral_srgb)
    colours = tuple((levels * factors[2 + c])[image[..., c].ravel()] for c in range(3))
    return (*_position_points(*image.shape[:2], settings.bilateral_sxy, 5), *colours)


@lru_cache(maxsize=8)  # 4.5 MB each at 375x500; the lattice depends on the image's size only
def _spatial_lattice(height: int, width: int, sxy: float) -> Lattice:
    built = lattice.build(_position_points(height, width, sxy, 2))
    return jax.device_put(built)


@partial(jax.jit, static_argnames="iterations")
def _mean_field(energy: Array, lattices: tuple, strengths: Array, iterations: int) -> Array:
    ones = jnp.ones((energy.shape[0], 1), jnp.float32)
    normal = [_normalised(each, ones) for each in lattices]

    def filtered(q: Array) -> Array:
        return sum(s * lattice.smooth(q, each) for s, each in zip(strengths, normal, strict=True))

    def step(_, q: Array) -> Array:
        return jax.nn.softmax(filtered(q) - energy, axis=-1)

    return jax.lax.fori_loop(0, iterations, step, jax.nn.softmax(-energy, axis=-1))


def _normalised(each: Lattice, ones: Array) -> Lattice:
    """The lattice of D^-1/2 K D^-1/2: the root of the row sums is folded into the weights."""
    norm = 1 / jnp.sqrt(lattice.smooth(ones, each) + 1e-20)
    return each._replace(weights=each.weights * norm)


BACKENDS = MappingProxyType({"jax": refine, "pydensecrf": crf_pydensecrf.refine})
"""Ways to compute ``refine``, by the name that a store's index records."""

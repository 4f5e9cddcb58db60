"""Dense CRF: mean-field inference with permutohedral filtering, as array programs.

Krähenbühl & Koltun (2011), equal to their library (through pydensecrf) up to float32 rounding.
``refine`` is the fast path for one image in host arrays; ``refine_batch`` keeps everything on the
device; ``mean_field`` is the bare recursion over any kernels, differentiable. Not here: presets
and unaries (``settings``), lattices (``lattice``, ``lattice_host``, ``lattice_device``), exact
kernels (``exact``).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt8

from wsss_jax.crf import by_pydensecrf as crf_pydensecrf
from wsss_jax.crf import exact as crf_exact
from wsss_jax.crf import lattice, lattice_device, lattice_host
from wsss_jax.crf import settings as crf_settings
from wsss_jax.crf.lattice import Lattice
from wsss_jax.crf.settings import PRESETS, Settings, unary_from_labels

__all__ = [
    "BACKENDS", "PRESETS", "Settings", "exact_kernels", "lattice_kernels", "mean_field", "refine",
    "refine_batch", "refine_labels", "unary_from_labels",
]  # fmt: skip

Kernel = Callable[[Float[Array, "n k"]], Float[Array, "n k"]]
"""A symmetric linear filter over pixels, the same for every label."""

LABELS_FIRST = 5
"""Up to so many labels the softmax of XLA-CPU is faster over (k,n) than over (n,k)."""


def refine(
    image: UInt8[np.ndarray, "H W 3"],
    probability: Float[np.ndarray, "H2 W2 k"],
    settings: Settings,
) -> Float[np.ndarray, "H2 W2 k"]:
    """Marginals (H,W,k) of the dense CRF whose unaries are -log probability.

    Labels whose probability is zero everywhere are absent: they are left out of the inference and
    keep zero, so the cost grows with the labels present. The others are clipped to [1e-5, 1]; they
    need not sum to one.

    Raises ValueError when the sizes differ and for NaN or negative probabilities.
    """
    probability = crf_settings.checked(image, probability)
    present = np.flatnonzero(probability.any(axis=(0, 1)))
    if present.size in (0, probability.shape[-1]):
        return _infer(image, _host_energy(probability), settings)
    marginals = np.zeros(probability.shape, np.float32)
    marginals[..., present] = _infer(image, _host_energy(probability[..., present]), settings)
    return marginals


def refine_labels(
    image: UInt8[np.ndarray, "H W 3"],
    labels: Int[np.ndarray, "H2 W2"] | UInt8[np.ndarray, "H2 W2"],
    settings: Settings,
    *,
    k: int,
    gt_prob: float,
) -> Float[np.ndarray, "H2 W2 k"]:
    """Marginals (H,W,k) for unaries made of hard labels 0..k-1 that are right with ``gt_prob``.

    Raises ValueError when the sizes differ, for labels outside 0..k-1 and gt_prob outside (0, 1).
    """
    energy = unary_from_labels(labels, k, gt_prob)
    return _infer(image, crf_settings.checked(image, energy), settings)


def refine_batch(
    images: UInt8[Array | np.ndarray, "b H W 3"],
    probability: Float[Array | np.ndarray, "b H W k"],
    settings: Settings,
    *,
    rows: int | None = None,
) -> Float[Array, "b H W k"]:
    """``refine`` for images of one size in device arrays: lattices, too, are built on the device.

    rows bounds the vertices of the bilateral lattice (plus one); it starts at half the number of
    pixels unless given, and doubles, compiling anew, when an image needs more.
    """
    height, width = images.shape[1:3]
    most = 6 * height * width + 1
    tried = min(rows or max(height * width // 2, 64), most)
    spatial, _ = _spatial_lattice(height, width, settings.gaussian_sxy)
    while True:
        marginals, used = _batch(images, probability, spatial, settings, tried)
        if int(used) < tried:
            return marginals
        tried = min(2 * tried, most)


def mean_field(
    unary: Float[Array, "n k"],
    kernels: Sequence[Kernel],
    compatibility: Sequence[Any],
    *,
    iterations: int,
) -> Float[Array, "n k"]:
    """Marginals Q after parallel updates Q = softmax(-unary - sum of kernel messages).

    compatibility holds, per kernel, a Potts strength (scalar: agreement is rewarded) or a cost for
    each pair of labels (k,k). Pure; differentiable in unaries, compatibilities, and whatever the
    kernels are made of. Memory of the gradient grows with ``iterations``.
    """

    def update(q: Array, _: None) -> tuple[Array, None]:
        energy = unary
        for kernel, cost in zip(kernels, compatibility, strict=True):
            message = kernel(q)
            energy = energy + (message @ cost.T if jnp.ndim(cost) else -cost * message)
        return jax.nn.softmax(-energy, axis=-1), None

    start = jax.nn.softmax(-unary, axis=-1)
    return jax.lax.scan(update, start, None, length=iterations)[0]


def exact_kernels(
    image: Float[Array, "H W 3"], widths: Float[Array, "3"], *, tile: int = crf_exact.TILE
) -> tuple[Kernel, Kernel]:
    """The two kernels summed over all pairs: smooth in ``widths``, O(n^2).

    image is in grey levels (0..255), widths are gaussian_sxy, bilateral_sxy, bilateral_srgb.
    """
    spatial, bilateral = _features(image, widths)
    return (
        lambda q: crf_exact.normalised(q, jnp.stack(spatial, axis=-1), tile=tile),
        lambda q: crf_exact.normalised(q, jnp.stack(bilateral, axis=-1), tile=tile),
    )


def lattice_kernels(
    image: Float[Array, "H W 3"], widths: Float[Array, "3"], *, rows: tuple[int, int]
) -> tuple[tuple[Kernel, Kernel], Int[Array, "2"]]:
    """The two kernels on lattices of at most ``rows`` vertices, and how many they really have.

    Arguments as for ``exact_kernels``. Widths receive gradients through the barycentric weights:
    those of the piecewise linear approximation, right within a simplex. Results are wrong where a
    count is not below its bound.
    """
    points = _features(image, widths)
    spatial, first = _device_lattice(points[0], rows[0])
    bilateral, second = _device_lattice(points[1], rows[1])
    kernels = (partial(lattice.smooth, lattice=spatial), partial(lattice.smooth, lattice=bilateral))
    return kernels, jnp.stack([first, second])


def _host_energy(probability: Float[np.ndarray, "H W k"]) -> Float[np.ndarray, "H W k"]:
    """``_energy`` for host arrays: nothing to compile for each size of image."""
    energy = np.clip(probability, np.float32(crf_settings.FLOOR), 1)
    return np.negative(np.log(energy, out=energy), out=energy)


@jax.jit
def _energy(probability: Float[Array, "*b H W k"]) -> Float[Array, "*b H W k"]:
    return -jnp.log(jnp.clip(probability, crf_settings.FLOOR, 1))


def _features(image: Array, widths: Array) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Coordinates of every pixel for the two kernels, in standard deviations."""
    y, x = (axis.ravel().astype(jnp.float32) for axis in jnp.indices(image.shape[:2]))
    colours = tuple(image[..., c].ravel() / widths[2] for c in range(3))
    return (x / widths[0], y / widths[0]), (x / widths[1], y / widths[1], *colours)


@partial(jax.jit, static_argnames=("settings", "rows"))
def _batch(
    images: Array, probability: Array, spatial: Lattice, settings: Settings, rows: int
) -> tuple[Array, Array]:
    """Marginals (b,H,W,k), and the largest number of bilateral vertices of any image."""
    height, width, k = probability.shape[1:]
    strengths = (np.float32(settings.gaussian_compat), np.float32(settings.bilateral_compat))
    widths = jnp.array(
        [settings.gaussian_sxy, settings.bilateral_sxy, settings.bilateral_srgb], jnp.float32
    )
    inside = lattice.first_points(spatial, height * width)

    def one(image: Array, energy: Array) -> tuple[Array, Array]:
        points = _features(image.astype(jnp.float32), widths)[1]
        bilateral, used = _device_lattice(points, rows)
        kernels = [partial(lattice.smooth, lattice=each) for each in (inside, bilateral)]
        unary = energy.reshape(-1, k)
        q = mean_field(unary, kernels, strengths, iterations=settings.iterations)
        return q.reshape(height, width, k), used

    marginals, used = jax.vmap(one)(images, _energy(probability))
    return marginals, used.max()


def _device_lattice(points: tuple[Array, ...], rows: int) -> tuple[Lattice, Array]:
    factors = lattice.scale_factors(len(points))
    scaled = tuple(x * f for x, f in zip(points, factors, strict=True))
    built, used = lattice_device.build(scaled, rows=rows)
    return lattice.normalised(built), used


def _infer(image: np.ndarray, energy: np.ndarray, settings: Settings) -> np.ndarray:
    height, width, k = energy.shape
    spatial, reach = _spatial_lattice(height, width, settings.gaussian_sxy)
    bilateral, far = _prepared(lattice_host.build(_bilateral_points(image, settings)))
    strengths = np.array([settings.gaussian_compat, settings.bilateral_compat], np.float32)
    (unary,) = lattice_host.padded_to(spatial.vertices.shape[1], (energy.reshape(-1, k),))
    marginals = _potts(unary, (spatial, bilateral), (reach, far), strengths, settings.iterations)
    return np.asarray(marginals)[: height * width].reshape(height, width, k)


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
    height, width = image.shape[:2]
    return (*_position_points(height, width, settings.bilateral_sxy, 5), *colours)


@lru_cache(maxsize=8)  # 5 MB each at 375x500; the lattice depends on the image's size only
def _spatial_lattice(height: int, width: int, sxy: float) -> tuple[Lattice, Array]:
    return _prepared(lattice_host.build(_position_points(height, width, sxy, 2)))


@jax.jit
def _prepared(built: Lattice) -> tuple[Lattice, Float[Array, "n 1"]]:
    """The normalised lattice, and what it makes of a constant."""
    ready = lattice.normalised(built)
    return ready, lattice.smooth(jnp.ones((built.vertices.shape[1], 1)), ready)


@partial(jax.jit, static_argnames="iterations")
def _potts(
    unary: Array,
    kernels: tuple[Lattice, Lattice],
    reach: tuple[Array, Array],
    strengths: Array,
    iterations: int,
) -> Float[Array, "n k"]:
    """``mean_field`` with Potts strengths, filtering as few labels as the answer needs.

    reach: what each kernel makes of a constant. Filtering is linear and the labels sum to one, so
    one label's message is that of a constant less the others'. Messages go in fours, which XLA-CPU
    scatters as vectors: of 4j + 1 labels the last is implied, other numbers are filled up with
    zeros.
    """
    k = unary.shape[1]
    filtered = _width(k)
    axis = 0 if k <= LABELS_FIRST else 1
    turned = unary.T if axis == 0 else unary
    constant = strengths[0] * reach[0] + strengths[1] * reach[1]

    def update(_, q: Array) -> Array:
        q = q.T if axis == 0 else q
        q = q[:, :filtered] if filtered < k else jnp.pad(q, ((0, 0), (0, filtered - k)))
        each = zip(strengths, kernels, strict=True)
        first, second = (s * lattice.smooth(q, one) for s, one in each)
        got = (first + second).T if axis == 0 else first + second
        if filtered < k:
            last = constant if axis else constant.T
            got = jnp.concatenate([got, last - got.sum(axis, keepdims=True)], axis)
        else:
            got = jax.lax.slice_in_dim(got, 0, k, axis=axis)
        return jax.nn.softmax(got - turned, axis=axis)

    q = jax.lax.fori_loop(0, iterations, update, jax.nn.softmax(-turned, axis=axis))
    return q.T if axis == 0 else q


def _width(k: int) -> int:
    """How many labels are filtered: k - 1 where that saves anything, then filled up to fours."""
    return max(k - 1, 1) if k <= 3 else -(-(k - 1) // 4) * 4


BACKENDS = MappingProxyType({"jax": refine, "pydensecrf": crf_pydensecrf.refine})
"""Ways to compute ``refine``, by the name that a store's index records."""

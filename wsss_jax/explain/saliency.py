"""Maps from the gradient of a class score at the image: one value per pixel, whatever the layers.

Vanilla gradients (Simonyan et al. 2014), SmoothGrad (Smilkov et al. 2017) and Integrated Gradients
(Sundararajan et al. 2017). Scores are logits. Samples and steps are walked through one at a time,
so memory does not grow with their number. Noise is the same on every image and for every class.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from wsss_jax.explain.contract import Images, Labels, Maps, check_labels, logits_of, over_labels
from wsss_jax.types import Scorer

Gradient = Float[Array, "b H W 3"]
Reduce = Callable[[Array], Array]
"""Gradients (b,H,W,3) to maps (b,H,W)."""


def largest(gradient: Gradient) -> Float[Array, "b H W"]:
    """The largest absolute gradient of the three colours (Simonyan et al. 2014, section 3.1)."""
    return jnp.abs(gradient).max(axis=-1)


def total(gradient: Gradient) -> Float[Array, "b H W"]:
    """The signed sum over the three colours."""
    return gradient.sum(axis=-1)


def vanilla_gradient(
    scorer: Scorer, images: Images, labels: Labels, *, reduce: Reduce = largest
) -> Maps:
    """The gradient of the class score at the pixels."""
    logits, pull_back = jax.vjp(_logits(scorer), images)
    check_labels(labels, *logits.shape)
    return over_labels(labels, lambda chosen: reduce(pull_back(chosen)[0]))


def smooth_grad(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, ""],
    draws: int = 25,
    noise: float = 0.15,
    reduce: Reduce = largest,
) -> Maps:
    """The mean gradient over noisy copies of the image, reduced over colours after the mean.

    ``noise`` is the standard deviation as a fraction of the range [0, 1] of images; the paper takes
    10 to 20 % of each image's own range, and 50 draws.
    """
    _check(scorer, images, labels)

    def explain(chosen: Float[Array, "b c"]) -> Float[Array, "b H W"]:
        def add(mean: Array, key_draw: Array) -> tuple[Array, None]:
            seen = images + noise * jax.random.normal(key_draw, (1, *images.shape[1:]))
            return mean + _gradient(scorer, seen, chosen) / draws, None

        mean, _ = jax.lax.scan(add, jnp.zeros_like(images), jax.random.split(key, draws))
        return reduce(mean)

    return over_labels(labels, explain)


def integrated_gradients(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    baseline: float = 0.0,
    nodes: tuple[tuple[float, float], ...] | None = None,
    reduce: Reduce = total,
) -> Maps:
    """The integral of the gradient from a plain image x0 of value ``baseline``, times x - x0.

    ``nodes`` are (position, weight) pairs in [0, 1], by default 16 of Gauss and Legendre; with
    ``reduce=total`` the map of class c sums to S_c(x) - S_c(x0), up to the quadrature.
    """
    _check(scorer, images, labels)
    rule = jnp.array(gauss_legendre(16) if nodes is None else nodes, jnp.float32)

    def explain(chosen: Float[Array, "b c"]) -> Float[Array, "b H W"]:
        def add(integral: Array, node: Array) -> tuple[Array, None]:
            seen = baseline + node[0] * (images - baseline)
            return integral + node[1] * _gradient(scorer, seen, chosen), None

        integral, _ = jax.lax.scan(add, jnp.zeros_like(images), rule)
        return reduce((images - baseline) * integral)

    return over_labels(labels, explain)


def gauss_legendre(steps: int) -> tuple[tuple[float, float], ...]:
    """Positions and weights on [0, 1] that integrate polynomials up to degree 2 steps - 1."""
    positions, weights = np.polynomial.legendre.leggauss(steps)
    return tuple(zip((positions + 1) / 2, weights / 2, strict=True))


def _gradient(scorer: Scorer, images: Array, chosen: Array) -> Array:
    _, pull_back = jax.vjp(_logits(scorer), images)
    return pull_back(chosen)[0]


def _logits(scorer: Scorer) -> Callable[[Array], Array]:
    return lambda images: logits_of(scorer, images)


def _check(scorer: Scorer, images: Array, labels: Array) -> None:
    check_labels(labels, *jax.eval_shape(_logits(scorer), images).shape)

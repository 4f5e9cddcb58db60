"""Maps from the gradient g of a class score at the feature map A.

Every method of the Grad-CAM family is one small function: how A (b,h,w,k) and g (b,h,w,k) of one
class per image become a map (b,h,w). The features are computed once and never differentiated
through; the head is linearised once and pulled back once per label class. Scores are logits.
Gradients at the image itself are in ``saliency``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from wsss_jax.explain import equations, normalise
from wsss_jax.explain.class_maps import contrast, d_min_max_weights
from wsss_jax.explain.contract import Images, Labels, Maps, check_labels, over_labels
from wsss_jax.types import Scorer

Weigh = Callable[[Array, Array], Array]
"""Features (b,h,w,k) and the gradient of one class there, to that class's map (b,h,w)."""

Features = Float[Array, "b h w k"]
Map = Float[Array, "b h w"]
Weights = Float[Array, "b k"]


def grad_cam(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Grad-CAM (Selvaraju et al. 2017) without its final ReLU."""
    return explain_with(grad_cam_map, scorer, images, labels)


def grad_cam_pp(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Grad-CAM++ (Chattopadhay et al. 2018) without its final ReLU."""
    return explain_with(grad_cam_pp_map, scorer, images, labels)


def sharpen_focus(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Grad-CAM with positive gradients only (ICASC: Wang et al. 2019)."""
    return explain_with(sharpen_focus_map, scorer, images, labels)


def layer_cam(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Layer-CAM (Jiang et al. 2021) of one layer; ``fused_layer_cam`` joins several."""
    return explain_with(layer_cam_map, scorer, images, labels)


def fused_layer_cam(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    layers: tuple[str, ...] | None = None,
    shallow: int | None = None,
    gamma: float = 2.0,
) -> Maps:
    """Layer-CAM of several layers, the shallowest first: the largest value at the finest size.

    ``layers`` are names inside the features (``equations.layer_names``), by default the end of each
    stage (``equations.stage_ends``); features without a named place count alone. The maps of the
    first ``shallow`` of them, by default of all but the last two, are raised by
    tanh(gamma M / max M) (Jiang et al. 2021, equation 9, for the first three of five stages).
    Unlike other raw maps these are scaled to a maximum of 1. ValueError for an unknown name.
    """
    if layers is not None and not layers:
        known = ", ".join(equations.layer_names(scorer, images)) or "none"
        raise ValueError(f"no layers to fuse; this network has: {known}")
    names = equations.stage_ends(scorer, images) if layers is None else layers
    parts = [equations.at_layer(scorer, images, name) for name in names] or [scorer]
    maps = [layer_cam(part, images, labels) for part in parts]
    raised = max(len(maps) - 2, 0) if shallow is None else shallow
    return normalise.fuse_layers(maps, gamma=gamma, shallow=raised)


def xgrad_cam(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """XGrad-CAM (Fu et al. 2020)."""
    return explain_with(xgrad_cam_map, scorer, images, labels)


def hires_cam(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """HiRes-CAM (Draelos & Carin 2020)."""
    return explain_with(hires_cam_map, scorer, images, labels)


def explain_with(weigh: Weigh, scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Maps of the label classes by one of this module's weighings, or one of your own."""
    activations, pull_back = linearised(scorer, scorer.features(images), labels)
    return over_labels(labels, lambda chosen: weigh(activations, pull_back(chosen)))


def min_max_grad_cam(
    scorer: Scorer, images: Images, labels: Labels, *, among: Labels | None = None
) -> Maps:
    """MinMax-Grad-CAM: the gradient of S_c minus the mean score of the other classes.

    Gradients are summed over the grid, so that a linear head gives MinMax-CAM exactly. ``among``
    are the classes of each image (None: the labels). Source: David et al. 2022.
    """
    activations, pull_back = linearised(scorer, scorer.features(images), labels)
    rivals = labels if among is None else among

    def explain(chosen: Float[Array, "b c"]) -> Map:
        one, others, _, other_count, _ = contrast(chosen, rivals)
        gradient = pull_back(one - others / other_count[:, None])
        return weighted(activations, gradient.sum(axis=(1, 2)))

    return over_labels(labels, explain)


def d_min_max_grad_cam(
    scorer: Scorer, images: Images, labels: Labels, *, among: Labels | None = None
) -> Maps:
    """D-MinMax-Grad-CAM: the weights of D-MinMax-CAM, from summed gradients."""
    activations, pull_back = linearised(scorer, scorer.features(images), labels)
    rivals = labels if among is None else among

    def explain(chosen: Float[Array, "b c"]) -> Map:
        *rows, other_count, every_count = contrast(chosen, rivals)
        own, others, every = (pull_back(row).sum(axis=(1, 2)) for row in rows)
        weights = d_min_max_weights(own, others, every, other_count, every_count)
        return weighted(activations, weights)

    return over_labels(labels, explain)


def smooth_grad_cam_pp(
    scorer: Scorer,
    images: Images,
    labels: Labels,
    *,
    key: Key[Array, ""],
    draws: int = 4,
    noise: float = 0.3,
) -> Maps:
    """Smooth Grad-CAM++ (Omeiza et al. 2019): Grad-CAM++ of averaged derivatives.

    relu(g), g^2 and g^3 are averaged over noisy copies of the image (standard deviation ``noise``,
    images being in [0, 1]) and combined with the activations of the clean one. The same noise is
    laid on every image and class. One copy is alive at a time; the forward pass is repeated per
    label.
    """
    activations = scorer.features(images)
    check_labels(labels, images.shape[0], jax.eval_shape(scorer.head, activations).shape[-1])
    sums = activations.astype(jnp.float32).sum(axis=(1, 2), keepdims=True)

    def explain(chosen: Float[Array, "b c"]) -> Map:
        def add(total: tuple[Array, ...], key_draw: Array) -> tuple[tuple[Array, ...], None]:
            seen = images + noise * jax.random.normal(key_draw, (1, *images.shape[1:]))
            _, pull_back = linearised(scorer, scorer.features(seen), labels)
            g = pull_back(chosen)
            moments = (jax.nn.relu(g), g**2, g**3)
            return tuple(a + b / draws for a, b in zip(total, moments, strict=True)), None

        start = (jnp.zeros(activations.shape, jnp.float32),) * 3
        (positive, square, cube), _ = jax.lax.scan(add, start, jax.random.split(key, draws))
        weights = (_ratio(square, 2 * square + sums * cube) * positive).sum(axis=(1, 2))
        return weighted(activations.astype(jnp.float32), weights)

    return over_labels(labels, explain)


def grad_cam_map(activations: Features, gradient: Features) -> Map:
    """Channels weighted by the mean of their gradient (equations 1 and 2)."""
    return weighted(activations, gradient.mean(axis=(1, 2)))


def grad_cam_pp_map(activations: Features, gradient: Features, *, epsilon: float = 0.0) -> Map:
    """Channels weighted by the sum of alpha relu(g), alpha = g^2 / (2 g^2 + sum(A) g^3).

    ``epsilon`` is added to the denominator; pytorch-grad-cam has 1e-6, which decides the result
    where gradients are below 1e-3. We have none: where g > 0 the fraction is 1 / (2 + sum(A) g).
    """
    return weighted(activations, grad_cam_pp_weights(activations, gradient, epsilon=epsilon))


def grad_cam_pp_weights(
    activations: Features, gradient: Features, *, epsilon: float = 0.0
) -> Weights:
    """The channel weights of Grad-CAM++ (equations 5, 19), of the score exp(S) without exp(S)."""
    positive = gradient > 0
    g = jnp.where(positive, gradient, 1)
    denominator = (
        2 + activations.sum(axis=(1, 2), keepdims=True) * g + epsilon / jnp.maximum(g**2, 1e-30)
    )
    return jnp.where(positive, _ratio(g, denominator), 0).sum(axis=(1, 2))


def sharpen_focus_map(activations: Features, gradient: Features) -> Map:
    """Channels weighted by the mean of their positive gradient."""
    return weighted(activations, jax.nn.relu(gradient).mean(axis=(1, 2)))


def layer_cam_map(activations: Features, gradient: Features) -> Map:
    """Every element weighted by its own positive gradient."""
    return (jax.nn.relu(gradient) * activations).sum(axis=-1)


def xgrad_cam_map(activations: Features, gradient: Features) -> Map:
    """Channels weighted by their gradient's mean, weighted by the activation itself."""
    total = activations.sum(axis=(1, 2))
    return weighted(activations, _ratio((gradient * activations).sum(axis=(1, 2)), total))


def hires_cam_map(activations: Features, gradient: Features) -> Map:
    """Every element weighted by its own gradient."""
    return (gradient * activations).sum(axis=-1)


def weighted(activations: Features, weights: Weights) -> Map:
    """Sum over channels of weight times activation, in full float32."""
    return jnp.einsum("bhwk,bk->bhw", activations, weights, precision="highest")


def linearised(
    scorer: Scorer, features: Features, labels: Labels
) -> tuple[Features, Callable[[Array], Array]]:
    """Features in float32, and the gradient at them of a weighting (b,c) of the class scores.

    Cubes of gradients leave the range of float16, so all that follows is float32.
    """
    logits, pull_back = jax.vjp(scorer.head, features)
    check_labels(labels, *logits.shape)

    def gradient(chosen: Array) -> Array:
        return pull_back(chosen.astype(logits.dtype))[0].astype(jnp.float32)

    return features.astype(jnp.float32), gradient


def _ratio(above: Array, below: Array) -> Array:
    """A quotient that is zero where its denominator is."""
    return jnp.where(below == 0, 0, above / jnp.where(below == 0, 1, below))

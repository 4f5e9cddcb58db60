"""Maps from the gradient g of a class score at the feature map A.

Every method here is one line: how A (b,h,w,k) and g (b,h,w,k) of one class per image become a map
(b,h,w). The features are computed once and never differentiated through; the head is linearised
once and pulled back once per label class. Scores are logits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.explain.contract import Images, Labels, Maps, check_labels, over_labels
from wsss_jax.types import Scorer

Weigh = Callable[[Array, Array], Array]
"""Features (b,h,w,k) and the gradient of one class there, to that class's map (b,h,w)."""

Features = Float[Array, "b h w k"]


def grad_cam(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Grad-CAM (Selvaraju et al. 2017) without its final ReLU."""
    return explain_with(grad_cam_map, scorer, images, labels)


def explain_with(weigh: Weigh, scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Maps of the label classes by one of this module's weighings, or one of your own."""
    features = scorer.features(images)
    logits, pull_back = jax.vjp(scorer.head, features)
    check_labels(labels, *logits.shape)
    activations = features.astype(jnp.float32)

    def explain(chosen: Array) -> Array:
        (gradient,) = pull_back(chosen.astype(logits.dtype))
        return weigh(activations, gradient.astype(jnp.float32))

    return over_labels(labels, explain)


def grad_cam_map(activations: Features, gradient: Features) -> Float[Array, "b h w"]:
    """Channels weighted by the mean of their gradient (equations 1 and 2)."""
    return weighted(activations, gradient.mean(axis=(1, 2)))


def weighted(activations: Features, weights: Float[Array, "b k"]) -> Float[Array, "b h w"]:
    """Sum over channels of weight times activation, in full float32."""
    return jnp.einsum("bhwk,bk->bhw", activations, weights, precision="highest")

"""Explanations: from a classifier and image labels to raw class maps.

``EXPLAINERS`` holds every method under its name; each is a function of a scorer, images and
labels, usable alone on any pair of functions ``features`` and ``head`` (``types.Scorer``). Methods
that draw random numbers stand in the table with a fixed seed; call the function itself, such as
``perturb.rise``, to give a key. ``ATTENTION_EXPLAINERS`` holds those that read a transformer's
attention (``types.Attentive``). ``equations`` takes features at any named layer and checks what a
score consists of; ``experimental`` holds methods without a verified reference.

A network of any origin needs no more than this::

    import jax
    import jax.numpy as jnp
    from wsss_jax import explain

    kernel = jax.random.normal(jax.random.key(0), (3, 8))
    weights = jax.random.normal(jax.random.key(1), (8, 2))
    scorer = explain.Scorer(
        features=lambda images: jax.nn.relu(images[:, ::4, ::4] @ kernel),  # (b,H,W,3) to (b,h,w,k)
        head=lambda features: features.mean(axis=(1, 2)) @ weights,  # (b,h,w,k) to logits (b,c)
    )
    images = jnp.ones((2, 16, 24, 3)) * 0.5
    maps = explain.checked(explain.gradient.grad_cam)(scorer, images, [[0], [0, 1]])
    shown = explain.normalise.min_max(maps)  # (2,4,6,2) in [0, 1]
"""

from collections.abc import Callable
from types import MappingProxyType

from jaxtyping import Array

from wsss_jax.explain import (
    augmented,
    cam,
    equations,
    experimental,
    faithfulness,
    full_grad,
    gradient,
    multiscale,
    normalise,
    perturb,
    relevance,
    rollout,
    saliency,
    score_cam,
)
from wsss_jax.explain.contract import Explainer, checked, labels_of, logits_of, seeded
from wsss_jax.types import Attentive, Scorer

EXPLAINERS: MappingProxyType[str, Explainer] = MappingProxyType(
    {
        "cam": cam.cam,
        "min_max_cam": cam.min_max_cam,
        "d_min_max_cam": cam.d_min_max_cam,
        "grad_cam": gradient.grad_cam,
        "grad_cam_pp": gradient.grad_cam_pp,
        "sharpen_focus": gradient.sharpen_focus,
        "layer_cam": gradient.layer_cam,
        "fused_layer_cam": gradient.fused_layer_cam,
        "xgrad_cam": gradient.xgrad_cam,
        "hires_cam": gradient.hires_cam,
        "min_max_grad_cam": gradient.min_max_grad_cam,
        "d_min_max_grad_cam": gradient.d_min_max_grad_cam,
        "smooth_grad_cam_pp": seeded(gradient.smooth_grad_cam_pp),
        "augmented_grad_cam": seeded(augmented.augmented_grad_cam),
        "vanilla_gradient": saliency.vanilla_gradient,
        "smooth_grad": seeded(saliency.smooth_grad),
        "integrated_gradients": saliency.integrated_gradients,
        "full_grad": full_grad.full_grad,
        "score_cam": score_cam.score_cam,
        "ss_cam": seeded(score_cam.ss_cam),
        "ablation_cam": perturb.ablation_cam,
        "rise": seeded(perturb.rise),
    }
)

ATTENTION_EXPLAINERS: MappingProxyType[str, Callable[[Attentive, Array, Array], Array]] = (
    MappingProxyType(
        {
            "raw_attention": rollout.raw_attention,
            "rollout": rollout.rollout,
            "attention_grad_cam": rollout.attention_grad_cam,
            "attribution": relevance.attribution,
            "gradient_attention": relevance.gradient_attention,
            "lrp_rollout": relevance.lrp_rollout,
            "partial_lrp": relevance.partial_lrp,
            "token_lrp": relevance.token_lrp,
            "full_lrp": relevance.full_lrp,
        }
    )
)
"""Methods for transformers: (attentive, images (b,H,W,3), labels (b,c)) to raw maps (b,h,w,c).

They take a ``types.Attentive`` where the others take a scorer; ``full_lrp`` gives maps of pixels.
"""

__all__ = [
    "ATTENTION_EXPLAINERS",
    "EXPLAINERS",
    "Attentive",
    "Explainer",
    "Scorer",
    "augmented",
    "cam",
    "checked",
    "equations",
    "experimental",
    "faithfulness",
    "full_grad",
    "gradient",
    "labels_of",
    "logits_of",
    "multiscale",
    "normalise",
    "perturb",
    "relevance",
    "rollout",
    "saliency",
    "score_cam",
    "seeded",
]

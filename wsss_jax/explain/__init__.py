"""Explanations: from a classifier and image labels to raw class maps.

``EXPLAINERS`` holds every method under its name; each is a function of a scorer, images and
labels, usable alone on any pair of functions ``features`` and ``head`` (``types.Scorer``). Methods
that draw random numbers stand in the table with a fixed seed; call the function itself, such as
``perturb.rise``, to give a key. ``ATTENTION_EXPLAINERS`` holds those that read a transformer's
attention (``types.Attentive``). ``equations`` takes features at any named layer and splits a
score into its parts; ``experimental`` holds methods without a verified reference.

By hand, every method is one call on a model and photographs (``by_hand``):

>>> import numpy as np
>>> import jax, jax.numpy as jnp
>>> from wsss_jax import explain
>>> kernel = jax.random.normal(jax.random.key(0), (3, 8))
>>> weights = jax.random.normal(jax.random.key(1), (8, 2))
>>> def features(images):  # (b,H,W,3) to (b,h,w,k)
...     return jax.nn.relu(images[:, ::4, ::4] @ kernel)
>>> def head(features):  # (b,h,w,k) to class scores (b,c)
...     return features.mean(axis=(1, 2)) @ weights
>>> photograph = np.full((16, 24, 3), 128, np.uint8)
>>> explain.grad_cam((features, head), photograph, classes=[1]).shape
(4, 6, 1)

In loops and under ``jax.jit`` the same methods are functions of a scorer, images and labels:

>>> scorer = explain.Scorer(features, head)
>>> images = jnp.ones((2, 16, 24, 3)) * 0.5
>>> maps = explain.checked(explain.gradient.grad_cam)(scorer, images, [[0], [0, 1]])
>>> explain.normalise.min_max(maps).shape
(2, 4, 6, 2)
"""

from collections.abc import Callable
from types import MappingProxyType

from jaxtyping import Array

from wsss_jax.explain import (
    attention,
    augmented,
    class_maps,
    equations,
    experimental,
    faithfulness,
    full_gradient,
    gradient,
    guided,
    learned,
    lrp,
    multiscale,
    normalise,
    perturb,
    relevance,
    saliency,
    score_weighted,
)
from wsss_jax.explain.by_hand import (
    ablation_cam,
    attention_grad_cam,
    attribution,
    augmented_grad_cam,
    cam,
    d_min_max_cam,
    d_min_max_grad_cam,
    full_grad,
    full_lrp,
    fused_layer_cam,
    getam,
    grad_cam,
    grad_cam_pp,
    gradient_attention,
    guided_gradient,
    hires_cam,
    integrated_gradients,
    layer_cam,
    legrad,
    lrp_alpha_beta,
    lrp_epsilon,
    lrp_rollout,
    lrp_z_plus,
    min_max_cam,
    min_max_grad_cam,
    partial_lrp,
    raw_attention,
    rise,
    rollout,
    score_cam,
    sharpen_focus,
    smooth_grad,
    smooth_grad_cam_pp,
    ss_cam,
    token_lrp,
    vanilla_gradient,
    xgrad_cam,
)
from wsss_jax.explain.contract import Explainer, checked, logits_of, seeded
from wsss_jax.explain.targets import labels_of
from wsss_jax.types import Attentive, Scorer

EXPLAINERS: MappingProxyType[str, Explainer] = MappingProxyType(
    {
        "cam": class_maps.cam,
        "min_max_cam": class_maps.min_max_cam,
        "d_min_max_cam": class_maps.d_min_max_cam,
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
        "guided_gradient": guided.guided_gradient,
        "smooth_grad": seeded(saliency.smooth_grad),
        "integrated_gradients": saliency.integrated_gradients,
        "lrp_z_plus": lrp.lrp_z_plus,
        "lrp_alpha_beta": lrp.lrp_alpha_beta,
        "lrp_epsilon": lrp.lrp_epsilon,
        "full_grad": full_gradient.full_grad,
        "score_cam": score_weighted.score_cam,
        "ss_cam": seeded(score_weighted.ss_cam),
        "ablation_cam": perturb.ablation_cam,
        "rise": seeded(perturb.rise),
    }
)

ATTENTION_EXPLAINERS: MappingProxyType[str, Callable[[Attentive, Array, Array], Array]] = (
    MappingProxyType(
        {
            "raw_attention": attention.raw_attention,
            "rollout": attention.rollout,
            "attention_grad_cam": attention.attention_grad_cam,
            "getam": attention.getam,
            "legrad": attention.legrad,
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
    "ablation_cam",
    "attention_grad_cam",
    "attribution",
    "augmented",
    "augmented_grad_cam",
    "cam",
    "checked",
    "d_min_max_cam",
    "d_min_max_grad_cam",
    "equations",
    "experimental",
    "faithfulness",
    "full_grad",
    "full_lrp",
    "fused_layer_cam",
    "getam",
    "grad_cam",
    "grad_cam_pp",
    "gradient",
    "gradient_attention",
    "guided",
    "guided_gradient",
    "hires_cam",
    "integrated_gradients",
    "labels_of",
    "layer_cam",
    "learned",
    "legrad",
    "logits_of",
    "lrp",
    "lrp_alpha_beta",
    "lrp_epsilon",
    "lrp_rollout",
    "lrp_z_plus",
    "min_max_cam",
    "min_max_grad_cam",
    "multiscale",
    "normalise",
    "partial_lrp",
    "perturb",
    "raw_attention",
    "relevance",
    "rise",
    "rollout",
    "saliency",
    "score_cam",
    "seeded",
    "sharpen_focus",
    "smooth_grad",
    "smooth_grad_cam_pp",
    "ss_cam",
    "token_lrp",
    "vanilla_gradient",
    "xgrad_cam",
]

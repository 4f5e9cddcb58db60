"""Explanations: from a classifier and image labels to raw class maps.

``EXPLAINERS`` holds every method under its name; each is a function of a scorer, images and
labels, usable alone on any pair of functions ``features`` and ``head`` (``types.Scorer``). Methods
that draw random numbers stand in the table with a fixed seed; call the function itself to give a
key.
"""

from types import MappingProxyType

from wsss_jax.explain.cam import cam, d_min_max_cam, min_max_cam
from wsss_jax.explain.contract import Explainer, over_labels, seeded
from wsss_jax.explain.gradient import (
    d_min_max_grad_cam,
    explain_with,
    grad_cam,
    grad_cam_pp,
    hires_cam,
    layer_cam,
    min_max_grad_cam,
    sharpen_focus,
    smooth_grad_cam_pp,
    xgrad_cam,
)
from wsss_jax.explain.perturb import ablation_cam, rise
from wsss_jax.explain.saliency import integrated_gradients, smooth_grad, vanilla_gradient
from wsss_jax.explain.score_cam import SCORE_CAMS, ScoreCam, score_cam, ss_cam

EXPLAINERS: MappingProxyType[str, Explainer] = MappingProxyType(
    {
        "cam": cam,
        "min_max_cam": min_max_cam,
        "d_min_max_cam": d_min_max_cam,
        "grad_cam": grad_cam,
        "grad_cam_pp": grad_cam_pp,
        "sharpen_focus": sharpen_focus,
        "layer_cam": layer_cam,
        "xgrad_cam": xgrad_cam,
        "hires_cam": hires_cam,
        "min_max_grad_cam": min_max_grad_cam,
        "d_min_max_grad_cam": d_min_max_grad_cam,
        "smooth_grad_cam_pp": seeded(smooth_grad_cam_pp),
        "vanilla_gradient": vanilla_gradient,
        "smooth_grad": seeded(smooth_grad),
        "integrated_gradients": integrated_gradients,
        "score_cam": score_cam,
        "ss_cam": seeded(ss_cam),
        "ablation_cam": ablation_cam,
        "rise": seeded(rise),
    }
)

__all__ = [
    "EXPLAINERS",
    "SCORE_CAMS",
    "Explainer",
    "ScoreCam",
    "ablation_cam",
    "cam",
    "d_min_max_cam",
    "d_min_max_grad_cam",
    "explain_with",
    "grad_cam",
    "grad_cam_pp",
    "hires_cam",
    "integrated_gradients",
    "layer_cam",
    "min_max_cam",
    "min_max_grad_cam",
    "over_labels",
    "rise",
    "score_cam",
    "seeded",
    "sharpen_focus",
    "smooth_grad",
    "smooth_grad_cam_pp",
    "ss_cam",
    "vanilla_gradient",
    "xgrad_cam",
]

"""Explanations: from a classifier and image labels to raw class maps.

``EXPLAINERS`` holds every method under its name; each is a function of a scorer, images and
labels, usable alone on any pair of functions ``features`` and ``head`` (``types.Scorer``).
"""

from types import MappingProxyType

from wsss_jax.explain.cam import cam
from wsss_jax.explain.contract import Explainer
from wsss_jax.explain.gradient import grad_cam

EXPLAINERS: MappingProxyType[str, Explainer] = MappingProxyType(
    {
        "cam": cam,
        "grad_cam": grad_cam,
    }
)

__all__ = ["EXPLAINERS", "Explainer", "cam", "grad_cam"]

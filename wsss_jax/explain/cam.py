"""Maps read off a linear head: class activation maps, without any gradient.

Zhou et al. 2016: the map of class c is the sum over channels k of W_ck A_k, where W is the linear
layer after global average pooling. The scorer supplies it as ``class_maps``; with a head that is
not pooling + linear use ``gradient.grad_cam``. Nothing is rectified, and the bias is dropped.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.explain.contract import Images, Labels, Maps, check_labels
from wsss_jax.types import Scorer


def cam(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Class activation maps of the label classes (Zhou et al. 2016, equation 2).

    Raises ValueError when the head is not average pooling and linear.
    """
    maps = all_class_maps(scorer, images)
    check_labels(labels, images.shape[0], maps.shape[-1])
    return jnp.where(labels[:, None, None, :], maps, 0)


def all_class_maps(scorer: Scorer, images: Images) -> Float[Array, "b h w c"]:
    """Class activation maps of every class; one forward pass and one matrix product."""
    if scorer.class_maps is None:
        raise ValueError(
            "this scorer has no class_maps: its head is not average pooling followed by a linear "
            "layer; use a gradient method such as grad_cam"
        )
    return scorer.class_maps(scorer.features(images)).astype(jnp.float32)

"""Maps read off a linear head: class activation maps, without any gradient of the network.

CAM (Zhou et al. 2016): the map of class c is the sum over channels k of W_ck A_k, where W is the
linear layer after global average pooling. MinMax-CAM and D-MinMax-CAM (David et al. 2022) lower
what classes of the same image share. The scorer supplies ``class_maps``; with a head that is not
pooling + linear use the gradient methods. Nothing is rectified, and the bias is dropped.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.errors import UserError
from wsss_jax.explain.contract import Images, Labels, Maps, check_labels, over_labels
from wsss_jax.types import Scorer


def cam(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """Class activation maps of the label classes (Zhou et al. 2016, equation 2).

    Raises ValueError when the head is not average pooling and linear.
    """
    maps = all_class_maps(scorer, images)
    check_labels(labels, images.shape[0], maps.shape[-1])
    return jnp.where(labels[:, None, None, :], maps, 0)


def min_max_cam(
    scorer: Scorer, images: Images, labels: Labels, *, among: Labels | None = None
) -> Maps:
    """MinMax-CAM: a class's map minus the mean map of the image's other classes.

    ``among`` are the classes C_x of each image (None: the labels); the mean is over C_x without
    the class itself, and a class alone has its CAM. Source: David et al. 2022, MinMax-CAM; their
    code divides by ``|C_x| - 1`` also for a class outside C_x, we divide by as many classes as
    are subtracted.
    """
    maps = all_class_maps(scorer, images)
    check_labels(labels, images.shape[0], maps.shape[-1])
    rivals = (labels if among is None else among).astype(jnp.float32)[:, None, None, :]
    own = maps * rivals
    others = own.sum(axis=-1, keepdims=True) - own
    count = jnp.maximum(rivals.sum(axis=-1, keepdims=True) - rivals, 1)
    return jnp.where(labels[:, None, None, :], maps - others / count, 0)


def d_min_max_cam(
    scorer: Scorer, images: Images, labels: Labels, *, among: Labels | None = None
) -> Maps:
    """D-MinMax-CAM: positive and negative contributions contrasted apart.

    The weights of class c are relu(W_c) - relu(sum of W_n over N_x) / max(|N_x|, 1)
    + min(0, sum of W_n over C_x) / max(|C_x|, 1), with N_x = C_x without c (David et al. 2022).
    """
    features = scorer.features(images)
    maps, pull_back = jax.vjp(_linear(scorer), features)
    check_labels(labels, images.shape[0], maps.shape[-1])
    rivals = labels if among is None else among
    activations = features.astype(jnp.float32)

    def weights_of(classes: Float[Array, "b c"]) -> Float[Array, "b h w k"]:
        # Pulled back through a linear layer, ones on the map of a class are its weights.
        wanted = jnp.broadcast_to(classes[:, None, None, :], maps.shape)
        return pull_back(wanted.astype(maps.dtype))[0].astype(jnp.float32)

    def explain(chosen: Float[Array, "b c"]) -> Float[Array, "b h w"]:
        one, others, every, *counts = contrast(chosen, rivals)
        parts = (weights_of(one), weights_of(others), weights_of(every))
        return (d_min_max_weights(*parts, *counts) * activations).sum(axis=-1)

    return over_labels(labels, explain)


def contrast(chosen: Float[Array, "b c"], rivals: Labels) -> tuple[Array, ...]:
    """The class c, N_x and C_x as rows (b,c), and max(|N_x|, 1) and max(|C_x|, 1) as (b,)."""
    every = rivals.astype(jnp.float32)
    others = every * (1 - chosen)
    sizes = (jnp.maximum(rows.sum(axis=-1), 1) for rows in (others, every))
    return chosen, others, every, *sizes


def d_min_max_weights(
    own: Float[Array, "b *n k"],
    others: Float[Array, "b *n k"],
    every: Float[Array, "b *n k"],
    other_count: Float[Array, " b"],
    every_count: Float[Array, " b"],
) -> Float[Array, "b *n k"]:
    """The three terms of D-MinMax, from summed weights and the numbers of classes summed."""
    other_count, every_count = (
        count.reshape(-1, *[1] * (own.ndim - 1)) for count in (other_count, every_count)
    )
    contrasted = jax.nn.relu(own) - jax.nn.relu(others) / other_count
    return contrasted + jnp.minimum(every, 0) / every_count


def all_class_maps(scorer: Scorer, images: Images) -> Float[Array, "b h w c"]:
    """Class activation maps of every class; one forward pass and one matrix product."""
    return _linear(scorer)(scorer.features(images)).astype(jnp.float32)


def _linear(scorer: Scorer):
    if scorer.class_maps is None:
        raise UserError(
            "this scorer has no class_maps: its head is not average pooling followed by a linear "
            "layer; use a gradient method such as grad_cam"
        )
    return scorer.class_maps

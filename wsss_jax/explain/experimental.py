"""Methods without a verified reference, in the smallest form that can be said exactly.

For none of these was a definition found that could be checked against running code; each docstring
says what we chose. LFI-CAM and Perception Visualization need something trained: an importance
network (the system ``lfi``) and a decoder (``models.decoder``, trained by ``systems.perception``).
Here are only the pure functions on top of them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wsss_jax.explain.contract import Images, Labels, Maps, check_labels, over_labels
from wsss_jax.ops import images as image_ops
from wsss_jax.types import Scorer

Map = Float[Array, "b h w"]


def taylor_cam(scorer: Scorer, images: Images, labels: Labels) -> Maps:
    """What each cell has to do with all cells together: the second-order term of the score.

    No verified reference (Lerman et al., ICCV 2021, explain pairs of regions by cross derivatives;
    their normalisation could not be checked). Ours: with H_pq the sum over channels k, l of
    A_pk A_ql d2S/dA_pk dA_ql, cell q gets the sum over p of H_pq, by one derivative of the gradient
    along A. A linear head has no such term: its maps are zero.
    """
    features = scorer.features(images).astype(jnp.float32)
    check_labels(labels, *jax.eval_shape(scorer.head, features).shape)

    def explain(chosen: Float[Array, "b c"]) -> Map:
        def gradient(at: Array) -> Array:
            return jax.grad(lambda a: (scorer.head(a).astype(jnp.float32) * chosen).sum())(at)

        _, change = jax.jvp(gradient, (features,), (features,))
        return (features * change).sum(axis=-1)

    return over_labels(labels, explain)


def lfi_cam(
    scorer: Scorer,
    importance: Callable[[Array, Array], Array],
    images: Images,
    labels: Labels,
) -> Maps:
    """Channels weighted by a network that learnt their importance (Lee et al. 2021).

    ``importance``: images and features to weights (b,k) that sum to one, such as
    ``models.lfi.LfiClassifier.importance``. The map knows no classes: each label gets the same.
    No verified reference (the published file does not import); ours is the sum of weight times
    channel, raw, with the network of ``models.lfi``.
    """
    features = scorer.features(images)
    check_labels(labels, *jax.eval_shape(scorer.head, features).shape)
    weights = importance(images, features).astype(jnp.float32)
    wide = features.astype(jnp.float32)
    values = jnp.einsum("bhwk,bk->bhw", wide, weights, precision="highest")
    return values[..., None] * labels[:, None, None, :].astype(jnp.float32)


def perception(
    maps: Float[Array, "b h w c"], reconstruction: Float[Array, "b H W 3"]
) -> Float[Array, "b c H W 3"]:
    """Where and what: the image rebuilt from the features, seen through the map of each class.

    Picture = M × reconstruction + (1 - M) × white, with M the rectified map over its maximum,
    enlarged bilinearly; in [0, 1]. A map that is nowhere positive gives a white picture.
    No verified reference; this is the composition in the script that its authors published
    (Giulivi et al. 2021), with a decoder of ours (``models.decoder``).
    """
    positive = jax.nn.relu(maps)
    peak = positive.max(axis=(1, 2), keepdims=True)
    size = (reconstruction.shape[1], reconstruction.shape[2])
    mask = image_ops.resize(positive / jnp.where(peak > 0, peak, 1), size)
    mask = jnp.moveaxis(mask, -1, 1)[..., None]
    return mask * reconstruction[:, None] + (1 - mask)

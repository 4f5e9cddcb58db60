"""Every method as one call on a model and photographs: ``grad_cam(model, image, classes=[2, 7])``.

What goes in is looked at first, every mistake that people make often has an answer that works, and
what is compiled serves the next photographs of that size. Maps come out raw, as the methods define
them; ``normalise`` has the scalings. In loops of your own, under ``jax.jit``, use the functions
below the modules (``gradient.grad_cam`` …), which take a scorer and rows of booleans.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wsss_jax.errors import first_few
from wsss_jax.explain import (
    attention,
    augmented,
    class_maps,
    full_gradient,
    gradient,
    guided,
    lrp,
    perturb,
    relevance,
    saliency,
    score_weighted,
    targets,
)
from wsss_jax.explain.contract import check_finite, seeded
from wsss_jax.models import scorer as models
from wsss_jax.types import Scorer, Structure, Variables

Reads = Literal["features", "pixels", "attention"]
"""What a method looks at: a map and its head, the image alone, or a transformer's attention."""

_KEPT = 64
"""Compiled functions that are kept: one for each method, model and size of image."""


Calls = tuple[Callable[..., Array], Callable[..., Array]]
"""Compiled: what gives class scores, and what gives maps."""


@runtime_checkable
class Method(Protocol):
    """An explanation method, called with a model and photographs."""

    def __call__(self, model: object, images: object, classes: object = None) -> np.ndarray:
        """Raw maps of the classes; see ``by_hand``."""
        ...


def by_hand(explainer: Callable[..., Array], reads: Reads = "features") -> Method:
    """A method for work by hand, from the function of a scorer, images and labels.

    The result is called with

    * model: a ``flax.nnx`` module with methods ``features`` and ``head``, such as
      ``wsss_jax.network`` gives, a vision transformer with a class token, or two functions
      (features, head): images (b,H,W,3) to features (b,h,w,k), or tokens (b,n,k), and features to
      class scores (b,c).
    * images: one photograph (H,W,3) or many of one size (b,H,W,3), uint8 or float in [0, 1].
    * classes: numbers from 0. ``[2, 7]`` asks for these of every image, a list of lists or rows of
      booleans for those of each.

    It returns maps (h,w,k) of one photograph, (b,h,w,k) of many, in the order of ``classes``; where
    these differ by image the last axis has every class of the model, zero where it is not asked
    for. Raises ValueError that says what to do where an argument cannot be meant so.
    """

    def explain(model: object, images: object, classes: object = None) -> np.ndarray:
        photographs, single = _photographs(images)
        ask, run = _calls(explainer, reads, model)
        logits = ask(photographs)
        targets.check_logits(logits, photographs.shape[0])
        check_finite(logits, "class scores", "look at the weights; was the training finite?")
        labels, order = _labels(classes, *logits.shape)
        maps = np.asarray(run(photographs, labels))
        maps = maps if order is None else maps[..., order]
        return maps[0] if single else maps

    return explain


def _calls(
    explainer: Callable[..., Array], reads: Reads, model: object
) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Compiled: images to class scores, and images and labels to maps."""
    if models.is_module(model):
        training = models.in_training(model)
        if training:
            raise ValueError(
                f"the model is in training mode ({first_few(training)}), so its scores are "
                "random or depend on the batch; call model.eval() first"
            )
        if reads == "features" and not isinstance(model, models.HasFeatures | models.HasAttention):
            raise ValueError(
                f"{type(model).__name__} has no methods features (images to a map) and head (the "
                "map to class scores); give two functions (features, head)"
            )
        structure, arrays = models.taken_apart(model)
        ask, run = _of_module(explainer, reads, structure)
        return partial(ask, arrays), partial(run, arrays)
    if callable(model) or not isinstance(model, tuple) or len(model) < 2:
        raise ValueError(
            f"model is {type(model).__name__}; wanted a flax.nnx module with methods features and "
            "head, or two functions (features, head)"
        )
    return _of_functions(explainer, reads, Scorer(*model))


@lru_cache(_KEPT)
def _of_module(explainer: Callable[..., Array], reads: Reads, structure: Structure) -> Calls:
    def ask(arrays: Variables, images: Array) -> Array:
        return models.logits_of(models.put_together(structure, arrays), images)

    def run(arrays: Variables, images: Array, labels: Array) -> Array:
        module = models.put_together(structure, arrays)
        if reads == "attention":
            if not isinstance(module, models.HasAttention):
                raise ValueError(
                    f"{type(module).__name__} has no attention; this method is for transformers "
                    "that are read at their class token"
                )
            return explainer(module.attentive(), images, labels)
        if reads == "pixels":
            return explainer(_on_pixels(partial(models.logits_of, module)), images, labels)
        return _of_features(explainer, models.scorer_of(module, images), images, labels)

    return jax.jit(ask), jax.jit(run)


@lru_cache(_KEPT)
def _of_functions(explainer: Callable[..., Array], reads: Reads, scorer: Scorer) -> Calls:
    def ask(images: Array) -> Array:
        return scorer.head(scorer.features(images))

    def run(images: Array, labels: Array) -> Array:
        if reads == "attention":
            raise ValueError(
                "this method is for transformers that are read at their class token; give the "
                "module, or a types.Attentive to the function in explain.attention or relevance"
            )
        if reads == "pixels":
            return explainer(_on_pixels(ask), images, labels)
        return _of_features(explainer, scorer, images, labels)

    return jax.jit(ask), jax.jit(run)


def _of_features(
    explainer: Callable[..., Array], scorer: Scorer, images: Array, labels: Array
) -> Array:
    """Maps by a method of features and head; tokens are laid on a grid."""
    features = jax.eval_shape(scorer.features, images)
    if features.ndim == 3:
        scorer = targets.on_grid(scorer, scorer.features(images), images)
    elif features.ndim != 4:
        raise ValueError(
            f"features are {features.shape}, wanted a map (b, h, w, k) or tokens (b, n, k)"
        )
    else:
        targets.check_channels(features.shape, images.shape)
    return explainer(scorer, images, labels)


def _on_pixels(logits: Callable[[Array], Array]) -> Scorer:
    return Scorer(lambda pixels: pixels, logits)


def _photographs(images: object) -> tuple[Float[Array, "b H W 3"], bool]:
    """Photographs in [0, 1] with an axis for the batch, and whether there was only one."""
    pixels = np.asarray(images)
    single = pixels.ndim == 3
    pixels = pixels[None] if single else pixels
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        turned = pixels.ndim == 4 and pixels.shape[1] == 3
        advice = "; channels come last: np.moveaxis(images, -3, -1)" if turned else ""
        raise ValueError(
            f"images are {np.asarray(images).shape}, wanted one photograph (H, W, 3) or many "
            f"(b, H, W, 3){advice}"
        )
    if not pixels.size:
        raise ValueError(f"images are {pixels.shape}, which has no pixels")
    if pixels.dtype == np.uint8:
        return jnp.asarray(pixels.astype(np.float32) / np.float32(255)), single
    if pixels.dtype.kind != "f":
        raise ValueError(f"images are {pixels.dtype}, wanted uint8 or floats in [0, 1]")
    check_finite(jnp.asarray(pixels, jnp.float32), "images", "read the files again")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0:
        raise ValueError(
            f"images go down to {low:.3g}, wanted [0, 1]; subtract the mean inside the model: "
            "features=lambda x: net((x - mean) / std)"
        )
    if high > 1:
        raise ValueError(f"images go up to {high:.3g}, wanted [0, 1]; divide by 255")
    return jnp.asarray(pixels, jnp.float32), single


def _labels(classes: Any, images: int, count: int) -> tuple[Bool[Array, "b c"], list[int] | None]:
    """Which classes of each image, and their order where all images have the same."""
    if isinstance(classes, int | np.integer):
        classes = [classes]
    if classes is None:
        return targets.labels_of(None, images=images, classes=count), None
    if not hasattr(classes, "__len__"):
        raise ValueError(f"classes are a {type(classes).__name__}; {targets.FORMS}")
    if not len(classes) or not all(np.isscalar(one) or not np.shape(one) for one in classes):
        return targets.labels_of(classes, images=images, classes=count), None
    numbers = [one.item() for one in map(np.asarray, classes)]
    if len(set(numbers)) == len(numbers) and all(type(one) is int for one in numbers):
        # Numbers that do not repeat: nobody has to guess, whatever the number of classes.
        wrong = not set(numbers) <= set(range(count))
        row = numbers if wrong else [label in numbers for label in range(count)]
        return targets.labels_of([row] * images, images=images, classes=count), numbers
    labels = targets.labels_of([numbers] * images, images=images, classes=count)
    return labels, np.flatnonzero(np.asarray(labels[0])).tolist()


cam = by_hand(class_maps.cam)
min_max_cam = by_hand(class_maps.min_max_cam)
d_min_max_cam = by_hand(class_maps.d_min_max_cam)
grad_cam = by_hand(gradient.grad_cam)
grad_cam_pp = by_hand(gradient.grad_cam_pp)
sharpen_focus = by_hand(gradient.sharpen_focus)
layer_cam = by_hand(gradient.layer_cam)
fused_layer_cam = by_hand(gradient.fused_layer_cam)
xgrad_cam = by_hand(gradient.xgrad_cam)
hires_cam = by_hand(gradient.hires_cam)
min_max_grad_cam = by_hand(gradient.min_max_grad_cam)
d_min_max_grad_cam = by_hand(gradient.d_min_max_grad_cam)
smooth_grad_cam_pp = by_hand(seeded(gradient.smooth_grad_cam_pp))
augmented_grad_cam = by_hand(seeded(augmented.augmented_grad_cam))
full_grad = by_hand(full_gradient.full_grad)
score_cam = by_hand(score_weighted.score_cam)
ss_cam = by_hand(seeded(score_weighted.ss_cam))
ablation_cam = by_hand(perturb.ablation_cam)
vanilla_gradient = by_hand(saliency.vanilla_gradient, "pixels")
guided_gradient = by_hand(guided.guided_gradient, "pixels")
lrp_z_plus = by_hand(lrp.lrp_z_plus, "pixels")
lrp_alpha_beta = by_hand(lrp.lrp_alpha_beta, "pixels")
lrp_epsilon = by_hand(lrp.lrp_epsilon, "pixels")
smooth_grad = by_hand(seeded(saliency.smooth_grad), "pixels")
integrated_gradients = by_hand(saliency.integrated_gradients, "pixels")
rise = by_hand(seeded(perturb.rise), "pixels")
raw_attention = by_hand(attention.raw_attention, "attention")
rollout = by_hand(attention.rollout, "attention")
attention_grad_cam = by_hand(attention.attention_grad_cam, "attention")
getam = by_hand(attention.getam, "attention")
legrad = by_hand(attention.legrad, "attention")
attribution = by_hand(relevance.attribution, "attention")
gradient_attention = by_hand(relevance.gradient_attention, "attention")
lrp_rollout = by_hand(relevance.lrp_rollout, "attention")
partial_lrp = by_hand(relevance.partial_lrp, "attention")
token_lrp = by_hand(relevance.token_lrp, "attention")
full_lrp = by_hand(relevance.full_lrp, "attention")

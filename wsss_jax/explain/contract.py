"""What an explainer is, and how it walks over the classes of its images.

An explainer is a pure, jit-able function of a scorer, images and labels. It returns RAW maps:
no ReLU and no normalising unless the method's own definition has it inside. The maps of classes
that are not among an image's labels are zero; to explain every class, pass labels that are all
True. Normalising lives in ``normalise``, scales and flips in ``multiscale``.

A scorer that was bound to an ``inside`` mask returns features that are zero on padding and a head
that ignores padding; explanations never see the mask.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wsss_jax.explain import targets
from wsss_jax.types import Scorer, Size

Images: TypeAlias = Float[Array, "b _ _ 3"]
"""RGB images in [0, 1]."""

Labels: TypeAlias = Bool[Array, "images classes"]
"""Which classes to explain, per image. Axis names of their own: a mismatch is our error below."""

Maps: TypeAlias = Float[Array, "b _ _ classes"]
"""Raw maps, zero for classes that are not among the labels."""

Explainer: TypeAlias = Callable[[Scorer, Array, Array], Array]
"""(scorer, images (b,h,w,3), labels (b,c) bool) to raw maps (b,h',w',c)."""


def check_labels(labels: Labels, images: int, classes: int) -> None:
    """Raise ValueError unless there is one row per image and one column per class."""
    if labels.shape != (images, classes):
        raise ValueError(
            f"labels are {labels.shape}, wanted ({images}, {classes}): one row per image of the "
            "batch and one column per class the scorer knows"
        )


def checked(explainer: Explainer) -> Callable[[Scorer, Array, object], Array]:
    """The explainer for work by hand: compiled, and what goes in is looked at before.

    The result takes class numbers per image or rows of flags (``targets.labels_of``), and features
    that are tokens (b,n,k) (``targets.on_grid``). It raises ValueError for images of another form,
    for a network in training mode, and where images, features or scores are not finite, saying
    where; a compiled explainer cannot, and some of them would send a NaN to a plausible zero. One
    more forward pass.
    """

    def explain(scorer: Scorer, images: object, labels: object) -> Float[Array, "b h w c"]:
        images = targets.images_of(images)
        check_finite(images, "images", "read the files again, or mask what is not real")
        features = _features(scorer, images)
        check_finite(features, "features", "look at the weights; was the training finite?")
        if features.ndim == 3:
            scorer = targets.on_grid(scorer, features, images)
            features = jax.jit(scorer.features)(images)
        logits = jax.jit(scorer.head)(features)
        check_finite(logits, "class scores", "look at the weights of the head")
        targets.check_logits(logits, images.shape[0])
        rows = targets.labels_of(labels, images=logits.shape[0], classes=logits.shape[1])
        return jax.jit(functools.partial(explainer, scorer))(images, rows)

    return explain


def _features(scorer: Scorer, images: Images) -> Array:
    try:
        return jax.jit(scorer.features)(images)
    except Exception as problem:
        # Known by name: this package takes any network, and so imports no flax.
        if type(problem).__name__ != "TraceContextError":
            raise
        raise ValueError(
            "the network changes while it is used, as in training; call network.eval() first"
        ) from problem


def check_finite(values: Float[Array, "*s"], what: str, advice: str) -> None:
    """Raise ValueError that names the first value that is NaN or infinite. Reads the values."""
    bad = np.argwhere(~np.isfinite(np.asarray(values, np.float32)))
    if len(bad):
        first = tuple(int(n) for n in bad[0])
        raise ValueError(
            f"{what} hold {len(bad)} values that are not finite, the first at {first} of "
            f"{values.shape}; {advice}"
        )


def over_labels(
    labels: Bool[Array, "b c"], explain: Callable[[Array], Array]
) -> Float[Array, "b h w c"]:
    """Maps of all label classes, from a function that explains one class per image.

    ``explain`` receives a one-hot row per image (b,c), the class whose score is explained, and
    returns maps (b,h,w). It runs as often as the image with the most labels has labels: the cost
    follows the labels, not the number of classes, and only one gradient is alive at a time.
    """
    order = jnp.cumsum(labels, axis=-1) - 1
    maps = jax.eval_shape(explain, jnp.zeros(labels.shape, jnp.float32))

    def add(number: Array, total: Array) -> Array:
        chosen = (labels & (order == number)).astype(jnp.float32)
        # Rows whose labels are used up have no chosen class; their all-zero row adds nothing.
        return total + explain(chosen)[..., None] * chosen[:, None, None, :]

    start = jnp.zeros((*maps.shape, labels.shape[-1]), jnp.float32)
    return jax.lax.fori_loop(0, labels.sum(axis=-1).max(), add, start)


def seeded(explain: Callable[..., Array], seed: int = 0) -> Explainer:
    """An explainer from one that wants a random ``key``, which is made from this seed."""

    @functools.wraps(explain)
    def explainer(scorer: Scorer, images: Array, labels: Array) -> Array:
        return explain(scorer, images, labels, key=jax.random.key(seed))

    return explainer


def checked_features(scorer: Scorer, images: Images, labels: Labels) -> Float[Array, "b h w k"]:
    """Features in float32, once the labels have been found to fit the batch and the classes."""
    features = scorer.features(images)
    check_labels(labels, *jax.eval_shape(scorer.head, features).shape)
    return features.astype(jnp.float32)


def logits_of(scorer: Scorer, images: Images) -> Float[Array, "b c"]:
    """Class logits of images, in float32."""
    return scorer.head(scorer.features(images)).astype(jnp.float32)


def size_of(images: Float[Array, "b h w n"]) -> Size:
    """Height and width of arrays (b,h,w,n)."""
    return images.shape[1], images.shape[2]

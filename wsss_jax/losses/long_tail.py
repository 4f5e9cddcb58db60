"""Learning where few images show some classes: losses, weights of classes, how images are drawn.

Every class is a yes-or-no problem of its own here, since an image shows several: where a paper
has one label an image, its docstring tells what we do instead. Nothing here reads a mask.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def focal(
    logits: Float[Array, "b c"], targets: Float[Array, "b c"], *, gamma: float = 2.0
) -> Float[Array, "b c"]:
    """Binary cross-entropy in which what is learned already hardly counts, value by value.

    −y (1 − p)^γ log p − (1 − y) p^γ log(1 − p) for p = σ(x); γ = 0 is the cross-entropy.
    Source: Lin et al. 2017 (Focal Loss), equation 4, γ = 2. Where we differ: no weight α of yes
    against no; the weights of classes are ``effective_weights``.
    """
    yes, no = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    positive = no**gamma * jax.nn.log_sigmoid(logits)
    negative = yes**gamma * jax.nn.log_sigmoid(-logits)
    return -(targets * positive + (1 - targets) * negative)


def asymmetric(
    logits: Float[Array, "b c"],
    targets: Float[Array, "b c"],
    *,
    gamma: float = 4.0,
    margin: float = 0.05,
) -> Float[Array, "b c"]:
    """Binary cross-entropy in which easy absent classes hardly count, value by value.

    −y log p − (1 − y) q^γ log(1 − q) for p = σ(x), q = max(p − margin, 0): an absent class whose
    probability is below the margin costs nothing. Source: Ridnik, Ben-Baruch et al. 2021
    (Asymmetric Loss), section 2, with γ+ = 0, γ− = 4 and m = 0.05.
    """
    shifted = jnp.maximum(jax.nn.sigmoid(logits) - margin, 0.0)
    negative = shifted**gamma * jnp.log1p(-shifted)
    return -(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * negative)


def effective_weights(shown: Int[Array, " c"], *, beta: float = 0.999) -> Float[Array, " c"]:
    """Weights of classes by their effective number of images, of mean 1: rare ones weigh more.

    (1 − β) / (1 − β^n) for the n images that show a class. β goes from no weights (0) to one over
    n (near 1). A class without images weighs what a class of one image does.
    Source: Cui et al. 2019 (Class-Balanced Loss); they try β from 0.9 to 0.9999.
    Where we differ: there the weight is that of an image's one label; here it multiplies what its
    class costs, shown or not.
    """
    images = jnp.maximum(shown, 1).astype(jnp.float32)
    # 1 − β^n from its logarithm: the plain difference loses digits near 1.
    weights = 1 / -jnp.expm1(images * jnp.log(jnp.float32(beta)))
    return weights / weights.mean()


def prior_logits(shown: Int[Array, " c"], images: int) -> Float[Array, " c"]:
    """log π / (1 − π) of each class, to be added to its logit while training alone.

    π is the share of the images that show the class, (n + 1) / (N + 2), so that it is never 0 or 1.
    A network that learns so need not lower its scores of rare classes because they are rare.
    Source: Menon et al. 2021 (Logit Adjustment), equation 10 with τ = 1: log π_y is added to the
    logit of label y. Where we differ: yes and no of each class are the two labels, and the logit
    of yes less that of no takes log π − log(1 − π).
    """
    share = (shown.astype(jnp.float32) + 1) / (images + 2)
    return jnp.log(share) - jnp.log1p(-share)


def sampling_shares(labels: Bool[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """How often each of n images is drawn, of sum 1: first a class, then an image that shows it.

    Images that show nothing are one class more. Source: Shen et al. 2016 (Relay Backpropagation),
    class-aware sampling. Where we differ: an image of several classes is drawn for
    each of them, so the classes that come along with others are still seen more often.
    """
    groups = np.concatenate([labels, ~labels.any(axis=1, keepdims=True)], axis=1)
    sizes = groups.sum(axis=0)
    shares = groups @ (1 / np.maximum(sizes, 1))
    return shares / np.count_nonzero(sizes)

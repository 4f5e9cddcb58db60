"""HED as a function of its weights: logits of boundaries on a grid of cells."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from wsss_jax.backbones.hed import Hed
from wsss_jax.weights import loading

STRIDE = 4
"""Pixels per cell."""

TINY = 1e-6


def of_hed(weights: Path) -> tuple[Callable[[PyTree, Array, Array], Array], PyTree]:
    """From weights (a file, or their name) to ``(state, images, inside) -> logits``, and the state.

    images: (b,H,W,3) RGB in [0, 1], H and W multiples of STRIDE. Logits (b,h,w,1) are of the mean
    probability in each cell. Errors as ``loading.load``.
    """
    network = nnx.eval_shape(lambda: Hed(rngs=nnx.Rngs(0)))
    loading.load(network, weights)
    graph, state = nnx.split(network)

    def logits(
        state: PyTree, images: Float[Array, "b H W 3"], inside: Bool[Array, "b H W"]
    ) -> Float[Array, "b h w 1"]:
        chances = jax.nn.sigmoid(nnx.merge(graph, state)(images, inside))
        b, h, w, _ = chances.shape
        cells = chances.reshape(b, h // STRIDE, STRIDE, w // STRIDE, STRIDE, 1).mean((2, 4))
        return jsp.logit(jnp.clip(cells, TINY, 1 - TINY))

    return logits, state

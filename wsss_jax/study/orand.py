"""The small network of the OR→AND baseline: one map in, one map out, whatever the class."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.models.layers import Conv3x3


class OrAnd(nnx.Module):
    """Three 3×3 convolutions from one map to the logit of another, the same for every class."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.first = Conv3x3(1, width, rngs=rngs)
        self.second = Conv3x3(width, width, rngs=rngs)
        self.last = Conv3x3(width, 1, rngs=rngs)

    def __call__(
        self, maps: Float[Array, "b h w k"], inside: Bool[Array, "b h w"]
    ) -> Float[Array, "b h w k"]:
        """Logits of maps in [0, 1]; cells outside count as zero."""
        b, h, w, k = maps.shape
        x = maps.transpose(0, 3, 1, 2).reshape(b * k, h, w, 1)
        real = jnp.repeat(inside, k, axis=0)
        x = jax.nn.relu(self.first(x, real))
        x = jax.nn.relu(self.second(x, real))
        return self.last(x, real).reshape(b, k, h, w).transpose(0, 2, 3, 1)


def build(width: int, key: Any) -> OrAnd:
    """The network at its start."""
    return OrAnd(width, rngs=nnx.Rngs(key))

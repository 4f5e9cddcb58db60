"""BatchNorm (Ioffe & Szegedy 2015), once: frozen to its running statistics, or trained with them.

Both hold the same arrays, so a weight file fits either. Which one a network uses is said where it
is built (``norm=norms.TrainedBatchNorm``). Statistics are ``nnx.BatchStat``, never parameters: no
optimizer sees them. Scale and bias are parameters of both; the systems that freeze these too (PSA
does, IRN does not) leave their paths out of the optimizer. Everything is computed in float32.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from wsss_jax.backbones.layers import Cells, keep
from wsss_jax.errors import UserError
from wsss_jax.ops.channels import scale_shift

EPSILON = 1e-5
"""Added to the variance: PyTorch's value; networks that were made with another one give it."""

MOMENTUM = 0.1
"""Share of the batch in the new running statistics, PyTorch's convention."""


class _BatchNorm(nnx.Module):
    """What every BatchNorm holds."""

    def __init__(self, channels: int, epsilon: float = EPSILON):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))


class FrozenBatchNorm(_BatchNorm):
    """Running statistics at all times: an affine map per channel."""

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells = None, training: bool = False
    ) -> Float[Array, "b h w k"]:
        """Normalise; the dtype stays. ``inside`` and ``training`` change nothing here."""
        del inside, training
        return _affine(self, x, self.mean[...], self.var[...])


class TrainedBatchNorm(_BatchNorm):
    """The statistics of the batch while training, the running ones otherwise.

    Over the cells inside only, so that padding does not count. The running variance takes the
    unbiased one, as PyTorch does. Under ``jit`` with a sharded batch the statistics are those of
    the whole batch; under ``pmap`` each device has its own.
    """

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells = None, training: bool = False
    ) -> Float[Array, "b h w k"]:
        """Normalise; the dtype stays. ``inside`` is that of the grid of ``x``."""
        mean, var = self.mean[...], self.var[...]
        if training:
            count, mean, var = _statistics(x, inside)
            unbiased = var * count / jnp.maximum(count - 1, 1)
            self.mean.set_value(_moved(self.mean[...], mean))
            self.var.set_value(_moved(self.var[...], unbiased))
        return _affine(self, x, mean, var)


def _affine(norm: _BatchNorm, x: Array, mean: Array, var: Array) -> Array:
    factor = norm.scale[...] * lax.rsqrt(var + norm.epsilon)
    shift = norm.bias[...] - mean * factor
    return scale_shift(x.astype(jnp.float32), factor, shift).astype(x.dtype)


def _statistics(x: Array, inside: Cells) -> tuple[Array, Array, Array]:
    """Number of cells, and their mean and variance per channel, each in a pass of its own.

    (The mean of squares less the square of the mean, in one pass, saves a tenth of a step; at a
    mean of 100 deviations its variance is wrong by 0.4 %.)
    """
    x = x.astype(jnp.float32)
    if inside is None:
        count = jnp.asarray(x.shape[0] * x.shape[1] * x.shape[2], jnp.float32)
    else:
        count = jnp.maximum(inside.sum(dtype=jnp.float32), 1)
    mean = keep(x, inside).sum(axis=(0, 1, 2)) / count
    away = keep(x - mean[None, None, None], inside)
    return count, mean, jnp.square(away).sum(axis=(0, 1, 2)) / count


def _moved(old: Array, new: Array) -> Array:
    return lax.stop_gradient((1 - MOMENTUM) * old + MOMENTUM * new)


class GroupNorm(nnx.Module):
    """Normalisation over the image and a group of channels (Wu & He 2018), per image.

    Over the cells inside only. Without statistics to carry it does not depend on the batch.
    """

    def __init__(self, channels: int, groups: int = 4):
        if channels % groups:
            raise UserError(f"{channels} channels do not fall into {groups} groups")
        self.groups = groups
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b h w k"], inside: Cells = None) -> Float[Array, "b h w k"]:
        """Normalise; the dtype stays. ``inside`` is that of the grid of ``x``."""
        y = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
        real = jnp.ones(x.shape[:3], bool) if inside is None else inside
        weights = real.astype(jnp.float32)[..., None, None]
        count = jnp.maximum(weights.sum(axis=(1, 2, 3, 4), keepdims=True), 1) * y.shape[-1]
        y = jnp.where(real[..., None, None], y, jnp.zeros((), y.dtype))
        mean = y.sum(axis=(1, 2, 4), keepdims=True) / count
        away = (y - mean) * weights
        var = jnp.square(away).sum(axis=(1, 2, 4), keepdims=True) / count
        y = (away * lax.rsqrt(var + EPSILON)).reshape(x.shape)
        return scale_shift(y, self.scale[...], self.bias[...]).astype(x.dtype)


NormClass = Callable[..., FrozenBatchNorm | TrainedBatchNorm]
"""A class of norms: channels to the layer."""

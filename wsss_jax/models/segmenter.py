"""DeepLabV3+ (Chen et al. 2018) over any convolutional backbone: the network of the last step.

As Puzzle-CAM and P-NOC build it: GroupNorm of 4 groups, full instead of separable convolutions,
context at dilations 6, 12, 18 (12, 24, 36 at output stride 8) and over the whole image, refined
with the first maps of stride 4.

Where we differ: they enlarge maps so that the corners coincide, which is right only where a side
is a multiple of the stride plus one. We read every map where its cells lie in the image
(``Backbone.lean``), which is the same thing there, and does not depend on the canvas elsewhere.
"""

from collections.abc import Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from wsss_jax.backbones.layers import Images, Inside, Pointwise, Rngs, grid_inside, normalised
from wsss_jax.backbones.norms import GroupNorm
from wsss_jax.backbones.residual import Conv
from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.ops import images as resizing
from wsss_jax.types import Backbone, Size

RATES = MappingProxyType({"8": (12, 24, 36), "16": (6, 12, 18)})
"""Dilations of the context by output stride."""

FINE = 4
"""Stride of the maps that refine the outlines."""

Cells = Bool[Array, "b h w"]


class Rectified(nnx.Module):
    """Convolution, GroupNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, *, dilation: int = 1, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, size, dilation=dilation, rngs=rngs)
        self.norm = GroupNorm(outputs)

    def __call__(self, x: Float[Array, "b h w k"], cells: Cells) -> Float[Array, "b h w n"]:
        """Apply to the part of a map that is inside."""
        return jax.nn.relu(self.norm(self.conv(x, cells), cells))


class Context(nnx.Module):
    """Atrous spatial pyramid pooling: one cell, three dilated neighbourhoods, the whole image."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int], *, rngs: nnx.Rngs):
        wide = [Rectified(inputs, width, 3, dilation=rate, rngs=rngs) for rate in rates]
        self.views = nnx.List([Rectified(inputs, width, 1, rngs=rngs), *wide])
        self.whole = Rectified(inputs, width, 1, rngs=rngs)
        self.join = Rectified(width * (len(rates) + 2), width, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w k"], cells: Cells) -> Float[Array, "b h w n"]:
        """Context of every cell."""
        found = [view(x, cells) for view in self.views]
        weights = cells.astype(jnp.float32)[..., None]
        count = jnp.maximum(weights.sum(axis=(1, 2), keepdims=True), 1)
        kept = jnp.where(cells[..., None], x.astype(jnp.float32), 0.0)
        mean = (kept.sum(axis=(1, 2), keepdims=True) / count).astype(x.dtype)
        whole = self.whole(mean, cells.any(axis=(1, 2), keepdims=True))
        found.append(jnp.broadcast_to(whole, found[0].shape))
        return self.join(jnp.concatenate(found, axis=-1), cells)


class Segmenter(nnx.Module):
    """Scores of ``outputs`` classes (background included, as the first) for every pixel.

    width: channels of everything behind the backbone; 256 in the papers, less for light backbones,
    where these layers would cost ten times what the backbone does. The backbone must return maps
    of stride 4 and end at stride 8 or 16. Raises ValueError otherwise.
    """

    def __init__(self, backbone: Backbone, outputs: int, *, width: int = 256, rngs: nnx.Rngs):
        rates = lookup(RATES, str(backbone.strides[-1]), "output stride")
        if FINE not in backbone.strides:
            raise UserError(f"maps of stride {backbone.strides}, wanted one of stride {FINE}")
        self.backbone = backbone
        self.fine = max(n for n, stride in enumerate(backbone.strides) if stride == FINE)
        self.context = Context(backbone.channels[-1], width, rates, rngs=rngs)
        self.outlines = Rectified(backbone.channels[self.fine], 48, 1, rngs=rngs)
        self.first = Rectified(width + 48, width, 3, rngs=rngs)
        self.second = Rectified(width, width, 3, rngs=rngs)
        self.last = Pointwise(width, outputs, rngs=rngs)
        self.half, self.tenth = nnx.Dropout(0.5), nnx.Dropout(0.1)

    def __call__(
        self, images: Images, inside: Inside = None, rngs: Rngs = None
    ) -> Float[Array, "b H W c"]:
        """Class logits of images in [0, 1], float32, zero on padding.

        inside: the real pixels, top left on the canvas. rngs (a key or nnx.Rngs) switches dropout
        on.
        """
        if inside is None:
            inside = jnp.ones(images.shape[:3], bool)
        scores = self.grid_scores(images, inside, rngs)
        return self._enlarged(scores, grid_inside(inside, FINE), inside, FINE)

    def grid_scores(
        self, images: Float[Array, "b H W 3"], inside: Bool[Array, "b H W"], rngs: Rngs = None
    ) -> Float[Array, "b h w c"]:
        """The same logits on the grid of stride 4, where they are computed; not zero on padding.

        Cell n looks at pixel 4 n + 3 lean (``Backbone.lean``).
        """
        maps = self.backbone(normalised(images, self.backbone), inside=inside, rngs=rngs)
        coarse, near = (grid_inside(inside, s) for s in (self.backbone.strides[-1], FINE))
        keys = _keys(rngs)
        x = _dropped(self.half, self.context(maps[-1], coarse), keys[0])
        x = self._enlarged(x, coarse, near, self.backbone.strides[-1] // FINE)
        x = jnp.concatenate([x, self.outlines(maps[self.fine], near)], axis=-1)
        x = _dropped(self.half, self.first(x, near), keys[1])
        x = _dropped(self.tenth, self.second(x, near), keys[2])
        return self.last(x).astype(jnp.float32)

    def _enlarged(self, x: Array, cells: Cells, finer: Bool[Array, "b H W"], times: int) -> Array:
        """A map read on a grid ``times`` as fine, whose cells lie where the backbone has them."""
        size: Size = finer.shape[1:]  # pyright: ignore[reportAssignmentType]: two axes
        step = jnp.full((x.shape[0], 2), 1 / times)
        # Pixel p is cell (p - lean (stride - 1)) / stride; both grids lean alike.
        start = jnp.full((x.shape[0], 2), -self.backbone.lean * (times - 1) / times)
        return resizing.sample_within(x, _size(cells), _size(finer), size, start=start, step=step)


def _size(cells: Cells) -> Array:
    """Height and width (b, 2) of the real part, at least one cell."""
    sides = (cells.any(axis=2).sum(axis=1), cells.any(axis=1).sum(axis=1))
    return jnp.maximum(jnp.stack(sides, axis=1).astype(jnp.int32), 1)


def _keys(rngs: Rngs) -> tuple:
    """Three keys for the three places of dropout, or None for each."""
    if rngs is None:
        return (None,) * 3
    key = rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs
    return tuple(jax.random.fold_in(key, 100 + n) for n in range(3))


def _dropped(dropout: nnx.Dropout, x: Array, key: PRNGKeyArray | None) -> Array:
    return x if key is None else dropout(x, deterministic=False, rngs=key)

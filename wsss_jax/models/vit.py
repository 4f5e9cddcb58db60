"""ViT-Ti/S/B/L with patches of 16 pixels (Dosovitskiy et al. 2021, Touvron et al. 2021).

Images of any size: patches at the right and lower border are filled up with the mean colour, and
the position embedding is resampled from its own grid to that of each image (Keys' cubic with
antialiasing, as timm; Google's code is bilinear). On a canvas the grid is that of the image, not
of the canvas, and patches of padding are no attention keys: padding changes nothing. The block
itself stands in ``ops.tokens``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.errors import UserError
from wsss_jax.models.layers import grid_inside, keep
from wsss_jax.ops import tokens
from wsss_jax.types import Affine, BlockRecord, BlockWeights, Embedding, Size

PATCH = 16

SIZES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "vit_tiny": (192, 12, 3),
        "vit_small": (384, 12, 6),
        "vit_base": (768, 12, 12),
        "vit_large": (1024, 24, 16),
    }
)
"""Width, blocks and heads of each variant."""

Images = Float[Array, "b H W 3"]
Inside = Bool[Array, "b H W"] | None
Cells = Bool[Array, "b h w"] | None
Map = Float[Array, "b h w k"]
Tokens = Float[Array, "b t k"]


class Linear(nnx.Module):
    """Dense layer with bias; LeCun-normal start."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        start = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(start(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def weights(self) -> Affine:
        """The arrays."""
        return Affine(self.kernel[...], self.bias[...])


class Norm(nnx.Module):
    """Scale and bias of a LayerNorm."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def weights(self) -> Affine:
        """The arrays."""
        return Affine(self.scale[...], self.bias[...])


class Block(nnx.Module):
    """The parameters of one transformer block; the perceptron is four times as wide."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm1 = Norm(width)
        self.query_key_value = Linear(width, 3 * width, rngs=rngs)
        self.project = Linear(width, width, rngs=rngs)
        self.norm2 = Norm(width)
        self.expand = Linear(width, 4 * width, rngs=rngs)
        self.contract = Linear(4 * width, width, rngs=rngs)

    def weights(self) -> BlockWeights:
        """The arrays."""
        return BlockWeights(*(getattr(self, name).weights() for name in BlockWeights._fields))


class Encoder(nnx.Module):
    """Class token, position embedding, blocks and last norm over a map of embedded patches.

    grid: that of the stored position embedding; 14×14 for weights made at 224 pixels, 24×24 at
    384. remat: compute each block again in the backward pass instead of keeping what it saw.
    """

    def __init__(
        self, width: int, depth: int, heads: int, *, grid: Size, remat: bool, rngs: nnx.Rngs
    ):
        start = nnx.initializers.truncated_normal(0.02)
        self.token = nnx.Param(start(rngs.params(), (width,)))
        self.token_position = nnx.Param(start(rngs.params(), (width,)))
        self.position = nnx.Param(start(rngs.params(), (*grid, width)))
        self.blocks = nnx.List(Block(width, rngs=rngs) for _ in range(depth))
        self.norm = Norm(width)
        self.heads, self.remat = heads, remat

    def __call__(self, patches: Map, cells: Cells) -> Tokens:
        """All tokens after the last norm, the class token first."""
        x, keys = self.first(patches, cells)

        def run(weights: BlockWeights, x: Array, keys: Array | None) -> Array:
            return tokens.block(weights, x, heads=self.heads, keys=keys)[0]

        step = jax.checkpoint(run) if self.remat else run
        for part in self.blocks:
            x = step(part.weights(), x, keys)
        return tokens.layer_norm(x, self.norm.weights())

    def record(self, patches: Map, cells: Cells) -> tuple[Tokens, list[BlockRecord]]:
        """The same, and what each block saw."""
        x, keys = self.first(patches, cells)
        records = []
        for part in self.blocks:
            x, seen = tokens.block(part.weights(), x, heads=self.heads, keys=keys)
            records.append(seen)
        return tokens.layer_norm(x, self.norm.weights()), records

    def first(self, patches: Map, cells: Cells) -> tuple[Tokens, Bool[Array, "b t"] | None]:
        """The tokens that the first block sees, and which of them may be attended to."""
        b, h, w, k = patches.shape
        position = resampled(self.position[...], (h, w), cells).astype(patches.dtype)
        x = keep(patches + jnp.broadcast_to(position, patches.shape), cells).reshape(b, h * w, k)
        token = (self.token[...] + self.token_position[...]).astype(patches.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, k)), x], axis=1)
        if cells is None:
            return x, None
        return x, jnp.concatenate([jnp.ones((b, 1), bool), cells.reshape(b, h * w)], axis=1)


class ViT(nnx.Module):
    """A vision transformer without its classifier.

    Returns one map: the patch tokens after the last norm, at stride 16 (the only
    ``output_stride``). ``tokens`` gives the class token too.
    """

    lean = 0.5  # a patch has no first or last pixel
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        output_stride: int = PATCH,
        grid: Size = (14, 14),
        remat: bool = False,
    ):
        if output_stride != PATCH:
            raise UserError(f"output_stride is {output_stride}, wanted {PATCH}: the patch size")
        self.strides, self.channels = (PATCH,), (width,)
        self.embed = Linear(PATCH * PATCH * 3, width, rngs=rngs)
        self.encoder = Encoder(width, depth, heads, grid=grid, remat=remat, rngs=rngs)

    def __call__(self, images: Images, *, inside: Inside = None, rngs: object = None) -> tuple[Map]:
        """Normalised images to the map of patch tokens; nothing is random, ``rngs`` is not used."""
        del rngs
        return (patch_map(self.tokens(images, inside), images, inside),)

    def tokens(self, images: Images, inside: Inside = None) -> Tokens:
        """Tokens after the last norm (b,1+h*w,k), the class token first."""
        return self.encoder(self._embedded(images, inside), cells_of(inside))

    def record(self, images: Images, inside: Inside = None) -> tuple[Tokens, list[BlockRecord]]:
        """The same, and what each block saw."""
        return self.encoder.record(self._embedded(images, inside), cells_of(inside))

    def embedding(self, patches: Callable[[Array], tuple[Array, Array]]) -> Embedding:
        """How pixels become tokens; ``patches`` as ``types.Embedding`` wants them."""
        return Embedding(self.embed.weights(), self.encoder.token[...], patches)

    def _embedded(self, images: Images, inside: Inside) -> Map:
        cut = cut_patches(keep(images, inside))
        return tokens.affine(cut.reshape(*cut.shape[:3], -1), self.embed.weights())


def build(name: str) -> Callable[..., ViT]:
    """The maker of a variant of ``SIZES``: called with rngs, output_stride, grid and remat."""
    return partial(ViT, *SIZES[name])


def cut_patches(images: Images) -> Float[Array, "b h w p p 3"]:
    """Patches of 16×16 pixels; zeros fill the last ones up where the size does not divide."""
    b, height, width, _ = images.shape
    h, w = -(-height // PATCH), -(-width // PATCH)
    margins = ((0, 0), (0, h * PATCH - height), (0, w * PATCH - width), (0, 0))
    padded = jnp.pad(images, margins)
    return padded.reshape(b, h, PATCH, w, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)


def cells_of(inside: Inside) -> Cells:
    """Which patches belong to the image: those whose first pixel does."""
    return None if inside is None else grid_inside(inside, PATCH)


def patch_map(all_tokens: Tokens, images: Images, inside: Inside) -> Map:
    """The patch tokens as a map (b,h,w,k), zero on padding."""
    h, w = (-(-n // PATCH) for n in images.shape[1:3])
    b, _, k = all_tokens.shape
    return keep(all_tokens[:, 1:].reshape(b, h, w, k), cells_of(inside))


def resampled(
    position: Float[Array, "g1 g2 k"], grid: Size, cells: Cells = None
) -> Float[Array, "_ h w k"]:
    """The position embedding on another grid, one for all images or, given cells, one per image.

    The image of row i has as many rows and columns as its real cells span; the rest is zero.
    """
    stored, shape = position.shape[:2], (*grid, position.shape[-1])
    if cells is None:
        if stored == grid:
            return position[None]
        return jax.image.resize(position, shape, "cubic", antialias=True)[None]
    rows = jnp.maximum(cells.any(axis=2).sum(axis=1), 1).astype(jnp.float32)
    columns = jnp.maximum(cells.any(axis=1).sum(axis=1), 1).astype(jnp.float32)
    scales = jnp.stack([rows / stored[0], columns / stored[1]], axis=-1)

    def one(scale: Array) -> Array:
        shift = jnp.zeros(2)
        return jax.image.scale_and_translate(
            position, shape, (0, 1), scale, shift, "cubic", antialias=True
        )

    return jax.vmap(one)(scales)

"""Vision transformers with square patches, and what their families differ in.

ViT (Dosovitskiy et al. 2021), DeiT (Touvron et al. 2021), CLIP's visual transformer (Radford et
al. 2021), DINOv2 (Oquab et al. 2024) with and without registers (Darcet et al. 2024), and DINOv3
(Siméoni et al. 2025), whose positions are rotary: relevance that reaches its queries and keys is
not turned back.

Images of any size: patches at the right and lower border are filled up with the mean colour, and
the position embedding is resampled from its own grid to that of each image. On a canvas the grid
is that of the image, not of the canvas, and patches of padding are no attention keys: padding
changes nothing. LayerScale is folded into the layer before it when a file is read. The block
itself stands in ``ops.tokens``, resampling in ``vit_positions``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.backbones.layers import Cells, Images, Inside, Rngs, cells_at, keep
from wsss_jax.errors import UserError
from wsss_jax.ops import positions as vit_positions
from wsss_jax.ops import tokens
from wsss_jax.types import Affine, BlockRecord, BlockWeights, Embedding, Form, Size
from wsss_jax.weights.normalisation import CLIP as OPENAI
from wsss_jax.weights.normalisation import HALF, IMAGENET, Normalisation

SIZES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "tiny": (192, 12, 3),
        "small": (384, 12, 6),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
    }
)
"""Width, blocks and heads of each size."""

Map = Float[Array, "b h w k"]
Tokens = Float[Array, "b t k"]


class Family(NamedTuple):
    """What transformers of one origin have in common, beside their size.

    patch: side in pixels. grid: side of the stored position embedding. further: tokens that are
    no place in the image, beside the class token: registers, or DeiT's distillation token. rotary:
    attention turns queries and keys by their place, and nothing is added to the tokens.
    normed_first: a LayerNorm before the first block. resample: a function of ``vit_positions``.
    colours: mean and standard deviation that its usual checkpoints want.
    """

    patch: int = 16
    grid: int = 14
    further: int = 0
    normed_first: bool = False
    rotary: bool = False
    form: Form = Form()
    resample: Callable[..., Array] = vit_positions.antialiased
    colours: Normalisation = HALF


DEIT = Family(colours=IMAGENET)
DINOV2 = Family(patch=14, grid=37, resample=vit_positions.torch_cubic, colours=IMAGENET)
DINOV2_REGISTERS = DINOV2._replace(further=4, resample=vit_positions.antialiased)
DINOV3 = Family(further=4, rotary=True, form=Form(epsilon=1e-5), colours=IMAGENET)
CLIP = Family(normed_first=True, form=Form(epsilon=1e-5), colours=OPENAI)
CLIP_QUICK = CLIP._replace(form=Form(epsilon=1e-5, quick=True))


class Linear(nnx.Module):
    """Dense layer with bias; LeCun-normal start."""

    def __init__(self, inputs: int, outputs: int, *, form: Form = Form(), rngs: nnx.Rngs):  # noqa: B008 (frozen)
        start = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(start(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.form = form

    def weights(self) -> Affine:
        """The arrays."""
        return Affine(self.kernel[...], self.bias[...], self.form)


class Norm(nnx.Module):
    """Scale and bias of a LayerNorm."""

    def __init__(self, width: int, form: Form = Form()):  # noqa: B008 (frozen)
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.form = form

    def weights(self) -> Affine:
        """The arrays."""
        return Affine(self.scale[...], self.bias[...], self.form)


class Block(nnx.Module):
    """The parameters of one transformer block; the perceptron is four times as wide."""

    def __init__(self, width: int, *, form: Form = Form(), rngs: nnx.Rngs):  # noqa: B008 (frozen)
        self.norm1 = Norm(width, form)
        self.query_key_value = Linear(width, 3 * width, rngs=rngs)
        self.project = Linear(width, width, rngs=rngs)
        self.norm2 = Norm(width, form)
        self.expand = Linear(width, 4 * width, form=form, rngs=rngs)
        self.contract = Linear(4 * width, width, rngs=rngs)

    def weights(self) -> BlockWeights:
        """The arrays."""
        layers = BlockWeights._fields[:-1]
        return BlockWeights(*(getattr(self, name).weights() for name in layers))


class Encoder(nnx.Module):
    """Class token, position embedding, blocks and last norm over a map of embedded patches.

    Tokens stand in the order class token, patches, further tokens. grid: that of the stored
    position embedding. remat: compute each block again in the backward pass instead of keeping
    what it saw.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        family: Family,
        *,
        grid: Size,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        start = nnx.initializers.truncated_normal(0.02)
        self.token = nnx.Param(start(rngs.params(), (width,)))
        placed = not family.rotary
        self.token_position = nnx.Param(start(rngs.params(), (width,))) if placed else None
        self.position = nnx.Param(start(rngs.params(), (*grid, width))) if placed else None
        further = family.further
        self.further = nnx.Param(start(rngs.params(), (further, width))) if further else None
        self.first_norm = Norm(width, family.form) if family.normed_first else None
        self.blocks = nnx.List(Block(width, form=family.form, rngs=rngs) for _ in range(depth))
        self.norm = Norm(width, family.form)
        self.heads, self.remat, self.resample = heads, remat, family.resample

    def __call__(self, patches: Map, cells: Cells) -> Tokens:
        """All tokens after the last norm, the class token first."""
        return self.layers(patches, cells)[-1]

    def layers(self, patches: Map, cells: Cells) -> list[Tokens]:
        """Tokens before the first block, and after each quarter of the blocks.

        The latter after the last norm, as DINOv2's ``get_intermediate_layers``.
        """
        x, keys = self.first(patches, cells)

        def run(weights: BlockWeights, x: Array, keys: Array | None) -> Array:
            return tokens.advance(weights, x, heads=self.heads, keys=keys)

        step = jax.checkpoint(run) if self.remat else run
        between = [x]
        for part in self._weights(patches, cells):
            between.append(step(part, between[-1], keys))
        depth, norm = len(self.blocks), self.norm.weights()
        quarters = (-(-depth * quarter // 4) for quarter in (1, 2, 3, 4))
        return [x, *(tokens.layer_norm(between[n], norm) for n in quarters)]

    def record(self, patches: Map, cells: Cells) -> tuple[Tokens, list[BlockRecord]]:
        """Tokens after the last norm, and what each block saw."""
        x, keys = self.first(patches, cells)
        records = []
        for part in self._weights(patches, cells):
            x, seen = tokens.block(part, x, heads=self.heads, keys=keys)
            records.append(seen)
        return tokens.layer_norm(x, self.norm.weights()), records

    def first(self, patches: Map, cells: Cells) -> tuple[Tokens, Bool[Array, "b t"] | None]:
        """The tokens that the first block sees, and which of them may be attended to."""
        b, h, w, k = patches.shape
        x, token = patches, self.token[...]
        if self.position is not None and self.token_position is not None:
            position = self.resample(self.position[...], (h, w), cells).astype(x.dtype)
            x, token = x + jnp.broadcast_to(position, x.shape), token + self.token_position[...]
        x = keep(x, cells).reshape(b, h * w, k)
        parts = [token[None]]
        parts += [] if self.further is None else [self.further[...]]
        token, *further = (
            jnp.broadcast_to(part.astype(patches.dtype), (b, *part.shape)) for part in parts
        )
        x = jnp.concatenate([token, x, *further], axis=1)
        if self.first_norm is not None:
            x = tokens.layer_norm(x, self.first_norm.weights())
        if cells is None:
            return x, None
        always = jnp.ones((b, x.shape[1] - h * w), bool)
        keys = [always[:, :1], cells.reshape(b, h * w), always[:, 1:]]
        return x, jnp.concatenate(keys, axis=1)

    def _weights(self, patches: Map, cells: Cells) -> list[BlockWeights]:
        """Those of each block, with the turns of rotary positions."""
        found = [part.weights() for part in self.blocks]
        if self.position is not None:
            return found
        _, h, w, k = patches.shape
        others = 0 if self.further is None else self.further[...].shape[0]
        turn = vit_positions.turns((h, w), k // self.heads, others=others, cells=cells)
        return [part._replace(turn=turn) for part in found]


class ViT(nnx.Module):
    """A vision transformer without its classifier.

    Returns five maps at the stride of its patches (the only ``output_stride``): the patch tokens
    before the first block, and after each quarter of the blocks (of twelve: 3, 6, 9 and 12), these
    through the last norm. ``tokens`` gives the class token too.
    """

    lean = 0.5  # a patch has no first or last pixel

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        family: Family = Family(),  # noqa: B008 (a tuple)
        *,
        rngs: nnx.Rngs,
        output_stride: int | None = None,
        grid: Size | None = None,
        remat: bool = False,
    ):
        patch = family.patch
        if output_stride not in (None, patch):
            raise UserError(f"output_stride is {output_stride}, wanted {patch}: the patch size")
        grid = grid or (family.grid, family.grid)
        self.mean, self.std = family.colours
        self.strides, self.channels = (patch,) * 5, (width,) * 5
        self.embed = Linear(patch * patch * 3, width, rngs=rngs)
        self.encoder = Encoder(width, depth, heads, family, grid=grid, remat=remat, rngs=rngs)

    def __call__(
        self, images: Images, *, inside: Inside = None, rngs: Rngs = None
    ) -> tuple[Map, ...]:
        """Normalised images to five maps; nothing is random, ``rngs`` is not used."""
        del rngs
        patch = self.strides[-1]
        layers = self.encoder.layers(self._embedded(images, inside), cells_at(inside, patch))
        return tuple(patch_map(layer, images, inside, patch) for layer in layers)

    def tokens(self, images: Images, inside: Inside = None) -> Tokens:
        """Tokens after the last norm (b,1+h*w+n,k): class token, patches, n further ones."""
        return self.encoder(self._embedded(images, inside), cells_at(inside, self.strides[-1]))

    def record(self, images: Images, inside: Inside = None) -> tuple[Tokens, list[BlockRecord]]:
        """The same, and what each block saw."""
        cells = cells_at(inside, self.strides[-1])
        return self.encoder.record(self._embedded(images, inside), cells)

    def embedding(self, patches: Callable[[Array], tuple[Array, Array]]) -> Embedding | None:
        """How pixels become tokens, None where a norm follows; see ``types.Embedding``."""
        if self.encoder.first_norm is not None:
            return None
        return Embedding(self.embed.weights(), self.encoder.token[...], patches)

    def _embedded(self, images: Images, inside: Inside) -> Map:
        cut = cut_patches(keep(images, inside), self.strides[-1])
        return tokens.affine(cut.reshape(*cut.shape[:3], -1), self.embed.weights())


def build(size: str, family: Family = Family()) -> Callable[..., ViT]:  # noqa: B008 (a tuple)
    """The maker of a network of ``SIZES``: called with rngs, output_stride, grid and remat."""
    return partial(ViT, *SIZES[size], family)


def cut_patches(images: Images, patch: int) -> Float[Array, "b h w p p 3"]:
    """Square patches; zeros fill the last ones up where the size does not divide."""
    b, height, width, _ = images.shape
    h, w = -(-height // patch), -(-width // patch)
    margins = ((0, 0), (0, h * patch - height), (0, w * patch - width), (0, 0))
    padded = jnp.pad(images, margins)
    return padded.reshape(b, h, patch, w, patch, 3).transpose(0, 1, 3, 2, 4, 5)


def patch_map(all_tokens: Tokens, images: Images, inside: Inside, patch: int) -> Map:
    """The patch tokens as a map (b,h,w,k), zero on padding."""
    h, w = (-(-n // patch) for n in images.shape[1:3])
    b, _, k = all_tokens.shape
    return keep(all_tokens[:, 1 : 1 + h * w].reshape(b, h, w, k), cells_at(inside, patch))


NETWORKS: Mapping[str, Callable[..., ViT]] = MappingProxyType(
    {f"vit_{size}": build(size) for size in SIZES}
    | {
        "vit_small_patch8": build("small", Family(patch=8, grid=28)),
        "vit_base_patch8": build("base", Family(patch=8, grid=28)),
        "vit_small_patch32": build("small", Family(patch=32, grid=7)),
        "vit_base_patch32": build("base", Family(patch=32, grid=7)),
    }
    | {f"deit_{size}": build(size, DEIT) for size in ("tiny", "small", "base")}
    | {
        f"deit_{size}_distilled": build(size, DEIT._replace(further=1))
        for size in ("tiny", "small", "base")
    }
    | {f"dinov2_vit{size[0]}14": build(size, DINOV2) for size in ("small", "base", "large")}
    | {
        f"dinov2_vit{size[0]}14_reg": build(size, DINOV2_REGISTERS)
        for size in ("small", "base", "large")
    }
    | {f"dinov3_vit{size[0]}16": build(size, DINOV3) for size in ("small", "base", "large")}
    | {
        f"clip_vit_{size[0]}{patch}{end}": build(size, family._replace(patch=patch, grid=grid))
        for size, patch, grid in (("base", 16, 14), ("base", 32, 7), ("large", 14, 16))
        for end, family in (("", CLIP), ("_quick", CLIP_QUICK))
    }
)
"""All transformers by their names. ``_quick``: the activation of OpenAI's own CLIP weights; other
CLIP weights (LAION's, DataComp's) have GELU."""

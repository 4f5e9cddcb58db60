"""Heads that answer for every cell: saliency, class-agnostic edges, features for the random walk.

Each is a few lines over the maps of a backbone (its taps): every tap goes through a 1×1 layer and
is read on the head's own grid, the results lie side by side, and one more layer answers. A
``MultiTask`` network carries any of them beside the class maps of the classifier; one forward pass
gives all.

The grid of a head is that of score maps: cell (y, x) stands for the pixels s·y … s·y + s - 1 of the
image, and every tap is read in their middle, wherever the backbone's cells look
(``Backbone.lean``). So answers are enlarged to the photograph by plain bilinear resizing, and lie
over stored scores of the same stride. Padding changes nothing, and the real pixels may lie anywhere
on the canvas.

Sources: the boundary branch of IRN (Ahn, Cho & Kwak 2019), AffinityNet (Ahn & Kwak 2018). Not here:
losses (``losses``), and what affinities are for (``ops.affinity``).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wsss_jax.backbones.layers import (
    Conv3x3,
    Images,
    Inside,
    Pointwise,
    Rngs,
    grid_inside,
    keep,
    normalised,
)
from wsss_jax.backbones.norms import GroupNorm
from wsss_jax.config import lookup
from wsss_jax.errors import UserError
from wsss_jax.models.heads import Classifier
from wsss_jax.ops import images as resizing
from wsss_jax.types import Backbone, Size

Taps = Sequence[Float[Array, "b _ _ _"]]


class Answers(NamedTuple):
    """The outputs of a ``MultiTask`` network for a batch; None where it has no such head.

    logits (b,c) and class_maps (b,h,w,c) of the classifier, features (b,h,w,k) they come from;
    saliency and edge: logits (b,h,w) on their own grids; affinity: features (b,h,w,k).
    """

    logits: Any = None
    class_maps: Any = None
    features: Any = None
    saliency: Any = None
    edge: Any = None
    affinity: Any = None


class Gathered(nnx.Module):
    """Taps through a 1×1 layer each, GroupNorm, read on one grid, activated, side by side.

    The order is IRN's: activation comes after the enlargement. Taps finer than the grid are left
    out, unless there is no other. widths: channels of each tap used, or one number for all.
    ValueError where the numbers of widths and taps differ.
    """

    def __init__(
        self,
        backbone: Backbone,
        stride: int,
        widths: int | Sequence[int],
        *,
        activation: Callable[[Array], Array] = jax.nn.relu,
        rngs: nnx.Rngs,
    ):
        coarse = [n for n, s in enumerate(backbone.strides) if s >= stride]
        self.taps = tuple(coarse or range(len(backbone.strides)))
        each = (widths,) * len(self.taps) if isinstance(widths, int) else tuple(widths)
        if len(each) != len(self.taps):
            raise UserError(
                f"{len(each)} widths for {len(self.taps)} maps of stride {stride} or more; "
                f"the backbone has strides {backbone.strides}"
            )
        self.strides = tuple(backbone.strides[n] for n in self.taps)
        self.stride, self.lean, self.channels = stride, backbone.lean, sum(each)
        channels = [backbone.channels[n] for n in self.taps]
        self.layers = nnx.List(
            Pointwise(n, width, rngs=rngs) for n, width in zip(channels, each, strict=True)
        )
        self.norms = nnx.List(GroupNorm(width) for width in each)
        self.activation = activation

    def __call__(self, taps: Taps, inside: Bool[Array, "b H W"]) -> Float[Array, "b h w k"]:
        """Maps on the head's grid, zero where nothing real lies."""
        cells, read = grid_inside(inside, self.stride), []
        size = (cells.shape[1], cells.shape[2])
        for n, stride, layer, norm in zip(
            self.taps, self.strides, self.layers, self.norms, strict=True
        ):
            real = grid_inside(inside, stride)
            x = norm(layer(keep(taps[n], real)), real)
            x = on_grid(x, real, stride, to=self.stride, lean=self.lean, size=size)
            read.append(self.activation(x))
        return keep(jnp.concatenate(read, axis=-1), cells)


class EdgeHead(nnx.Module):
    """Logits of a boundary between any two classes at each cell (b,h,w).

    IRN's branch: 32 channels per tap at stride 4, one linear layer over all of them. Where we
    differ: IRN's grid lies where its backbone looks.
    """

    def __init__(self, backbone: Backbone, *, rngs: nnx.Rngs, stride: int = 4):
        self.gathered = Gathered(backbone, stride, 32, rngs=rngs)
        self.last = Pointwise(self.gathered.channels, 1, rngs=rngs)
        self.stride = stride

    def __call__(self, taps: Taps, inside: Bool[Array, "b H W"]) -> Float[Array, "b h w"]:
        """Logits in float32."""
        return self.last(self.gathered(taps, inside))[..., 0].astype(jnp.float32)


class SaliencyHead(nnx.Module):
    """Logits of belonging to any object at each cell (b,h,w).

    The edge head's form with one 3×3 layer of 64 channels before the answer, as an object is seen
    in its surroundings. Ours: the published networks (PoolNet, AuxSegNet) are larger.
    """

    def __init__(self, backbone: Backbone, *, rngs: nnx.Rngs, stride: int = 4):
        self.gathered = Gathered(backbone, stride, 32, rngs=rngs)
        self.around = Conv3x3(self.gathered.channels, 64, rngs=rngs)
        self.norm = GroupNorm(64)
        self.last = Pointwise(64, 1, rngs=rngs)
        self.stride = stride

    def __call__(self, taps: Taps, inside: Bool[Array, "b H W"]) -> Float[Array, "b h w"]:
        """Logits in float32."""
        cells = grid_inside(inside, self.stride)
        x = self.norm(self.around(self.gathered(taps, inside), cells), cells)
        return self.last(jax.nn.relu(x))[..., 0].astype(jnp.float32)


class AffinityHead(nnx.Module):
    """Features (b,h,w,k) whose mean absolute difference says how unlike two cells are.

    AffinityNet at stride 8: 64, 128 and 256 channels of the last three maps (fewer: the last of
    these), ELU, one linear layer to as many again, ELU. Where we differ: GroupNorm for every
    backbone (theirs has it for VGG only), without which the maps' sizes decide.
    """

    def __init__(self, backbone: Backbone, *, rngs: nnx.Rngs, stride: int = 8):
        count = len([s for s in backbone.strides if s >= stride]) or len(backbone.strides)
        widths = (64,) * max(count - 3, 0) + (64, 128, 256)[-count:]
        self.gathered = Gathered(backbone, stride, widths, activation=jax.nn.elu, rngs=rngs)
        self.last = Pointwise(sum(widths), sum(widths), rngs=rngs)
        self.stride = stride

    def __call__(self, taps: Taps, inside: Bool[Array, "b H W"]) -> Float[Array, "b h w k"]:
        """Features in float32."""
        return jax.nn.elu(self.last(self.gathered(taps, inside))).astype(jnp.float32)


HEADS: Mapping[str, Any] = MappingProxyType(
    {"saliency": SaliencyHead, "edge": EdgeHead, "affinity": AffinityHead}
)
"""Name to class; called as ``HEADS[name](backbone, rngs=rngs, stride=4)``."""


class MultiTask(nnx.Module):
    """A backbone with any of the ``HEADS``, beside a classifier on the same backbone if given.

    strides: pixels per cell of each head that is wanted, by its name (``{"edge": 4}``).
    """

    def __init__(
        self,
        backbone: Backbone,
        strides: Mapping[str, int],
        *,
        classifier: Classifier | None = None,
        rngs: nnx.Rngs,
    ):
        if classifier is not None and classifier.backbone is not backbone:
            raise UserError("the classifier has another backbone; build it on the same one")
        heads = {
            name: lookup(HEADS, name, "head")(backbone, rngs=rngs, stride=stride)
            for name, stride in strides.items()
        }
        self.backbone = backbone
        self.classifier = classifier
        self.saliency = heads.get("saliency")
        self.edge = heads.get("edge")
        self.affinity = heads.get("affinity")

    def __call__(
        self,
        images: Images,
        inside: Inside = None,
        rngs: Rngs = None,
        *,
        learns_body: bool = True,
    ) -> Answers:
        """All answers for images in [0, 1]. ``rngs`` (a key or nnx.Rngs) switches dropout on.

        learns_body: whether the dense heads send gradients into the backbone. (IRN does not let
        them; the classifier always does.)
        """
        if inside is None:
            inside = jnp.ones(images.shape[:3], bool)
        taps = self.backbone(normalised(images, self.backbone), inside=inside, rngs=rngs)
        seen = taps if learns_body else jax.lax.stop_gradient(taps)
        dense = {
            name: None if head is None else head(seen, inside)
            for name, head in (
                ("saliency", self.saliency),
                ("edge", self.edge),
                ("affinity", self.affinity),
            )
        }
        if self.classifier is None:
            return Answers(**dense)
        features = taps[-1]
        if rngs is not None and self.classifier.dropout.rate > 0:
            features = self.classifier.dropout(features, deterministic=False, rngs=rngs)
        return Answers(
            logits=self.classifier.head(features, inside),
            class_maps=self.classifier.class_maps(features),
            features=features,
            **dense,
        )


def on_grid(
    x: Float[Array, "b h w k"],
    cells: Bool[Array, "b h w"],
    stride: int,
    *,
    to: int,
    lean: float,
    size: Size,
) -> Float[Array, "b h2 w2 k"]:
    """A map of ``stride`` read in the middle of every cell of a grid of stride ``to``.

    Bilinear among the real ``cells`` only, so that an image on a canvas is read like the image
    alone, wherever it lies. size: rows and columns of the grid. Zero where no real cell is near.
    """
    # Cell i of the grid has its middle at pixel to·i + (to - 1) / 2; cell j of the map looks at
    # pixel stride·j + lean (stride - 1).
    start = ((to - 1) / 2 - lean * (stride - 1)) / stride
    if to == stride and start == 0:
        return keep(x, cells)
    count = x.shape[0]
    weights = cells[..., None].astype(x.dtype)
    together = jnp.concatenate([keep(x, cells), weights], axis=-1)
    sizes = [jnp.tile(jnp.asarray(n, jnp.int32), (count, 1)) for n in (x.shape[1:3], size)]
    read = resizing.sample_within(
        together,
        sizes[0],
        sizes[1],
        size,
        start=jnp.full((count, 2), start),
        step=jnp.full((count, 2), to / stride),
    )
    share = read[..., -1:]
    near = share > 1e-5
    return jnp.where(near, read[..., :-1] / jnp.where(near, share, 1), jnp.zeros((), x.dtype))

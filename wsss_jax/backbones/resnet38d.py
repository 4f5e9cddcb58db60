"""ResNet38-d: the wide residual network A1 of Wu et al. 2019, dilated to stride 8.

No pooling anywhere, normalisation and ReLU before every convolution, 105,070,912 parameters. The
backbone of PSA (Ahn & Kwak 2018), OC-CSE and SEAM, with their dropout of whole channels in the last
two blocks. BatchNorm keeps its running statistics there; PSA also keeps every scale and bias of
them fixed, and the blocks ``conv1a``, ``b2``, ``b2_1`` and ``b2_2``: the optimizer then leaves out
these paths. Weight files: the authors' MXNet file of the ImageNet network, or PyTorch conversions.

The authors report a changed epsilon of MXNet's BatchNorm, which its files do not tell; we use
1e-5, as all PyTorch descendants do.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from wsss_jax.backbones import residual
from wsss_jax.backbones.layers import Cells, Images, Inside, Maps, Rngs, cells_at, keep
from wsss_jax.backbones.norms import FrozenBatchNorm, NormClass
from wsss_jax.backbones.residual import Conv
from wsss_jax.errors import UserError
from wsss_jax.weights.import_names import torch_names
from wsss_jax.weights.normalisation import IMAGENET

# Units, channels between and after, stride, dilation of the very first convolution and of the rest.
_STAGES = MappingProxyType(
    {
        "b2": (3, 128, 128, 2, 1, 1),
        "b3": (3, 256, 256, 2, 1, 1),
        "b4": (6, 512, 512, 2, 1, 1),
        "b5": (3, 512, 1024, 1, 1, 2),
    }
)
# Channels of the three convolutions and the rate of dropout, dilation 4.
_ENDS = MappingProxyType({"b6": (512, 1024, 2048, 0.3), "b7": (1024, 2048, 4096, 0.5)})


class Unit(nnx.Module):
    """Two 3×3 convolutions, each behind normalisation and ReLU."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        *,
        stride: int,
        dilations: tuple[int, int],
        norm: NormClass,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.bn_branch2a = norm(inputs)
        self.conv_branch2a = Conv(inputs, inner, 3, stride=stride, dilation=dilations[0], rngs=rngs)
        self.bn_branch2b1 = norm(inner)
        self.conv_branch2b1 = Conv(inner, outputs, 3, dilation=dilations[1], rngs=rngs)
        changes = stride > 1 or inputs != outputs
        self.conv_branch1 = Conv(inputs, outputs, 1, stride=stride, rngs=rngs) if changes else None

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells, training: bool
    ) -> tuple[Float[Array, "b h2 w2 n"], Float[Array, "b h w k"]]:
        """The unit's output, and its rectified input; ``inside`` is that of the input grid."""
        after = cells_at(inside, self.stride)
        rectified = jax.nn.relu(self.bn_branch2a(x, inside, training))
        y = self.conv_branch2a(rectified, inside)
        y = jax.nn.relu(self.bn_branch2b1(y, after, training))
        same = x if self.conv_branch1 is None else self.conv_branch1(rectified)
        return same + self.conv_branch2b1(y, after), rectified


class End(nnx.Module):
    """1×1, 3×3 of dilation 4, 1×1, with dropout of whole channels before the last two."""

    def __init__(self, inputs: int, plan: tuple, *, norm: NormClass, rngs: nnx.Rngs):
        first, second, outputs, rate = plan
        self.bn_branch2a = norm(inputs)
        self.conv_branch2a = Conv(inputs, first, 1, rngs=rngs)
        self.bn_branch2b1 = norm(first)
        self.conv_branch2b1 = Conv(first, second, 3, dilation=4, rngs=rngs)
        self.bn_branch2b2 = norm(second)
        self.conv_branch2b2 = Conv(second, outputs, 1, rngs=rngs)
        self.conv_branch1 = Conv(inputs, outputs, 1, rngs=rngs)
        self.dropout = nnx.Dropout(rate, broadcast_dims=(1, 2))

    def __call__(
        self,
        x: Float[Array, "b h w k"],
        inside: Cells,
        training: bool,
        keys: tuple[PRNGKeyArray, ...] | None = None,
    ) -> tuple[Float[Array, "b h w n"], Float[Array, "b h w k"]]:
        """The block's output, and its rectified input. Two ``keys`` switch dropout on."""
        rectified = jax.nn.relu(self.bn_branch2a(x, inside, training))
        y = self.conv_branch2a(rectified)
        y = self._dropped(jax.nn.relu(self.bn_branch2b1(y, inside, training)), keys, 0)
        y = self.conv_branch2b1(y, inside)
        y = self._dropped(jax.nn.relu(self.bn_branch2b2(y, inside, training)), keys, 1)
        return self.conv_branch1(rectified) + self.conv_branch2b2(y), rectified

    def _dropped(self, x: Array, keys: tuple[PRNGKeyArray, ...] | None, n: int) -> Array:
        return x if keys is None else self.dropout(x, deterministic=False, rngs=keys[n])


class ResNet38d(nnx.Module):
    """ResNet38-d; output stride 8 only.

    Returns what b3, b4, b5 and b6 take in, normalised and rectified (the last two are "conv4" and
    "conv5" of PSA), and the features ("conv6"). ``norm`` is a class of ``norms``; ``remat`` trades
    time for memory in the gradient, block by block.
    """

    mean, std = IMAGENET
    lean = 0.0

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        output_stride: int = 8,
        norm: NormClass = FrozenBatchNorm,
        remat: bool = False,
    ):
        if output_stride != 8:
            raise UserError(f"output_stride is {output_stride}, wanted 8")
        self.remat = remat
        self.strides, self.channels = (2, 4, 8, 8, 8), (128, 256, 512, 1024, 4096)
        self.conv1a = Conv(3, 64, 3, rngs=rngs)
        inputs, stages = 64, []
        for units, inner, outputs, stride, first, rest in _STAGES.values():
            stage = []
            for n in range(units):
                stage.append(
                    Unit(
                        inputs,
                        inner,
                        outputs,
                        stride=stride if n == 0 else 1,
                        dilations=(first if n == 0 else rest, rest),
                        norm=norm,
                        rngs=rngs,
                    )
                )
                inputs = outputs
            stages.append(nnx.List(stage))
        self.b2, self.b3, self.b4, self.b5 = stages
        self.b6 = End(1024, _ENDS["b6"], norm=norm, rngs=rngs)
        self.b7 = End(2048, _ENDS["b7"], norm=norm, rngs=rngs)
        self.bn7 = norm(4096)

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to five maps. ``rngs`` (a key or nnx.Rngs) switches dropout on.

        Explanations find the outputs of its parts by the names ``conv1a``, ``b2``, … ``b7``.
        """
        training = rngs is not None
        x, cells, taps = checkpoint_name(self.conv1a(images, inside), "conv1a"), inside, []
        for name in _STAGES:
            for n, unit in enumerate(getattr(self, name)):
                x, rectified = residual.run(unit, x, cells, training, remat=self.remat)
                if n == 0:
                    taps.append(keep(rectified, cells))
                cells = cells_at(cells, unit.stride)
            x = checkpoint_name(x, name)
        keys = _keys(rngs)
        for name, pair in (("b6", keys[:2]), ("b7", keys[2:])):
            end = getattr(self, name)
            x, rectified = residual.run(end, x, cells, training, pair or None, remat=self.remat)
            x = checkpoint_name(x, name)
            taps.append(keep(rectified, cells))
        features = jax.nn.relu(self.bn7(x, cells, training))
        # Of the rectified inputs, those of b2 (the stem) and b7 are nobody's taps.
        return (*taps[1:5], keep(features, cells))

    def parameter_names(self) -> Mapping[str, str | None]:
        """Names in the PyTorch files of PSA and its descendants to our paths."""
        layers = {"conv1a": "conv1a", "bn7": "bn7"}
        parts = ("bn_branch2a", "conv_branch2a", "bn_branch2b1", "conv_branch2b1")
        for name in _STAGES:
            for n, unit in enumerate(getattr(self, name)):
                theirs = name if n == 0 else f"{name}_{n}"
                for part in (*parts, *(() if unit.conv_branch1 is None else ("conv_branch1",))):
                    layers[f"{theirs}.{part}"] = f"{name}/{n}/{part}"
        for name in _ENDS:
            for part in (*parts, "bn_branch2b2", "conv_branch2b2", "conv_branch1"):
                layers[f"{name}.{part}"] = f"{name}/{part}"
        heads = {"fc8.weight": None, "linear1000.weight": None, "linear1000.bias": None}
        return MappingProxyType(torch_names(self, layers) | heads)

    def from_mxnet(self, name: str) -> str:
        """The PyTorch name for one of the authors' MXNet file.

        ``res4b3_branch2a_weight`` is ``b4_3.conv_branch2a.weight``, ``bn2a_branch2a_moving_mean``
        (or ``_mean``) is ``b2.bn_branch2a.running_mean``. Source: the converter of PSA.
        """
        layer, *inner = [word for word in name.split("_") if word != "moving"]
        part = _MXNET_PARTS.get(inner[-1], inner[-1]) if inner else ""
        found = re.fullmatch(r"(res|bn)(\d)(a|b\d+)", layer)
        if found is None or len(inner) != 2:
            return f"{layer}.{part}"
        kind, stage, unit = found.groups()
        block = f"b{stage}" if unit == "a" else f"b{stage}_{unit[1:]}"
        return f"{block}.{'conv' if kind == 'res' else 'bn'}_{inner[0]}.{part}"


_MXNET_PARTS = MappingProxyType(
    {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
)


def _keys(rngs: Rngs) -> tuple:
    """Four keys for the four places of dropout; none without ``rngs``."""
    if rngs is None:
        return ()
    key = rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs
    return tuple(jax.random.fold_in(key, n) for n in range(4))

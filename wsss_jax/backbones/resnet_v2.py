"""ResNet-50 v2 without its last stage and classifier: normalisation before every convolution.

Source: He et al. 2016 (identity mappings). Here are stem and stages 1 to 3, because the weight
file that people can get holds no more; class maps lie on stage 3, at stride 16. A unit is bn, ReLU,
1×1; bn, ReLU, 3×3 (with the stride); bn, ReLU, 1×1; where it changes its shape the 1×1 shortcut
takes the first ReLU's output. Names are those of MXNet's model zoo.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import jax
from flax import nnx
from jaxtyping import Array, Float

from wsss_jax.backbones import residual
from wsss_jax.backbones.layers import Cells, Images, Inside, Maps, Rngs, cells_at
from wsss_jax.backbones.norms import FrozenBatchNorm, NormClass
from wsss_jax.backbones.residual import Conv
from wsss_jax.weights.import_names import values_of
from wsss_jax.weights.normalisation import IMAGENET

_PARTS = MappingProxyType({
    "kernel": "weight", "scale": "gamma", "bias": "beta", "mean": "running_mean",
    "var": "running_var",
})  # fmt: skip


class Unit(nnx.Module):
    """1×1, 3×3 and 1×1 with four times as many channels at the end."""

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        stride: int,
        dilation: int,
        norm: NormClass,
        rngs: nnx.Rngs,
    ):
        self.stride, outputs = stride, 4 * width
        self.bn1 = norm(inputs)
        self.conv1 = Conv(inputs, width, 1, rngs=rngs)
        self.bn2 = norm(width)
        self.conv2 = Conv(width, width, 3, stride=stride, dilation=dilation, rngs=rngs)
        self.bn3 = norm(width)
        self.conv3 = Conv(width, outputs, 1, rngs=rngs)
        changes = stride > 1 or inputs != outputs
        self.shortcut = Conv(inputs, outputs, 1, stride=stride, rngs=rngs) if changes else None

    def __call__(
        self, x: Float[Array, "b h w k"], inside: Cells, training: bool
    ) -> Float[Array, "b h2 w2 n"]:
        """One unit; ``inside`` is that of its input grid."""
        after = cells_at(inside, self.stride)
        rectified = jax.nn.relu(self.bn1(x, inside, training))
        y = jax.nn.relu(self.bn2(self.conv1(rectified), inside, training))
        y = jax.nn.relu(self.bn3(self.conv2(y, inside), after, training))
        same = x if self.shortcut is None else self.shortcut(rectified)
        return same + self.conv3(y)


class ResNetV2(nnx.Module):
    """Stem and three stages of ``counts`` units.

    Returns the map after the stem's pooling and the outputs of the stages, which no normalisation
    and no ReLU has followed yet. ``norm`` and ``remat`` as in ``resnet.ResNet``.
    """

    mean, std = IMAGENET
    lean = 0.0

    def __init__(
        self,
        counts: Sequence[int],
        *,
        rngs: nnx.Rngs,
        output_stride: int = 16,
        norm: NormClass = FrozenBatchNorm,
        remat: bool = False,
    ):
        rows = residual.plan((1, 2, 2), output_stride, (8, 16))
        self.remat = remat
        self.bn0 = norm(3)
        self.conv0 = Conv(3, 64, 7, stride=2, rngs=rngs)
        self.bn1 = norm(64)
        self.channels = (64, 256, 512, 1024)

        def unit(n: int, head: bool, **grid: int) -> Unit:
            inputs = self.channels[n if head else n + 1]
            return Unit(inputs, 64 * 2**n, norm=norm, rngs=rngs, **grid)

        stages, self.strides = residual.stages(counts, rows, unit)
        self.stages = nnx.List(map(nnx.List, stages))

    def __call__(self, images: Images, *, inside: Inside = None, rngs: Rngs = None) -> Maps:
        """Normalised images to four maps. ``rngs`` only tells that this is training."""
        training = rngs is not None
        x = self.conv0(self.bn0(images, inside, training), inside)
        cells = cells_at(inside, 2)
        x = jax.nn.relu(self.bn1(x, cells, training))
        return residual.run_stages(self.stages, x, cells, training, remat=self.remat)

    def parameter_names(self) -> Mapping[str, str | None]:
        """Names in MXNet's model zoo to our paths; None for what is not imported."""
        layers = {"bn0": "batchnorm0", "conv0": "conv0", "bn1": "batchnorm1"}
        for n, stage in enumerate(self.stages):
            convolutions = 0
            for i, unit in enumerate(stage):
                root, parts = f"stages/{n}/{i}", ["conv1", "conv2", "conv3"]
                parts += [] if unit.shortcut is None else ["shortcut"]
                for part in parts:
                    layers[f"{root}/{part}"] = f"stage{n + 1}_conv{convolutions}"
                    convolutions += 1
                for k in range(3):
                    layers[f"{root}/bn{k + 1}"] = f"stage{n + 1}_batchnorm{3 * i + k}"
        names = {}
        for path in values_of(self):
            layer, part = path.rsplit("/", 1)
            names[f"{layers[layer]}_{_PARTS[part]}"] = path
        # The norm behind the missing last stage, of 2048 channels.
        last = {f"batchnorm2_{part}": None for part in _PARTS.values() if part != "weight"}
        return MappingProxyType(names | last)


resnet50v2 = partial(ResNetV2, (3, 4, 6))
"""8.5 M parameters: stem and stages 1 to 3 of the whole network's 4."""
